"""The commands that a sweep runs: processes with their cores and logs, stopped when it is."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from jax_mdlm.config import ConfigError


class Children:
    """Runs commands of this package, several at a time from several threads."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._lock = threading.Lock()

    @contextmanager
    def until_stopped(self) -> Iterator[None]:
        """A stop of this block, by SIGTERM too, is passed on: `train` saves and ends.

        After an error what runs goes on to its end; nothing is started any more.
        """

        def leave(number: int, frame: object) -> None:
            raise SystemExit(128 + number)

        old = signal.signal(signal.SIGTERM, leave)
        try:
            yield
        except Exception:
            with self._lock:
                self._stopped = True
            raise
        except BaseException:
            self.stop()
            raise
        finally:
            signal.signal(signal.SIGTERM, old)

    def stop(self) -> None:
        """Asks all that run to end, and starts no more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()

    def call(self, name: str, words: Sequence[str], place: set[int], log: Path | None) -> None:
        """Runs `python -m jax_mdlm.<name>` to its end.

        Args:
          name: Of the command.
          words: Its arguments.
          place: Cores it may use; empty = all.
          log: Where its output is appended to; None = that of this process.

        Raises:
          ConfigError: it failed, which passes on the last line that it said; or all was stopped.
        """
        line = [sys.executable, "-m", f"jax_mdlm.{name}", *words]
        if log is None:
            code = self._run(line, dict(os.environ), place, None)
        else:
            log.parent.mkdir(parents=True, exist_ok=True)
            cache = str(log.absolute().parent / "compilation_cache")
            environment = {"JAX_COMPILATION_CACHE_DIR": cache} | os.environ
            with open(log, "a") as out:
                code = self._run(line, environment, place, out)
        if code:
            last = "" if log is None else log.read_text().strip().rpartition("\n")[2]
            raise ConfigError(f"{' '.join(line[1:])} must end well, it ended with {code}: {last}")

    def _run(
        self, line: list[str], environment: dict[str, str], place: set[int], out: IO[str] | None
    ) -> int:
        with self._lock:
            if self._stopped:
                raise ConfigError("the sweep was stopped; the same command goes on")
            errors = None if out is None else subprocess.STDOUT
            process = subprocess.Popen(line, env=environment, stdout=out, stderr=errors)
            self._running.add(process)
        if place and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, place)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)


def cores_of(number: int, jobs: int) -> set[int]:
    """The cores of one of several jobs; all of them where they are fewer, or cannot be set."""
    if not hasattr(os, "sched_getaffinity"):
        return set()
    cores = sorted(os.sched_getaffinity(0))
    return set(cores[number::jobs]) or set(cores)
