"""How a run ends before its last step: it is asked to stop, or another process is lost.

A collective whose partner has died may wait in C++ for ever, where no Python exception reaches it.
So a thread of each process writes a sign of life to the coordination service of `jax.distributed`;
the first process reads them all, names those that stopped, and everybody leaves with
`command.AGAIN` and one line, in less than a minute: start the run again, on as many processes as
there are.

Two cases end otherwise: where the first process dies, the service dies with it, and JAX's client
aborts the others at once (exit code 134); and a process that is gone before it gave a first sign is
found by JAX's own, slower heartbeat (134 as well), between half a minute and a minute. JAX's Python
callback for lost peers crashes in jaxlib 0.10 (`std::bad_cast`).

Signals are read by a thread: Python's handlers wait until the main thread is back from C++, so that
a second Ctrl-C during a compilation would do nothing.
"""

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NoReturn

import jax
from jax._src import distributed  # the client of the coordination service has no public name
from jax.experimental import multihost_utils

from jax_mdlm import command

EVERY = 1.0  # seconds between two signs of life
# Seconds without one. Python's lock is held for seconds at most, while a program is serialised.
# JAX's own heartbeat comes every command.HEARTBEAT_SECONDS / 2, and a loss is found between one
# half and the whole of that: after this limit, so that it is our line that is read.
LIMIT = 20.0

_BEATS = "jax_mdlm/alive/"
_LOST = "jax_mdlm/lost/"
_SAME_SECONDS = 2.0


class Stop:
    """Turns SIGTERM and SIGINT into a request that the loop answers between two steps.

    A second signal ends the process at once, whatever it is doing: signals are read by a thread,
    since a handler of Python's waits until the main thread comes back from C++ (a compilation, a
    collective). What was saved before stays. A SIGTERM within two seconds of the first is not a
    second one: a machine that shuts down signals every process, the launcher and what it launched,
    and the launcher passes its own on.

    With several processes SIGTERM belongs to the preemption service of `jax.distributed`, which
    makes all of them stop at the same step; a second one ends a process once it has begun to stop.
    A SIGINT is passed on as a SIGTERM: one process that stops by itself leaves the others in a
    collective.
    """

    def __init__(self) -> None:
        self._asked = False  # of this process
        self._since = 0.0
        self._agreed = False  # between all processes
        self._several = jax.process_count() > 1

    def __enter__(self) -> "Stop":
        """Installs the handlers."""
        self._signals, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._old_wake = signal.set_wakeup_fd(self._wake.fileno())
        wanted = [signal.SIGINT] if self._several else [signal.SIGINT, signal.SIGTERM]
        self._old = {number: signal.signal(number, _nothing) for number in wanted}
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Puts the old handlers back."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wake)
        self._wake.close()

    def requested(self, step: int) -> bool:
        """Whether to stop before `step`; the same answer in every process."""
        if not self._several:
            return self._asked
        if multihost_utils.reached_preemption_sync_point(step):
            self._agreed, self._asked, self._since = True, True, time.monotonic()
            self._old[signal.SIGTERM] = signal.SIG_DFL
            signal.signal(signal.SIGTERM, _nothing)
        return self._agreed

    def _listen(self) -> None:
        with self._signals:
            while number := self._signals.recv(1):
                if number[0] not in (signal.SIGINT, signal.SIGTERM):
                    continue
                if self._asked:
                    same = time.monotonic() - self._since < _SAME_SECONDS
                    if same and number[0] == signal.SIGTERM:
                        continue
                    print("ended by a second signal", file=sys.stderr, flush=True)
                    os._exit(128 + number[0])
                self._asked, self._since = True, time.monotonic()
                if self._several:
                    os.kill(os.getpid(), signal.SIGTERM)


class Beats:
    """Who has stopped giving signs of life; pure bookkeeping."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._seen: dict[int, tuple[str, float]] = {}

    def lost(self, now: float, beats: Mapping[int, str]) -> list[int]:
        """Processes whose sign has not changed for longer than the limit.

        Args:
          now: Seconds of the reader's own clock: the hosts' clocks need not agree.
          beats: The newest sign per process. One that signed off, or has not begun, is missing.
        """
        kept = {}
        for process, beat in beats.items():
            old, since = self._seen.get(process, ("", now))
            kept[process] = (beat, since if beat == old else now)
        self._seen = kept
        return sorted(p for p, (_, since) in kept.items() if now - since > self._limit)


class Peers:
    """Watches the other processes while the block runs; does nothing where there is one process."""

    def __init__(
        self,
        *,
        every: float = EVERY,
        limit: float = LIMIT,
        leave: Callable[[str], Any] | None = None,
    ) -> None:
        self._every, self._limit = every, limit
        self._leave = leave or _leave
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Peers":
        """Starts the thread."""
        self._client: Any = distributed.global_state.client
        if self._client is not None and jax.process_count() > 1:
            self._own = f"{_BEATS}{jax.process_index()}"
            self._thread = threading.Thread(target=self._run, name="peers", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Signs off after a good end; after a bad one the thread goes on until the process ends."""
        if self._thread is None:
            return
        if kind is None:
            self._over.set()
            self._thread.join()
            self._client.key_value_delete(self._own)
        elif _of_a_collective(error):
            # The thread will know whose partner it was.
            text = " ".join(str(error).split())[:200]
            print(f"{text}; looking for a lost process", file=sys.stderr, flush=True)
            self._thread.join(self._limit + 10 * self._every)

    def _run(self) -> None:
        first, beats, number = jax.process_index() == 0, Beats(self._limit), 0
        reached = time.monotonic()
        while not self._over.wait(self._every):
            number += 1
            try:
                self._client.key_value_set(self._own, str(number), allow_overwrite=True)
                lost = [int(p) for p in self._read(_LOST)]
                if first and not lost:
                    found = {int(p): beat for p, beat in self._read(_BEATS).items()}
                    lost = beats.lost(time.monotonic(), found)
                    for process in lost:
                        self._client.key_value_set(f"{_LOST}{process}", "")
                reached = time.monotonic()
            except jax.errors.JaxRuntimeError:
                lost = [0] if time.monotonic() - reached > self._limit else []
            if lost:
                if first:
                    time.sleep(3 * self._every)  # the service lives here: the others read first
                self._leave(self._line(lost))
                return

    def _read(self, folder: str) -> dict[str, str]:
        found = self._client.key_value_dir_get(folder)
        return {key.rsplit("/", 1)[1]: value for key, value in found}

    def _line(self, lost: list[int]) -> str:
        names = ", ".join(map(str, lost))
        return (
            f"process {names} of {jax.process_count()} was lost (no sign of life for "
            f"{self._limit:.0f} s); start the command again on all hosts, it resumes from the "
            "newest checkpoint"
        )


def _nothing(*_: object) -> None:
    """A handler must be there for the signal to reach the thread."""


def _of_a_collective(error: BaseException | None) -> bool:
    """Whether this is most likely the end of a collective whose partner has died.

    Such errors begin with the name of a status. A program's own are `JaxRuntimeError`; the
    dispatch of a new one raises it as ValueError, e.g. where Orbax waits before a save.
    """
    text = str(error)
    status = isinstance(error, ValueError) and re.match(r"[A-Z_]+: ", text)
    return bool(isinstance(error, jax.errors.JaxRuntimeError) or status) and "EXHAUSTED" not in text


def _leave(line: str) -> NoReturn:
    # Not sys.exit: the main thread may be in a collective, and would be waited for.
    print(f"error: {line}", file=sys.stderr, flush=True)
    os._exit(command.AGAIN)
