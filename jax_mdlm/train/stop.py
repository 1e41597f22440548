"""How a run is asked to stop."""

import signal

import jax
from jax.experimental import multihost_utils


class Stop:
    """Turns SIGTERM and SIGINT into a request that the loop answers between two steps.

    With several processes the preemption service of `jax.distributed` makes all of them stop at
    the same step; a second Ctrl-C ends the process at once.
    """

    def __init__(self) -> None:
        self._requested = False

    def __enter__(self) -> "Stop":
        """Installs the handlers."""
        wanted = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
        self._old = {number: signal.signal(number, self._note) for number in wanted}
        return self

    def __exit__(self, *_: object) -> None:
        """Puts the old handlers back."""
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> bool:
        """Whether to stop before `step`; the same answer in every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    def _note(self, number: int, _: object) -> None:
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)
        elif self._requested:
            raise KeyboardInterrupt
        self._requested = True
