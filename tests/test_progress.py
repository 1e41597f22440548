"""What a log says of how far a run is: lines of reports, and of progress where it is quiet."""

import io
import itertools

import pytest
from rich.console import Console

from jax_mdlm.progress import Progress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def log(
    capsys: pytest.CaptureFixture[str], total: int, seconds: float, first: float = 0.0
) -> list[tuple[float, str]]:
    """(when, line) of a list whose first item takes longer."""
    clock = Clock()
    said = []
    with Progress(total, unit="row", clock=clock) as progress:
        for done in range(1, total + 1):
            clock.now += seconds + (first if done == 1 else 0)
            progress.advance(done)
            said += [(clock.now - 50, line) for line in capsys.readouterr().err.splitlines()]
    return said


def test_a_short_list_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert log(capsys, 90, 0.1) == []


def test_a_long_list_says_pace_and_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    """The first item is compiled; nobody's pace is that."""
    said = log(capsys, 2000, 0.5, first=30)
    assert said[0] == (31, "row 2/2,000  0.5 s a row  17 min left")
    assert said[1][1].startswith("row 22/2,000  0.5 s a row  16 min left")
    assert "row 2,000/2,000" not in {line for _, line in said}, "the command says how it ended"


def test_an_hour_has_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    said = log(capsys, 3600, 1)
    assert 30 < len(said) < 60
    gaps = [after - before for (before, _), (after, _) in itertools.pairwise(said)]
    assert min(gaps) >= 10
    assert gaps == sorted(gaps)


def test_a_report_says_step_of_total_pace_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(1900)
    values = {"loss": 7.214, "steps_per_second": 4.8, "tokens_per_second": 15410.0}
    shown = ("loss", "mfu", "tokens_per_second")
    progress.line(100, "train", values, shown)
    progress.line(100, "validation", {"ce": 1.5, "steps_per_second": 1.0})
    progress.line(1900, "train", values, shown)
    progress.line(1, "train", {"loss": 7.0})
    assert capsys.readouterr().err.splitlines() == [
        "step 100/1,900  loss 7.21  tokens_per_second 15,410  0.21 s a step  6 min left",
        "step 100/1,900  validation  ce 1.5  steps_per_second 1",
        "step 1,900/1,900  loss 7.21  tokens_per_second 15,410  0.21 s a step",
        "step 1/1,900  loss 7",
    ]


def test_reports_are_progress(capsys: pytest.CaptureFixture[str]) -> None:
    """Where a line came a moment ago, nothing else is said; slow steps are told between."""
    clock = Clock()
    progress = Progress(100, clock=clock)
    for step in range(1, 8):
        clock.now += 4
        progress.advance(step)
        if step % 2 == 0:
            progress.line(step, "train", {"loss": 1.0, "steps_per_second": 0.25}, ["loss"])
    assert [line.split("  ")[1] for line in capsys.readouterr().err.splitlines()] == ["loss 1"] * 3
    for step in (8, 9):
        clock.now += 22
        progress.advance(step)
    assert capsys.readouterr().err.splitlines()[-1] == "step 9/100  8.5 s a step  13 min left"


def test_only_the_first_process_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = Progress(100, active=False, clock=clock)
    for step in range(1, 50):
        clock.now += 60
        progress.advance(step)
    progress.note("compiling")
    assert capsys.readouterr().err == ""


def test_on_a_terminal_the_bar_moves_and_no_line_is_added(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        "jax_mdlm.progress.Console",
        lambda **_: Console(file=screen, force_terminal=True, width=100, color_system=None),
    )
    clock = Clock()
    with Progress(100, unit="row", clock=clock) as progress:
        for done in range(1, 50):
            clock.now += 60
            progress.advance(done)
    assert "49/100" in screen.getvalue()
    assert "s a row" not in screen.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (360, "6 min"),
        (99 * 60, "99 min"),
        (7.2 * 3600, "7.2 h"),
        (100 * 3600, "4.2 days"),
    ],
)
def test_a_time_as_one_says_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text
