"""Where the time of a run goes: steps, and everything that is not steps.

Pure bookkeeping over a clock that is passed in. Only what the host waits for counts: an
asynchronous save is counted while it copies, not while it writes.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

# What the time is spent on. `start` is everything before the first step (data, restore, begin);
# `compile` the calls that trace and compile a step; `save` the blocking part of saves.
Phase = Literal["start", "compile", "steps", "data", "evaluate", "save"]
PHASES: tuple[Phase, ...] = ("start", "compile", "steps", "data", "evaluate", "save")


class Goodput:
    """A stopwatch that is always in one phase; begins in `start`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._phase: Phase = "start"
        self._since = clock()
        self._seconds = dict.fromkeys(PHASES, 0.0)

    def enter(self, phase: Phase) -> Phase:
        """Goes on in another phase; the one that ended."""
        now, old = self._clock(), self._phase
        self._seconds[old] += now - self._since
        self._phase, self._since = phase, now
        return old

    @contextlib.contextmanager
    def doing(self, phase: Phase) -> Iterator[None]:
        """A phase within another, which goes on behind it."""
        old = self.enter(phase)
        try:
            yield
        finally:
            self.enter(old)

    def report(self) -> dict[str, float]:
        """`seconds` since the beginning, `goodput` (the share of steps), seconds per phase."""
        self.enter(self._phase)
        total = sum(self._seconds.values())
        share = self._seconds["steps"] / total if total else 0.0
        parts = {f"{phase}_seconds": seconds for phase, seconds in self._seconds.items()}
        return {"seconds": total, "goodput": share, **parts}


def line(values: dict[str, float]) -> str:
    """The report in one line, with shares."""
    total = max(values["seconds"], 1e-9)
    shares = [f"{phase} {values[f'{phase}_seconds'] / total:.1%}" for phase in PHASES]
    lost = f", {values['lost_steps']:.0f} steps made again" if values.get("lost_steps") else ""
    return f"goodput {values['goodput']:.1%} of {total:,.0f} s ({', '.join(shares)}{lost})"
