"""Several processes: the same rows and losses as one, signals, and lost peers.

The batches, the saved state and the losses must not depend on how many processes hold the devices.
"""

import re
import signal
import time
from pathlib import Path

import pytest

from jax_mdlm.command import AGAIN
from tests.training.forks import Child, Forks
from tests.training.runs import (
    losses,
    start,
    start_group,
    steps_saved,
    wait_for_step,
    wait_until,
)

pytestmark = pytest.mark.slow

# The rate is small: what rounding differs by between meshes does not grow with the steps.
SMALL = ("--config.optimizer.learning_rate=1e-4", "--config.optimizer.final_learning_rate=1e-4")
ABORTED = -signal.SIGABRT  # by JAX's own client, where the first process is gone
WITHIN = 60  # seconds from the loss of a process to the end of the others


def test_two_processes_train_save_and_resume(
    forks: Forks, config_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """SIGTERM to one stops both at the same step; the losses are those of one process."""
    workdir = tmp_path / "run"
    words = ("--config.train.steps=40", "--config.train.evaluate_every=0")
    pair = start_group(forks, config_file, workdir, *words, processes=2, devices=1)
    wait_for_step(pair[0], workdir, 8)
    pair[1].send(signal.SIGTERM)
    first, _ = (child.finish() for child in pair)
    stopped = re.search(r"saved at step (\d+)", first)
    assert stopped, first
    assert int(stopped[1]) < 40
    assert steps_saved(workdir)[-1] == int(stopped[1])
    for child in start_group(forks, config_file, workdir, *words, processes=2, devices=1):
        child.finish()
    alone, spread = losses(undisturbed), losses(workdir)
    assert max(spread) == 40
    # The rate is the same until step 36.
    for step in (2, 4, 6):
        assert spread[step] == pytest.approx(alone[step], rel=1e-5)
    resumed = min(step for step in spread if step > int(stopped[1]) and step < 36)
    assert spread[resumed] == pytest.approx(alone[resumed], rel=1e-3), "rounding grows with steps"


def test_two_processes_decode_together_and_one_writes(
    forks: Forks, config_file: Path, tmp_path: Path
) -> None:
    """What is decoded at an evaluation does not depend on the processes, and stands there once."""
    words = ("--config.train.steps=2", "--config.train.decode_rows=4")
    one, two = tmp_path / "one", tmp_path / "two"
    start(forks, config_file, one, *words).finish()
    for child in start_group(forks, config_file, two, *words, processes=2, devices=1):
        child.finish()
    rows = [(path / "samples.jsonl").read_text().splitlines() for path in (one, two)]
    assert len(rows[0]) == 4
    assert rows[0] == rows[1]


@pytest.fixture(scope="session")
def alone(forks: Forks, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten steps of one process on one device, with the small rate."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    words = (*SMALL, "--config.train.steps=10", "--config.train.evaluate_every=0")
    start(forks, config_file, workdir, *words).finish()
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "mesh"),
    [
        (2, 1, {"fsdp": 2}),
        (2, 1, {"fsdp": 1, "tensor": 2}),  # both processes hold every row
        (2, 2, {"data": 2, "tensor": 2}),
        (4, 1, {"fsdp": 2, "tensor": 2}),  # two pairs hold the same rows
        (4, 2, {"data": 2, "fsdp": 2, "tensor": 2}),
    ],
    ids=str,
)
def test_losses_do_not_depend_on_processes_and_mesh(
    forks: Forks,
    config_file: Path,
    alone: Path,
    tmp_path: Path,
    processes: int,
    devices: int,
    mesh: dict[str, int],
) -> None:
    words = [*SMALL, "--config.train.steps=10", "--config.train.evaluate_every=0"]
    words += [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
    workdir = tmp_path / "run"
    for child in start_group(
        forks, config_file, workdir, *words, processes=processes, devices=devices
    ):
        child.finish()
    expected = losses(alone)
    found = losses(workdir)
    assert len(found) == 10
    for step, loss in found.items():
        assert loss == pytest.approx(expected[step], rel=1e-5), step


def in_steps(child: Child, workdir: Path) -> None:
    """Between two saves."""
    wait_for_step(child, workdir, 14)


def in_a_save(child: Child, workdir: Path) -> None:
    """While the folder of a checkpoint has not got its name yet."""
    wait_for_step(child, workdir, 11)
    folder = workdir / "checkpoints"
    wait_until(child, lambda: any("tmp" in path.name for path in folder.iterdir()))


def in_an_evaluation(child: Child, workdir: Path) -> None:
    """The first one, which compiles."""
    wait_for_step(child, workdir, 12)
    time.sleep(0.2)


def ends_of_the_rest(rest: list[Child], code: int, line: str) -> float:
    """Waits until all have ended with this code and line; the seconds that it took."""
    began = time.monotonic()
    for child in rest:
        found = child.wait(WITHIN)
        assert found == code, f"exit code {found}: {child.text()[-3000:]}"
        assert re.search(line, child.text()), child.text()[-3000:]
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "victim", "when", "evaluate", "restart"),
    [
        (2, 1, in_steps, 0, 4),
        (2, 0, in_steps, 0, 1),
        (4, 2, in_a_save, 0, 2),
        (4, 3, in_an_evaluation, 12, 1),
        (4, 0, in_a_save, 0, 2),
    ],
)
def test_a_lost_process_ends_the_others_and_another_number_goes_on(
    forks: Forks,
    config_file: Path,
    tmp_path: Path,
    processes: int,
    victim: int,
    when,
    evaluate: int,
    restart: int,
) -> None:
    """Train, evaluate, save, SIGKILL, restart: the losses are those of an undisturbed run."""
    words = [*SMALL, "--config.train.steps=24", "--config.train.save_every=5"]
    words += [f"--config.train.evaluate_every={evaluate}"]
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    start(forks, config_file, whole, *words, devices=4).finish()
    group = start_group(
        forks, config_file, workdir, *words, processes=processes, devices=4 // processes
    )
    when(group[0], workdir)
    group[victim].send(signal.SIGKILL)
    assert group[victim].wait() == -signal.SIGKILL
    rest = [child for child in group if child is not group[victim]]
    if victim:
        seconds = ends_of_the_rest(rest, AGAIN, rf"error: process {victim} of {processes} was lost")
    else:
        seconds = ends_of_the_rest(rest, ABORTED, "another task died")
    print(f"{processes} processes, {victim} lost {when.__name__}: the rest gone in {seconds:.1f} s")
    assert seconds < WITHIN

    assert steps_saved(workdir), "a checkpoint was there before"
    if restart == 1:
        start(forks, config_file, workdir, *words, devices=4).finish()
    else:
        for child in start_group(
            forks, config_file, workdir, *words, processes=restart, devices=4 // restart
        ):
            child.finish()
    expected, found = losses(whole), losses(workdir)
    assert max(found) == 24
    for step, loss in found.items():
        assert loss == pytest.approx(expected[step], rel=1e-5), step


@pytest.mark.slow
def test_a_second_interrupt_of_one_process_ends_the_others(
    forks: Forks, config_file: Path, tmp_path: Path
) -> None:
    """One process leaves at once, without the others: they say so, nobody hangs."""
    workdir = tmp_path / "run"
    words = ("--config.train.save_every=1000000", "--config.train.steps=100000")
    words += ("--config.train.evaluate_every=0",)
    pair = start_group(forks, config_file, workdir, *words, processes=2, devices=1)
    wait_for_step(pair[0], workdir, 4)
    pair[0].send(signal.SIGSTOP)  # or the two may have agreed, saved and ended before the second
    pair[1].send(signal.SIGINT)
    time.sleep(0.5)  # two signals at once are one
    pair[1].send(signal.SIGINT)  # without the others
    pair[0].send(signal.SIGCONT)
    assert pair[1].wait(20) == 128 + signal.SIGINT, pair[1].text()
    assert "ended by a second signal" in pair[1].text()
    ends_of_the_rest(pair[:1], AGAIN, "error: process 1 of 2 was lost")
