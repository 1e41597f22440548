"""Runs the blocks of a document with a real `sh`, whose `python` is forked from a warm process.

`sh` finds a stand-in for `python`, `pip`, `pytest` and `sh` in front of everything else. It hands
its arguments, variables, folder and streams to the tests, which fork a process that has imported
the package already. What the documents say is typed as it stands; the only thing that is changed
is in `SHORTER`.
"""

import contextlib
import dataclasses
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from jax_mdlm.command import load_function
from tests.docs import parsing
from tests.docs.commands import Command
from tests.training.forks import Child, Forks

# What the children find imported: all that the commands import, but for the modules that are run.
IMPORTS = (
    "jax_mdlm.training.run",
    "jax_mdlm.experiments.intervention",
    "jax_mdlm.evaluation.likelihood",
    "jax_mdlm.evaluation.harness.run",
    "jax_mdlm.viewing.run",
    "jax_mdlm.planning.run",
    "benchmarks.sampler",
    "jax_mdlm.conversion",
    "grain",
    "matplotlib.pyplot",
)
_DECODED = ("--limit", "4", "--seeds", "1", "--strengths", "0", "0.4")
# What is put behind the words of a command, so that it takes seconds. It may only shorten: sizes of
# a run and of its evaluation, never what is done. Nothing else of a document is changed. `{data}`
# is a folder in which data sets are prepared once, `{runs}` the first two of a sweep's list.
SHORTER: dict[tuple[str, ...], tuple[str, ...]] = {
    ("train",): (
        "--config.train.steps=2",
        "--config.train.batch_size=8",
        "--config.train.evaluate_rows=8",
        "--config.data.data_dir={data}",
    ),
    ("evaluate", "pronunciations"): ("--limit", "4"),
    ("evaluate", "intervention"): _DECODED,
    ("evaluate", "sweep"): ("--training-seeds", "1", "--only", "{runs}", *_DECODED),
    ("evaluate", "harness"): ("--limit", "1", "--samples", "2"),
    ("evaluate", "repeats"): ("--limit", "4"),
    ("evaluate", "slack"): ("--limit", "4"),
    ("evaluate", "likelihood"): ("--limit", "2", "--samples", "2"),
    ("evaluate", "judge", "answers"): ("--limit", "1"),
    ("benchmarks.loss",): ("--vocab=600", "--length=32", "--labels=8", "--embed=16"),
    ("benchmarks.lattice",): ("--frames=32", "--labels=8", "--batch=1", "--repeats=1"),
    ("benchmarks.sampler",): (
        *("--repeats=1", "--steps=4", "--layers=1", "--embed=16", "--heads=2", "--mlp=16"),
        *("--vocab=600", "--prompt=8", "--length=8", "--block=4", "--batch=1"),
    ),
    ("benchmarks.convert",): (
        *("--layers=1", "--embed=128", "--mlp=128", "--vocab=600", "--repeats=1", "--settle=0"),
    ),
    ("benchmarks.buckets",): ("--rounds=0",),
}
# Two of the scripts install the package and run everything: continuous integration runs them.
RUN_BY_CI = ("launch/quickstart.sh", "launch/test.sh")
SECONDS = 600  # that a block may take

_STAND_IN = """\
#!{python} -IS
import json, os, socket, sys
asked = socket.socket(socket.AF_UNIX)
asked.connect(os.environ["DOCUMENT_SOCKET"])
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
request = dict(words=words, env=dict(os.environ), folder=os.getcwd(), pid=os.getpid())
asked.sendall(json.dumps(request).encode() + b"\\n")
answer = json.loads(asked.makefile().readline())
if "code" not in answer:
    os.execv("/bin/sh", ["sh", *sys.argv[1:]])
sys.stderr.write(answer["error"])
sys.exit(answer["code"] if answer["code"] >= 0 else 128 - answer["code"])
"""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a block came to.

    Attributes:
      failed: The commands that did not end with 0, and how they ended.
      output: What was printed.
    """

    failed: list[str]
    output: str


class Shell:
    """A folder with blocks that are run in it.

    Args:
      forks: The warm process.
      folder: Where the blocks run.
      home: What `~` is.
    """

    def __init__(self, forks: Forks, folder: Path, home: Path):
        self._forks, self._folder, self._home = forks, folder, home

    def run(self, block: str, language: str = "sh") -> Result:
        """Runs a block, `sh` or `python`, and every command in it, to the end."""
        with tempfile.TemporaryDirectory(prefix="block") as temporary:
            tools = Path(temporary)
            for name in ("python", "python3", "pip", "pytest", "sh"):
                (tools / name).write_text(_STAND_IN.format(python=os.path.realpath(sys.executable)))
                (tools / name).chmod(0o755)
            script = tools / f"block.{language}"
            script.write_text(block)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(tools / "socket"))
                listener.listen(64)
                line = ["/bin/sh", "-e", script] if language == "sh" else [tools / "python", script]
                return self._follow(line, listener, tools)

    def _follow(self, line: Sequence[str | Path], listener: socket.socket, tools: Path) -> Result:
        """Runs a line and answers its commands until it has ended."""
        path, failed = tools / "output", []
        running: list[tuple[Child, socket.socket, str]] = []
        with path.open("ab") as output:
            process = subprocess.Popen(
                line,
                cwd=self._folder,
                env=self._environment(tools),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        end = time.monotonic() + SECONDS
        with contextlib.ExitStack() as stack:
            stack.callback(_end, process)
            while process.poll() is None or running:
                if time.monotonic() > end:
                    for child, _, _ in running:
                        child.send(signal.SIGKILL)
                    _end(process)
                    failed.append(f"the block: not at its end after {SECONDS} s")
                    break
                if select.select([listener], [], [], 0.02)[0]:
                    connection = stack.enter_context(listener.accept()[0])
                    request = json.loads(connection.makefile().readline())
                    shown = " ".join(request["words"])
                    try:
                        child = self._start(request, str(tools / "python"))
                    except parsing.Refused as refused:
                        failed.append(f"{shown}: {refused}")
                        _answer(connection, 2, f"{refused}\n")
                        continue
                    if child is None:  # looked at, and no more; a script runs, in the real shell
                        name, *rest = request["words"]
                        own = name == "sh" and not {*rest} & {*RUN_BY_CI}
                        _answer(connection, None if own else 0)
                    else:
                        running.append((child, connection, shown))
                for entry in [one for one in running if one[0].poll() is not None]:
                    running.remove(entry)
                    child, connection, shown = entry
                    code = child.wait()
                    if code:
                        failed.append(f"{shown}: exit code {code}")
                    _answer(connection, code)
        if process.returncode and not failed:
            failed.append(f"the block: exit code {process.returncode}")
        return Result(failed, path.read_text(errors="replace"))

    def _start(self, request: dict, python: str) -> Child | None:
        """Forks for a request; None where a command is none of the package's.

        Raises:
          Refused: what the documents may not say.
        """
        words = request["words"]
        if words[0] in ("sh", "pip", "pytest") or words[1:3] in (["-m", "pip"], ["-m", "pytest"]):
            parsing.check(Command(1, tuple(words)))
            return None
        if words[1:2] == ["-m"] and words[2].startswith(("jax_mdlm.", "benchmarks.")):
            with contextlib.chdir(request["folder"]):
                end = shorter(words[2].removeprefix("jax_mdlm."), words[3:], self._home / "data")
            words = [*words[1:], *end]
        else:
            words = words[1:]
        streams = [Path(f"/proc/{request['pid']}/fd/{number}") for number in range(3)]
        return self._forks.run(
            words,
            (streams[0], streams[1], streams[2]),
            request["env"],
            Path(request["folder"]),
            executable=python,
        )

    def _environment(self, tools: Path) -> dict[str, str]:
        """One device, and compilation that does not optimise: the runs are short. No network."""
        flags = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
        return os.environ | {
            "PATH": f"{tools}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self._home),
            "XLA_FLAGS": flags,
            "http_proxy": "http://127.0.0.1:9",  # where nobody listens
            "https_proxy": "http://127.0.0.1:9",
            "no_proxy": "127.0.0.1,localhost",
            "DOCUMENT_SOCKET": str(tools / "socket"),
        }


def shorter(command: str, argv: Sequence[str], data: Path) -> list[str]:
    """What is put behind a command's words."""
    words = (command, *argv)
    found = next((end for begin, end in SHORTER.items() if words[: len(begin)] == begin), ())
    names: list[str] = []
    if "{runs}" in found:
        names = [*load_function(parsing.parse(command, argv).arguments.runs, "get_runs")()]
    return [word.format(data=data, runs=",".join(names[:2])) for word in found]


def _answer(connection: socket.socket, code: int | None, error: str = "") -> None:
    reply = {} if code is None else {"code": code, "error": error}
    with contextlib.suppress(OSError):  # whoever asked was killed
        connection.sendall(json.dumps(reply).encode() + b"\n")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a block's shell and what it started itself."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
