"""Fifty SIGKILLs at random moments; the result is bitwise that of an undisturbed run.

Every attempt is a forked process (`forks`: JAX and the package are imported, no backend is started)
that runs the command from the first line of `main` on, so a kill hits start-up (arguments, data,
restore), compiling, steps, saves that are under way and the evaluation as it would hit them on a
pod; what is spared is Python's own importing. The moments are drawn from a seed, over the time
that the undisturbed run took; a quarter of them wait for a save to be under way first.
"""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.training.forks import Forks
from tests.training.runs import same_run, same_state, start, steps_saved

KILLS, LAST = 50, 60
SETTINGS = (
    f"--config.train.steps={LAST}",
    "--config.train.save_every=3",
    "--config.train.evaluate_every=30",
    "--config.train.keep_checkpoints=2",
    "--config.train.keep_every=30",
)


@pytest.mark.slow
def test_fifty_kills(forks: Forks, config_file: Path, tmp_path: Path) -> None:
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    start(forks, config_file, whole, *SETTINGS).finish()  # fills the compilation cache
    shutil.rmtree(whole)
    began = time.monotonic()
    start(forks, config_file, whole, *SETTINGS).finish()
    span = time.monotonic() - began

    draw = random.Random(0)
    kills, finished, in_a_save, begun_anew = 0, 0, 0, 0
    newest = 0
    while kills < KILLS:
        child = start(forks, config_file, workdir, *SETTINGS)
        moment = time.monotonic() + draw.uniform(0, 1.1 * span)
        wait_for_save = draw.random() < 0.25
        while child.poll() is None and time.monotonic() < moment:
            time.sleep(0.002)
        while wait_for_save and child.poll() is None and not under_way(workdir):
            time.sleep(0.0005)
        child.send(signal.SIGKILL)
        code = child.wait()
        assert "warning" not in child.text(), "every checkpoint that has its name is whole"
        assert code in (0, -signal.SIGKILL), child.text()
        saved = steps_saved(workdir)
        assert max(saved, default=0) >= newest, "a checkpoint was lost"
        newest = max(saved, default=0)
        kills += code != 0
        in_a_save += code != 0 and under_way(workdir)
        begun_anew += code != 0 and not saved
        if newest == LAST:  # a killed run may be complete too: it had only to end
            finished += 1
            if code == 0:
                same_run(whole, workdir, LAST)
            else:
                same_state(whole, workdir, LAST)
            shutil.rmtree(workdir)
            newest = 0
    start(forks, config_file, workdir, *SETTINGS).finish()
    same_run(whole, workdir, LAST)
    assert 30 in steps_saved(workdir), "keep_every"
    print(
        f"{kills} kills in {time.monotonic() - began:.0f} s ({span:.1f} s undisturbed): "
        f"{in_a_save} in a save, {begun_anew} before the first checkpoint, {finished} runs complete"
    )
    assert in_a_save >= 5
    assert begun_anew < KILLS / 2


def under_way(workdir: Path) -> bool:
    """Whether a checkpoint is being written."""
    folder = workdir / "checkpoints"
    try:
        return any("tmp" in path.name for path in folder.iterdir())
    except FileNotFoundError:
        return False
