"""The stopwatch, with a clock of its own."""

import contextlib

from jax_mdlm.training.timing import Goodput, goodput_line


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_second_is_in_one_phase() -> None:
    clock = Clock()
    watch = Goodput(clock)
    clock.now += 5  # data, restore
    watch.enter("steps")
    with watch.doing("compile"):
        clock.now += 10
    for _ in range(3):
        with watch.doing("data"):
            clock.now += 1
        clock.now += 20
    with watch.doing("evaluate"):
        clock.now += 4
        with watch.doing("save"):
            clock.now += 2
        clock.now += 3
    values = watch.report()
    assert values == {
        "seconds": 87,
        "goodput": 60 / 87,
        "start_seconds": 5,
        "compile_seconds": 10,
        "steps_seconds": 60,
        "data_seconds": 3,
        "evaluate_seconds": 7,
        "save_seconds": 2,
    }
    clock.now += 13
    assert watch.report()["steps_seconds"] == 73, "a report ends nothing"


def test_a_phase_ends_with_an_error_too() -> None:
    clock = Clock()
    watch = Goodput(clock)
    with contextlib.suppress(ZeroDivisionError), watch.doing("save"):
        clock.now += 1
        raise ZeroDivisionError
    clock.now += 2
    assert watch.report()["start_seconds"] == 2
    assert watch.report()["save_seconds"] == 1


def test_the_line() -> None:
    clock = Clock()
    watch = Goodput(clock)
    clock.now += 250
    watch.enter("steps")
    clock.now += 750
    shown = "goodput 75.0% of 1,000 s (start 25.0%, compile 0.0%, steps 75.0%, data 0.0%, "
    shown += "evaluate 0.0%, save 0.0%"
    assert goodput_line(watch.report()) == shown + ")"
    assert goodput_line(watch.report() | {"lost_steps": 7}) == shown + ", 7 steps made again)"
    assert goodput_line(Goodput(clock).report()).startswith("goodput 0.0% of 0 s")
