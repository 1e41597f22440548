"""Prepared rows: what training, evaluation and the log get is what they get from memory."""

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from jax_mdlm import prepare
from jax_mdlm.config import (
    ConfigError,
    TokenizerConfig,
)
from jax_mdlm.data import preparing, shard_making
from jax_mdlm.data.corpus import load_corpus
from jax_mdlm.data.readers import pieces
from tests.data.prepared_rows import assert_same, both, run_config, with_data, write_rows
from tests.training.conftest import write_rows as train_rows
from tests.training.forks import Forks, forking
from tests.training.runs import same_run
from tests.training.runs import start as train


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 3,000 bytes, made by this process: a small file gives many."""
    monkeypatch.setattr(shard_making, "pieces", functools.partial(pieces, size=3000))
    monkeypatch.setattr(preparing.os, "cpu_count", lambda: 1)


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
    without = with_data(config, prepared=str(tmp_path / "rows"), files="")
    again = load_corpus(without, epath.Path(tmp_path / "run"))
    assert again.train.parts == memory.train.parts
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
    refused = with_data(config, prepared=str(tmp_path / "rows"), max_labels=5, too_long="error")
    with pytest.raises(ConfigError, match=message):
        load_corpus(refused, epath.Path(tmp_path / "run"))


# --- runs ---


@pytest.mark.slow
def test_a_run_learns_and_measures_the_same(forks: Forks, tmp_path: Path) -> None:
    """Six steps from memory and from prepared rows: parameters, metrics and likelihoods."""
    (tmp_path / "tiny.py").write_text(
        "from tests.training.conftest import tiny_config\n\n\n"
        f"def get_config(preset):\n    return tiny_config({str(tmp_path / 'rows.jsonl')!r}, "
        "steps=6, save_every=6, evaluate_every=3)\n"
    )
    train_rows(tmp_path / "rows.jsonl")
    memory, prepared = tmp_path / "memory", tmp_path / "prepared"
    prepare.main(["--config", str(tmp_path / "tiny.py"), "--output", str(tmp_path / "rows")])
    flag = f"--config.data.prepared={tmp_path / 'rows'}"
    for child in (
        train(forks, tmp_path / "tiny.py", memory),
        train(forks, tmp_path / "tiny.py", prepared, flag),
    ):
        assert "6/6" in child.finish()
    same_run(memory, prepared, 6)
    found = []
    for workdir in (memory, prepared):
        if workdir == prepared:
            (tmp_path / "rows.jsonl").unlink()  # the folder is enough
        words = ["-m", "jax_mdlm.evaluate", "likelihood", "--workdir", str(workdir), "--split"]
        streams = (Path("/dev/null"), tmp_path / f"{workdir.name}.json", tmp_path / "errors")
        child = forks.run([*words, "validation", "--json"], streams, {}, tmp_path)
        assert child.wait() == 0, (tmp_path / "errors").read_text()
        found.append(json.loads(streams[1].read_text()))
    for name in ("workdir",):
        for one in found:
            one.pop(name, None)
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with forking() as server:
        yield server
