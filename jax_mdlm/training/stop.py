"""How a run is asked to stop."""

import os
import signal
import socket
import sys
import threading
import time

import jax
from jax.experimental import multihost_utils

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


def _nothing(*_: object) -> None:
    """A handler must be there for the signal to reach the thread."""
