"""A tiny real run: generated chat rows, a tokenizer trained from them, a two-layer model.

And a process that forks, a config file for its children, a run that nothing disturbed.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from jax_mdlm.config import (
    Config,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    SampleConfig,
    TokenizerConfig,
    TrainConfig,
)
from tests.training.forks import Forks, forking
from tests.training.runs import SAVE_EVERY, STEPS, start


def tiny_config(files: str, **train: object) -> Config:
    return Config(
        name="tiny",
        model=ModelConfig(
            vocab_size=0,
            embed=16,
            layers=2,
            heads=2,
            kv_heads=2,
            head_dim=8,
            mlp=24,
            max_length=32,
            compute_dtype="float32",
            remat="none",
        ),
        objective=ObjectiveConfig(loss_tile=2048),
        data=DataConfig(
            source="chat_jsonl",
            files=files,
            template="plain",
            length=32,
            max_labels=12,
            end_padding=4,
            validation_percent=10.0,
            tokenizer=TokenizerConfig(kind="symbols"),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=2),
        train=dataclasses.replace(
            TrainConfig(
                steps=5,
                batch_size=16,
                log_every=1,
                evaluate_every=0,
                evaluate_rows=16,
                decode_rows=0,
                save_every=2,
                tensorboard=False,
            ),
            **train,
        ),
        sample=SampleConfig(length=8, block_length=8, steps=4, batch_size=4),
    )


def write_rows(path: Path) -> None:
    """80 rows: spell a short word backwards, with repeats."""
    words = [a + b + c for a in "abcd" for b in "abcde" for c in "aabc"]
    rows = [{"prompt": word, "response": " ".join(reversed(word.upper()))} for word in words]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_rows(path)
    return path


@pytest.fixture
def tiny(rows_file: Path) -> Config:
    return tiny_config(str(rows_file))


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
