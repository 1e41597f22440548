"""Rows to prepare, the settings of a run on them, and the command that prepares them."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from jax_mdlm.config import Config, ModelConfig, ObjectiveConfig, TrainConfig
from jax_mdlm.data.batches import TrainBatches, evaluation_batches
from jax_mdlm.data.corpus import Corpus, load_corpus
from jax_mdlm.data.table import Table
from jax_mdlm.sharding import Share
from tests.data.conftest import plain_config

STEPS = 12
_WORDS = ("ab", "bab", "cc", "dad", "eee", "fo")

# The command, with pieces of so many bytes: a small file gives many shards.
_CODE = """
import functools, sys
from jax_mdlm import command, prepare
from jax_mdlm.data import readers, shard_making
size = int(sys.argv.pop(1))
shard_making.pieces = functools.partial(readers.pieces, size=size)
command.run(prepare.main)
"""


def save(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def words(draw: random.Random, most: int) -> str:
    return " ".join(draw.choice(_WORDS) for _ in range(draw.randint(1, most)))


def write_rows(path: Path, count: int, seed: int = 0, weighted: bool = True) -> str:
    """Pairs, and dialogues of up to four answers of which some are not learned."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        messages = []
        for _ in range(draw.choice([1, 1, 2, 4])):
            messages.append({"role": "user", "content": words(draw, 12)})
            weight = int(draw.random() < 0.8 or not weighted)
            answer = words(draw, 6)
            messages.append({"role": "assistant", "content": answer, "weight": weight})
        messages[-1]["weight"] = 1
        rows.append({"messages": messages})
    return save(path, rows)


def run_config(files: str, batch_size: int = 8, slack_max: float = 0.0, **data: Any) -> Config:
    settings: dict[str, Any] = {"length": 64, "max_labels": 24, "validation_percent": 10.0}
    settings |= {"files": files, "seed": 5, "draw_end_padding": True} | data
    return Config(
        model=ModelConfig(max_length=settings["length"]),
        data=plain_config(**settings),
        objective=ObjectiveConfig(slack_max=slack_max),
        train=TrainConfig(batch_size=batch_size),
    )


def with_data(config: Config, **data: Any) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


def both(config: Config, folder: Path) -> tuple[Corpus, Corpus]:
    """What a run reads into memory, and what it opens prepared."""
    memory = load_corpus(config, epath.Path(folder / "memory"))
    prepared = with_data(config, prepared=str(folder / "rows"))
    return memory, load_corpus(prepared, epath.Path(folder / "run"))


def steps(table: Table, config: Config, share: Share, first: int, count: int) -> list:
    batches = TrainBatches(
        table,
        config.data,
        batch_size=config.train.batch_size,
        objective=config.objective,
        share=share,
        start_step=first,
    )
    with contextlib.closing(batches):
        return list(itertools.islice(batches, count))


def assert_equal(found: list, expected: list) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected):
        for name, value in vars(other).items():
            np.testing.assert_array_equal(getattr(one, name), value, err_msg=name)


def assert_same(memory: Corpus, prepared: Corpus, config: Config) -> None:
    """Tokenizers, counts, held-out conversations, and all batches, field by field."""
    assert prepared.tokenizer.ids == memory.tokenizer.ids
    text = "ab bab cc dad eee fo"
    assert prepared.tokenizer.encode(text) == memory.tokenizer.encode(text)
    for split in ("train", "validation"):
        assert getattr(prepared, split).counts == getattr(memory, split).counts, split
        assert len(getattr(prepared, split)) == len(getattr(memory, split))
    if memory.held_out is not None:
        assert prepared.held_out is not None
        assert list(prepared.held_out.examples) == list(memory.held_out.examples)
        assert list(prepared.held_out.origins) == list(memory.held_out.origins)
    draw = random.Random(3)
    whole = steps(memory.train, config, Share(), 0, STEPS)
    for processes in (1, 2, 4):
        first = draw.randrange(STEPS)
        for index in range(processes):
            share = Share((index,), processes)
            expected = steps(memory.train, config, share, 0, STEPS)
            assert_equal(steps(prepared.train, config, share, 0, STEPS), expected)
            assert_equal(
                steps(prepared.train, config, share, first, 4),
                [*expected[first:], *steps(memory.train, config, share, STEPS, 4)][:4],
            )
            held = [
                list(evaluation_batches(c.validation, config.data, batch_size=4, share=share))
                for c in (prepared, memory)
            ]
            assert_equal(*held)
    # Two processes took the first steps, one goes on.
    assert_equal(steps(prepared.train, config, Share(), 7, STEPS - 7), whole[7:])


def config_file(path: Path, files: str, **data: Any) -> Path:
    """`run_config` as a file."""
    path.write_text(
        "from tests.data.prepared_rows import run_config\n\n\n"
        f"def get_config(preset):\n    return run_config({files!r}, **{data!r})\n"
    )
    return path


def start(
    config: Path, output: Path | str, *words: str, size: int = 3000, **env: str
) -> subprocess.Popen[str]:
    """Starts the command, in a process group of its own; stderr can be read."""
    line = [sys.executable, "-c", _CODE, str(size), "--config", str(config), "--output"]
    return subprocess.Popen(
        [*line, str(output), *words],
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def contents(folder: Path) -> dict[str, str]:
    """The digest of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha1(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
