"""Processes of the commands, cheap to start and real to kill.

Importing JAX and the package costs seconds of processor time, much more than the runs of these
tests. So one process (this module's `main`) imports them, starts no backend and no thread, and
forks for every run that it is asked for: the child is a process of its own that runs the command
as `python -m` does, with its own backend, and dies of a signal like any other.
"""

import contextlib
import fcntl
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


class Child:
    """A run of the command.

    Attributes:
      pid: Its process id.
      log: The file that holds what it printed.
    """

    def __init__(self, forks: "Forks", pid: int, log: Path):
        self._forks, self.pid, self.log = forks, pid, log

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        self._forks.read(0)
        return self._forks.codes.get(self.pid)

    def wait(self, timeout: float = 300) -> int:
        """Waits for the end; the exit code."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.send(signal.SIGABRT)
                raise AssertionError(f"still running after {timeout} s: {self.text()[-3000:]}")
            self._forks.read(0.05)
        return code

    def finish(self, timeout: float = 300) -> str:
        """Waits for an end that must be good; what was printed."""
        code = self.wait(timeout)
        assert code == 0, f"exit code {code}: {self.text()[-3000:]}"
        return self.text()

    def send(self, number: int) -> None:
        """Sends a signal, to a process that runs or has just ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def text(self) -> str:
        """What was printed until now."""
        return self.log.read_text(errors="replace")


class Crowd:
    """One large group of processes at a time, in all workers of pytest.

    Processes that compile side by side on few cores end apart, and the first collective of XLA's
    CPU backend waits no more than 30 seconds for the last of them.
    """

    def __init__(self) -> None:
        self._file = (Path(tempfile.gettempdir()) / "jax_mdlm_tests.lock").open("a")
        self._running: set[int] = set()

    def enter(self, patience: float = 300) -> None:
        """Waits until no other worker has a group; goes on after that many seconds anyway."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(0.1)

    def came(self, pids: Iterable[int]) -> None:
        """Processes of the group that has entered."""
        self._running |= set(pids)

    def left(self, pid: int) -> None:
        """A process has ended; with the last one the next group may enter."""
        if pid in self._running:
            self._running.remove(pid)
            if not self._running:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Gives up the place."""
        self._file.close()


class Forks:
    """The forking process, seen from the tests.

    Args:
      imports: Modules that the children find imported.
    """

    def __init__(self, *imports: str) -> None:
        environment = os.environ | {
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "OPENBLAS_NUM_THREADS": "1",  # NumPy and SciPy start theirs while they are imported
        }
        self._server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.training.forks",
                *(imports or ["jax_mdlm.training.run", "grain"]),
            ],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.codes: dict[int, int] = {}
        self.crowd = Crowd()
        self._begun: list[int] = []
        self._rest = b""

    def start(self, log: Path, *argv: str, **env: str) -> Child:
        """Runs `python -m jax_mdlm.train ARGV` in a new process."""
        log.touch()  # it is looked at before the child has opened it
        streams = (Path(os.devnull), log, log)
        return self.run(["-m", "jax_mdlm.train", *argv], streams, env, ROOT)

    def run(
        self,
        words: Sequence[str],
        streams: tuple[Path, Path, Path],
        env: Mapping[str, str],
        folder: Path,
        *,
        executable: str = "",
    ) -> Child:
        """Runs `python WORDS` in a new process.

        Args:
          words: `-m MODULE`, `-c TEXT`, `-` or `FILE`, and arguments.
          streams: What it reads, prints, and prints for errors; the last two are appended to.
          env: Variables, beside those of this process; what JAX reads while it is imported has been
            read.
          folder: Where it runs.
          executable: What it takes for its Python, to start others with.
        """
        assert self._server.stdin is not None
        request = {
            "words": words,
            "streams": [str(path) for path in streams],
            "env": dict(env),
            "folder": str(folder),
            "executable": executable or sys.executable,
        }
        self._server.stdin.write(json.dumps(request).encode() + b"\n")
        count = len(self._begun)
        while len(self._begun) == count:
            self.read(1)
        return Child(self, self._begun[-1], streams[1])

    def read(self, timeout: float) -> None:
        """Takes in what the server says."""
        output = self._server.stdout
        assert output is not None
        if not select.select([output], [], [], timeout)[0]:
            return
        found = os.read(output.fileno(), 65536)
        assert found, "the forking process has ended"
        *lines, self._rest = (self._rest + found).split(b"\n")
        for line in lines:
            pid, code = json.loads(line)
            if code is None:
                self._begun.append(pid)
                self.codes.pop(pid, None)  # of an earlier process whose number came again
            else:
                self.codes[pid] = code
                self.crowd.left(pid)

    def close(self) -> None:
        """Ends what still runs."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)
        self.crowd.close()


@contextlib.contextmanager
def forking(*imports: str) -> Iterator[Forks]:
    """A server for a while."""
    forks = Forks(*imports)
    try:
        yield forks
    finally:
        forks.close()


def main() -> None:
    """Forks for every line of stdin, a request of `Forks.run`; prints `[pid, code or null]`."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) <= 2, "a fork would lose threads"
    running: set[int] = set()
    rest = b""
    while True:
        if select.select([0], [], [], 0.02)[0]:
            found = os.read(0, 65536)
            if not found:
                break
            *lines, rest = (rest + found).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    _become(request)
                    return
                running.add(pid)
                _say(pid, None)
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            running.discard(pid)
            _say(pid, os.waitstatus_to_exitcode(status))
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def _become(request: dict) -> None:
    """What a new process would have: its variables, folder and streams; then runs its command."""
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    sys.executable = request["executable"]
    for target, path in enumerate(request["streams"]):
        how = os.O_WRONLY | os.O_CREAT | os.O_APPEND if target else os.O_RDONLY
        os.dup2(os.open(path, how), target)
    first, *rest = request["words"]
    sys.path[0] = os.getcwd() if first.startswith("-") else str(Path(first).parent)
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first in ("-", "-c"):
        text = rest.pop(0) if first == "-c" else sys.stdin.read()
        sys.argv = [first, *rest]
        exec(text, {"__name__": "__main__"})
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


def _say(pid: int, code: int | None) -> None:
    os.write(1, json.dumps([pid, code]).encode() + b"\n")


if __name__ == "__main__":
    main()
