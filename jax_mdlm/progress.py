"""The console of a run: how far it is, what is left, and a line per report.

On a terminal a bar moves. Elsewhere, in a log, lines say the same: those of the reports, and where
none came for a while, one of how many are done.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress

# Seconds between two lines of progress in a log; later a tenth of the time that has passed, so that
# an hour has 50 of them.
_QUIET_SECONDS = 10.0


class _Shown:
    """What has a bar on the screen while it is entered."""

    _bar: RichProgress

    def __enter__(self) -> Self:
        """Shows the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the bar as it stands."""
        self._bar.stop()


class Progress(_Shown):
    """A bar on a terminal, plain lines elsewhere; silent where `active` is false.

    Args:
      total: How many there are.
      start: How many were done before.
      unit: What is counted, one of it.
      active: Whether this process speaks.
      clock: Seconds.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        unit: str = "step",
        active: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._unit, self._active, self._clock = total, unit, active, clock
        self._console = Console(stderr=True, highlight=False)
        self._in_log = active and not self._console.is_terminal
        self._began = self._spoken = clock()
        # When the first was done, and its number: what is compiled before it is no one's pace.
        self._first: tuple[float, int] | None = None
        self._bar = RichProgress(
            TextColumn(unit),
            MofNCompleteColumn(),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not active or self._in_log,
        )
        self._task = self._bar.add_task(unit, total=total, completed=start)

    def advance(self, done: int) -> None:
        """Moves the bar to `done`; in a log, says so where it has been quiet for long."""
        self._bar.update(self._task, completed=done)
        now = self._clock()
        if self._first is None:
            self._first = now, done
        quiet = max(_QUIET_SECONDS, (now - self._began) / 10)
        since, first = self._first
        if self._in_log and now - self._spoken >= quiet and first < done < self._total:
            seconds = (now - since) / (done - first)
            self.note("  ".join([f"{self._unit} {self._of(done)}", *self._pace(done, seconds)]))

    def line(
        self,
        step: int,
        group: str,
        values: Mapping[str, float],
        names: Sequence[str] | None = None,
    ) -> None:
        """Prints a report above the bar; one of training with its pace and what is left.

        Args:
          step: That it is of.
          group: Of the values; "train" is not said.
          values: Numbers by name.
          names: What is shown of them, in this order, where it is there; None = all.
        """
        training = group == "train"
        names = list(values) if names is None else names
        shown = [f"{name} {_short(values[name])}" for name in names if name in values]
        rate = values.get("steps_per_second", 0.0) if training else 0.0
        pace = self._pace(step, 1 / rate if rate else 0.0)
        head = [f"{self._unit} {self._of(step)}", *([] if training else [group])]
        self.note("  ".join([*head, *shown, *pace]))

    def note(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._active:
            self._spoken = self._clock()
            self._console.print(text, soft_wrap=True, markup=False, emoji=False)

    def _of(self, done: int) -> str:
        return f"{done:,}/{self._total:,}"

    def _pace(self, done: int, seconds: float) -> list[str]:
        """Seconds of one and time that is left; nothing where the pace is not known yet."""
        if not seconds:
            return []
        shown = f"{seconds:.2g}" if seconds < 10 else f"{seconds:,.0f}"
        pace = [f"{shown} s a {self._unit}"]
        if done < self._total:
            pace.append(f"{duration((self._total - done) * seconds)} left")
        return pace


def duration(seconds: float) -> str:
    """A time as one says it: `40 s`, `6 min`, `7.2 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 99.5 * 3600 else f"{seconds / 86400:.1f} days"


class ByteProgress(_Shown):
    """A bar of bytes on a terminal; nothing elsewhere. `add` may be called from any thread."""

    def __init__(self, total: int | None, *, active: bool = True):
        console = Console(stderr=True)
        self._bar = RichProgress(
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not (active and console.is_terminal),
        )
        self._task = self._bar.add_task("bytes", total=total)

    def add(self, num_bytes: int) -> None:
        """Moves the bar on."""
        self._bar.advance(self._task, num_bytes)


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
