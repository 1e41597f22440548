"""SIGTERM at every part of a run: saved, exit code 0, resumed; a second one ends at once."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.forks import Child, Forks
from tests.training.runs import (
    losses,
    same_run,
    start,
    start_group,
    steps_saved,
    wait_for_step,
    wait_until,
)

LAST = 30
WORDS = (
    f"--config.train.steps={LAST}",
    "--config.train.save_every=4",
    "--config.train.evaluate_every=10",
)

UNCACHED = {"JAX_COMPILATION_CACHE_DIR": ""}  # the work directory's own, which is empty


def before_the_loop(child: Child, workdir: Path) -> None:
    """While data is read: nothing has begun."""
    wait_until(child, lambda: (workdir / "tokenizer").exists())


def compiling(child: Child, workdir: Path) -> None:
    wait_until(child, lambda: "compiling the step" in child.text())
    time.sleep(0.2)


def saving(child: Child, workdir: Path) -> None:
    folder = workdir / "checkpoints"
    wait_until(child, lambda: folder.exists() and any("tmp" in p.name for p in folder.iterdir()))


def evaluating(child: Child, workdir: Path) -> None:
    wait_for_step(child, workdir, 10)
    time.sleep(0.1)


@pytest.fixture(scope="session")
def whole(forks: Forks, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("whole") / "run"
    start(forks, config_file, workdir, *WORDS).finish()
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("when", [compiling, saving, evaluating])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_sigterm_saves_and_the_run_goes_on(
    forks: Forks, config_file: Path, whole: Path, tmp_path: Path, when, processes: int
) -> None:
    workdir = tmp_path / "run"

    def begin(**env: str) -> list[Child]:
        if processes == 1:
            return [start(forks, config_file, workdir, *WORDS, **env)]
        return start_group(
            forks, config_file, workdir, *WORDS, processes=processes, devices=1, **env
        )

    group = begin(**UNCACHED if when is compiling else {})
    when(group[0], workdir)
    for child in group[-1:] if when is saving else group:  # one of them, or all as on GKE
        child.send(signal.SIGTERM)
    texts = [child.finish() for child in group]
    stopped = re.search(r"stopped by a signal and saved at step (\d+)", texts[0])
    assert stopped, texts[0]
    assert steps_saved(workdir)[-1] == int(stopped[1])
    for child in begin():
        child.finish()
    if processes == 1:
        same_run(whole, workdir, LAST)
    else:
        assert max(losses(workdir)) == LAST


@pytest.mark.slow
def test_sigterm_before_the_loop_ends_at_once(
    forks: Forks, config_file: Path, tmp_path: Path
) -> None:
    """There is nothing to save; what a new run then finds is no obstacle."""
    workdir = tmp_path / "run"
    child = start(forks, config_file, workdir, *WORDS)
    before_the_loop(child, workdir)
    child.send(signal.SIGTERM)
    assert child.wait(30) in (-signal.SIGTERM, 0)
    start(forks, config_file, workdir, *WORDS).finish()
    assert steps_saved(workdir)[-1] == LAST


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(
    forks: Forks, config_file: Path, tmp_path: Path, first: int
) -> None:
    """While it compiles: Python's own handlers would wait until that is over."""
    workdir = tmp_path / "run"
    child = start(forks, config_file, workdir, *WORDS, **UNCACHED)
    compiling(child, workdir)
    child.send(first)
    time.sleep(0.1)
    child.send(signal.SIGINT)
    began = time.monotonic()
    assert child.wait(30) == 128 + signal.SIGINT
    assert time.monotonic() - began < 3
    assert child.text().endswith("ended by a second signal\n")
    assert steps_saved(workdir) == []


@pytest.mark.slow
def test_a_sigterm_is_passed_on_by_the_launcher_and_counts_once(
    forks: Forks, config_file: Path, tmp_path: Path
) -> None:
    child = start(forks, config_file, tmp_path / "run", *WORDS, **UNCACHED)
    compiling(child, tmp_path / "run")
    child.send(signal.SIGTERM)
    time.sleep(0.1)
    child.send(signal.SIGTERM)
    child.finish()
    assert steps_saved(tmp_path / "run")


def test_a_late_sigterm_is_a_second_one() -> None:
    script = """
import os, signal, time
from jax_mdlm.training.stop import Stop
with Stop() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2.2)
    assert stop.requested(0)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 128 + signal.SIGTERM
    assert ended.stderr.endswith("ended by a second signal\n")


def test_an_interrupted_process_goes_on_until_all_have_agreed() -> None:
    """It would leave the others in a collective; its SIGINT reaches them as a SIGTERM."""
    script = """
import os, signal, time
import jax
from jax.experimental import multihost_utils
from jax_mdlm.training.stop import Stop
jax.process_count = lambda: 2
multihost_utils.reached_preemption_sync_point = lambda step: step == 7
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append("SIGTERM"))
with Stop() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.5)
    print(heard, [stop.requested(step) for step in (5, 6, 7, 8)])
    os.kill(os.getpid(), signal.SIGTERM)  # a launcher passes its own on
    time.sleep(0.5)
    print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(20)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout == "['SIGTERM'] [False, False, True, True]\nstill here\n", ended.stderr
    assert ended.returncode == 128 + signal.SIGINT
