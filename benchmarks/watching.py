"""Commands run as processes of their own, their memory sampled from /proc (Linux).

Three figures of memory: RSS counts everything that is resident, pages of mapped files included,
which the kernel takes back when it needs them; the high-water mark (VmHWM) is the kernel's own peak
of it; anonymous memory (RssAnon) is what nobody can take back, and what ends in a kill.
"""

import dataclasses
import math
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

_KINDS = {"rss": "VmRSS", "high_water": "VmHWM", "anonymous": "RssAnon"}


@dataclasses.dataclass(frozen=True)
class Run:
    """A command that has ended.

    Attributes:
      code: Its exit code; negative: the signal that ended it.
      out: What it wrote to stdout.
      errors: What it wrote to stderr.
      began: When it was started, seconds of `time.monotonic`, which all processes share.
      seconds: Until it ended.
      samples: (seconds of `time.monotonic`, bytes by kind of memory), of it and its descendants.
    """

    code: int
    out: str
    errors: str
    began: float
    seconds: float
    samples: list[tuple[float, dict[str, int]]] = dataclasses.field(repr=False)

    def peak(self, kind: str, until: float = math.inf) -> int:
        """Gives the most bytes of a kind (`rss`, `high_water`, `anonymous`) up to a moment."""
        return max((size[kind] for moment, size in self.samples if moment <= until), default=0)

    @property
    def last_error(self) -> str:
        """Is the last line of stderr, which says why a command of ours has failed."""
        return (self.errors.strip().splitlines() or [""])[-1]


def watch(words: Sequence[str], every: float = 0.05) -> Run:
    """Runs a command to its end.

    Args:
      words: Of the command.
      every: Seconds between two samples.
    """
    samples: list[tuple[float, dict[str, int]]] = []
    began = time.monotonic()
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        ended = threading.Event()
        watcher = threading.Thread(target=_sample, args=(process.pid, every, ended, samples))
        watcher.start()
        try:
            out, errors = process.communicate()
        except BaseException:  # interrupted: it must not go on alone
            process.kill()
            raise
        finally:
            seconds = time.monotonic() - began
            ended.set()
            watcher.join()
    return Run(process.returncode, out, errors, began, seconds, samples)


def _sample(
    pid: int, every: float, ended: threading.Event, samples: list[tuple[float, dict[str, int]]]
) -> None:
    while not ended.wait(every):
        sizes = [_memory(one) for one in _tree(pid)]
        total = {kind: sum(size.get(kind, 0) for size in sizes) for kind in _KINDS}
        samples.append((time.monotonic(), total))


def _tree(pid: int) -> list[int]:
    """Lists a process and all that it and its children have started."""
    found = [pid]
    for parent in found:  # grows while it is read
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:  # has ended meanwhile
                continue
    return found


def _memory(pid: int) -> dict[str, int]:
    """Reads the bytes of a process by kind; nothing where it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    found = {kind: re.search(rf"{name}:\s+(\d+) kB", text) for kind, name in _KINDS.items()}
    return {kind: 1024 * int(match[1]) for kind, match in found.items() if match}
