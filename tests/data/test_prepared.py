"""Prepared rows: what training, evaluation and the log get is what they get from memory."""

import contextlib
import dataclasses
import functools
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from jax_mdlm.config import (
    Config,
    ConfigError,
    ModelConfig,
    ObjectiveConfig,
    TokenizerConfig,
    TrainConfig,
)
from jax_mdlm.data import preparing, shard_making
from jax_mdlm.data.batches import TrainBatches, evaluation_batches
from jax_mdlm.data.corpus import Corpus, load_corpus
from jax_mdlm.data.readers import pieces
from jax_mdlm.data.table import Table
from jax_mdlm.sharding import Share
from tests.data.conftest import plain_config

STEPS = 12


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 3,000 bytes, made by this process: a small file gives many."""
    monkeypatch.setattr(shard_making, "pieces", functools.partial(pieces, size=3000))
    monkeypatch.setattr(preparing.os, "cpu_count", lambda: 1)


def words(draw: random.Random, most: int) -> str:
    return " ".join(
        draw.choice(["ab", "bab", "cc", "dad", "eee", "fo"]) for _ in range(draw.randint(1, most))
    )


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
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


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


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "pretraining": {"pretraining": True, "slack_max": 0.5, "random_length_share": 0.3},
    "pretraining in buckets": {
        "pretraining": True,
        "slack_max": 0.5,
        "random_length_share": 0.5,
        "buckets": (32, 64),
    },
    "buckets": {"buckets": (16, 32, 64), "slack_max": 0.5},
    "truncate": {"length": 32, "max_labels": 9, "too_long": "truncate"},
    "drop": {"length": 32, "max_labels": 9, "too_long": "drop"},
    "prompt slots": {"prompt_slots": 24},
    "bpe": {"tokenizer": TokenizerConfig(kind="bpe", vocab_size=300)},
}


@pytest.mark.parametrize("case", CASES)
def test_batches_are_those_from_memory(case: str, tmp_path: Path) -> None:
    weighted = not CASES[case].get("pretraining")
    file = write_rows(tmp_path / "rows.jsonl", 120, weighted=weighted)
    config = run_config(file, **CASES[case])
    memory, prepared = both(config, tmp_path)
    assert len(list((tmp_path / "rows" / "train").glob("*.tokens.npy"))) > 5
    assert_same(memory, prepared, config)


@pytest.mark.parametrize("slots", [0, 32])
def test_dialogues_in_the_published_template(
    llada_folder: Path, tmp_path: Path, slots: int
) -> None:
    config = run_config(
        write_rows(tmp_path / "rows.jsonl", 60),
        template="llada",
        length=256,
        prompt_slots=slots,
        tokenizer=TokenizerConfig(kind="huggingface", path=str(llada_folder)),
    )
    assert_same(*both(config, tmp_path), config)


@pytest.mark.parametrize("percent", [2.0, 50.0, 99.99])
def test_skipped_rows_are_counted_as_in_memory(tmp_path: Path, percent: float) -> None:
    """Lines that are no JSON, objects that are no rows, and rows without an answer."""
    lines = Path(write_rows(tmp_path / "rows.jsonl", 40)).read_text().splitlines()
    empty = [json.dumps({"prompt": f"a{at}", "response": " "}) for at in range(6)]
    lines = [*lines[:20], "{", '{"prompt": 3}', *empty, *lines[20:], "[]"]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    config = run_config(
        str(tmp_path / "rows.jsonl"), batch_size=4, on_bad_row="skip", validation_percent=percent
    )
    memory, prepared = both(config, tmp_path)
    assert memory.train.counts.skipped >= 3
    held = memory.held_out
    assert held is not None
    if any(not example[-1].content.strip() for example in held.examples):
        memory = dataclasses.replace(
            memory, held_out=None
        )  # a row that cannot be asked is left out
    assert_same(memory, prepared, config)


@pytest.mark.parametrize("pretraining", [False, True])
@pytest.mark.parametrize(
    "pattern",
    [
        "{a}*2,{b}",
        "{a}[:30]*2,{b}[10:]*0.25,{a}[50:70]",
        "{a}*0.5,{b}*1.5",
        "{a}[:20]*0.5,{b},{a}[:20]*0.5",  # one source twice
        "{a},{a},{b}*0.5",  # one of which nothing is new
        "{a},{b}[900:],{b}*0.5",  # one that has no rows
    ],
)
def test_mixtures_are_those_from_memory(tmp_path: Path, pattern: str, pretraining: bool) -> None:
    a = write_rows(tmp_path / "a.jsonl", 80, weighted=not pretraining)
    b = write_rows(tmp_path / "b.jsonl", 60, seed=1, weighted=not pretraining)
    files = pattern.format(a=a, b=b)
    config = run_config(files, pretraining=pretraining, slack_max=0.5 * pretraining)
    memory, prepared = both(config, tmp_path)
    assert prepared.train.parts == memory.train.parts
    assert_same(memory, prepared, config)


@pytest.mark.parametrize("count", [2, 3, 12])
@pytest.mark.parametrize("percent", [0.001, 99.999])
def test_a_small_file_has_two_sides_as_in_memory(
    tmp_path: Path, count: int, percent: float
) -> None:
    """Where the share holds out none or all; the tokenizer is trained from the same rows."""
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"a{chr(97 + at) * 3}", "response": chr(65 + at) * 3} for at in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = TokenizerConfig(kind="bpe", vocab_size=280)
    config = run_config(str(path), batch_size=4, validation_percent=percent, tokenizer=tokenizer)
    assert_same(*both(config, tmp_path), config)
    kept = [
        (tmp_path / name / "tokenizer" / "tokenizer.json").read_bytes()
        for name in ("memory", "run")
    ]
    assert kept[0] == kept[1]


def test_another_length_makes_spans_anew(tmp_path: Path) -> None:
    config = run_config(write_rows(tmp_path / "rows.jsonl", 80))
    both(config, tmp_path)
    spans = tmp_path / "rows" / "spans"
    assert len(list(spans.iterdir())) == 1
    for number, change in enumerate(
        [{"length": 40}, {"max_labels": 5}, {"too_long": "drop", "length": 40}]
    ):
        other = with_data(config, **change)
        memory = load_corpus(other, epath.Path(tmp_path / "memory"))
        prepared = with_data(other, prepared=str(tmp_path / "rows"), files="")
        assert_same(memory, load_corpus(prepared, epath.Path(tmp_path / "run")), other)
        assert len(list(spans.iterdir())) == number + 2
    message = r"^response of row \d+ of shard \d+ needs \d+ labels, data.max_labels is 5; raise "
    with pytest.raises(ConfigError, match=message):
        refused = with_data(config, prepared=str(tmp_path / "rows"), max_labels=5, too_long="error")
        load_corpus(refused, epath.Path(tmp_path / "run"))


# --- memory ---

# Draws 50 batches from the folder that is named, prints the anonymous memory in bytes.
CODE = """
import re, sys
from etils import epath
from tests.data.test_prepared import open_generated, steps
from jax_mdlm.sharding import Share
table, config = open_generated(epath.Path(sys.argv[1]))
assert len(steps(table, config, Share(), 0, 50)) == 50
print(1024 * int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]))
"""
