"""The console of a run: a progress bar with the time that is left, and a line per report."""

from collections.abc import Mapping

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

# What a line shows, in this order, where it is there; the JSONL file has everything.
_SHOWN_IN_TRAINING = (
    "loss",
    "ce",
    "ctc",
    "accuracy",
    "slack_predicted",
    "infeasible",
    "grad_norm",
    "learning_rate",
    "tokens_per_second",
    "mfu",
)


class Progress:
    """A bar on a terminal, plain lines elsewhere; silent where `active` is false."""

    def __init__(self, total: int, *, start: int = 0, unit: str = "step", active: bool = True):
        self._active = active
        self._console = Console(stderr=True, highlight=False)
        self._bar = RichProgress(
            TextColumn(unit),
            MofNCompleteColumn(),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (active and self._console.is_terminal),
        )
        self._task = self._bar.add_task(unit, total=total, completed=start)

    def __enter__(self) -> "Progress":
        """Shows the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the bar as it stands."""
        self._bar.stop()

    def advance(self, done: int) -> None:
        """Moves the bar to `done`."""
        self._bar.update(self._task, completed=done)

    def line(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Prints a report above the bar."""
        training = group == "train"
        names = [name for name in _SHOWN_IN_TRAINING if name in values] if training else values
        shown = [f"{name} {_short(values[name])}" for name in names]
        self.note("  ".join([f"step {step}", *([] if training else [group]), *shown]))

    def note(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._active:
            self._console.print(text, soft_wrap=True)


class ByteProgress:
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

    def __enter__(self) -> "ByteProgress":
        """Shows the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the bar as it stands."""
        self._bar.stop()

    def add(self, num_bytes: int) -> None:
        """Moves the bar on."""
        self._bar.advance(self._task, num_bytes)


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
