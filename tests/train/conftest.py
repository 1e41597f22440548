"""A config file, a process that forks, and a run that nothing disturbed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.train.forks import Forks, forking
from tests.train.runs import SAVE_EVERY, STEPS, start
from tests.training.conftest import rows_file, tiny, write_rows

__all__ = ["rows_file", "tiny"]


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    with forking() as server:
        yield server


@pytest.fixture(scope="session")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config like the shipped ones: a tiny model on generated chat rows."""
    folder = tmp_path_factory.mktemp("config")
    write_rows(folder / "rows.jsonl")
    path = folder / "tiny.py"
    path.write_text(
        "from tests.training.conftest import tiny_config\n\n\n"
        "def get_config(preset):\n"
        f"    return tiny_config({str(folder / 'rows.jsonl')!r}, steps={STEPS}, "
        f"save_every={SAVE_EVERY}, evaluate_every={SAVE_EVERY}, keep_checkpoints=100)\n"
    )
    return path


@pytest.fixture(scope="session")
def undisturbed(forks: Forks, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    text = start(forks, config_file, workdir).finish()
    assert f"step {STEPS}/{STEPS}  validation  nll_bound" in text
    return workdir
