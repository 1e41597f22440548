"""Prepared rows that are not in memory: in buckets, and mapped."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from jax_mdlm import __version__
from jax_mdlm.config import Config, ConfigError
from jax_mdlm.data import preparing, tokens
from jax_mdlm.data.batches import TrainBatches
from jax_mdlm.data.corpus import load_corpus
from jax_mdlm.data.encode import Encoded
from jax_mdlm.data.prepared import (
    SCHEMA,
    Manifest,
    make_spans,
    open_table,
    settings_of,
    tokenizer_digest,
)
from jax_mdlm.data.shards import ShardRecord, write_shard
from jax_mdlm.data.table import Table
from jax_mdlm.data.tokenizer import Tokenizer, read_tokenizer
from jax_mdlm.sharding import Share
from tests.conversion.stubs import CloudStorage, Reply, Request, gcs_store, s3_store
from tests.data.prepared_rows import (
    assert_equal,
    assert_same,
    both,
    run_config,
    steps,
    with_data,
    write_rows,
)

BATCH = 16


@pytest.fixture(autouse=True)
def one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing.os, "cpu_count", lambda: 1)


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[CloudStorage]:
    monkeypatch.setattr(tokens, "_HELD", 0)  # as if there were many rows
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with gcs_store({}, monkeypatch) as store:
        yield store


def test_rows_are_prepared_into_a_bucket_and_read_from_it(
    gcs: CloudStorage, tmp_path: Path
) -> None:
    config = run_config(write_rows(tmp_path / "rows.jsonl", 60))
    memory, _ = both(config, tmp_path)  # the local folder is what the bucket should hold
    far = with_data(config, prepared="gs://bucket/deep/rows")
    assert_same(memory, load_corpus(far, epath.Path(tmp_path / "far")), config)
    local = {path for path in (tmp_path / "rows").rglob("*") if path.is_file()}
    names = {f"deep/rows/{path.relative_to(tmp_path / 'rows')}" for path in local}
    assert {key for key in gcs.objects if not key.endswith("/")} == names
    for path in local:
        assert gcs.objects[f"deep/rows/{path.relative_to(tmp_path / 'rows')}"] == path.read_bytes()
    again = with_data(far, files="")
    assert_same(memory, load_corpus(again, epath.Path(tmp_path / "again")), config)


def test_rows_are_read_from_s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    config = run_config(write_rows(tmp_path / "rows.jsonl", 30), batch_size=4)
    memory, _ = both(config, tmp_path)
    files = [path for path in (tmp_path / "rows").rglob("*") if path.is_file()]
    objects = {f"rows/{path.relative_to(tmp_path / 'rows')}": path.read_bytes() for path in files}
    with s3_store(objects, monkeypatch):
        far = with_data(config, prepared="s3://bucket/rows", files="")
        corpus = load_corpus(far, epath.Path(tmp_path / "far"))
        assert_equal(
            steps(corpus.train, config, Share(), 0, 4), steps(memory.train, config, Share(), 0, 4)
        )


def test_a_batch_waits_for_the_bucket_once(
    gcs: CloudStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All requests of a batch are under way at the same time: none is answered before."""
    monkeypatch.setattr(tokens, "_GAP", 0)  # neighbours, too, by requests of their own
    config = run_config(write_rows(tmp_path / "rows.jsonl", 60), batch_size=BATCH)
    far = with_data(config, prepared="gs://bucket/rows")
    table = load_corpus(far, epath.Path(tmp_path / "run")).train
    batches = TrainBatches(table, config.data, batch_size=BATCH)
    next(batches)
    batches.close()
    time.sleep(0.5)  # what was under way
    answer, lock, count, all_there = gcs.answer, threading.Lock(), 0, threading.Event()

    def hold(request: Request) -> Reply:
        nonlocal count
        with lock:
            count += 1
            if count >= BATCH:
                all_there.set()
        all_there.wait(10)
        return answer(request)

    gcs.answer = hold
    began = time.monotonic()
    batches.batch_at(3)
    assert all_there.is_set()
    assert time.monotonic() - began < 10, "requests waited for each other"
    assert count <= 2 * BATCH, "a history and a response"


def test_few_rows_of_a_bucket_are_read_once(
    gcs: CloudStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(write_rows(tmp_path / "rows.jsonl", 60))
    memory, _ = both(config, tmp_path)
    far = with_data(config, prepared="gs://bucket/rows")
    load_corpus(far, epath.Path(tmp_path / "far"))
    monkeypatch.setattr(tokens, "_HELD", 2**24)
    corpus = load_corpus(far, epath.Path(tmp_path / "far"))
    gcs.log.clear()
    assert_same(memory, corpus, config)
    assert not gcs.log


def test_a_bucket_that_fails_is_one_line(gcs: CloudStorage, tmp_path: Path) -> None:
    config = run_config(write_rows(tmp_path / "rows.jsonl", 30))
    far = with_data(config, prepared="gs://bucket/rows")
    table = load_corpus(far, epath.Path(tmp_path / "run")).train
    del gcs.objects["rows/train/00000.tokens.npy"]
    with pytest.raises(ConfigError, match=r"^gs://bucket/rows/\S+ cannot be used \([^\n]+$"):
        steps(table, config, Share(), 0, 1)
    gcs.refusal = Reply(403, b'{"error": {"message": "no access"}}')
    for number, other in enumerate((far, with_data(far, files=""))):
        with pytest.raises(ConfigError, match=r"^gs://bucket/rows\S* cannot be used \([^\n]+$"):
            load_corpus(other, epath.Path(tmp_path / f"run{number}"))


# --- memory ---

SHARD = 10_000  # rows
PROMPT, ANSWER = 30, 20  # tokens of each row

# Opens the folder, draws 50 batches, prints the anonymous memory in bytes.
CODE = """
import re, sys
from etils import epath
from jax_mdlm.sharding import Share
from tests.data.prepared_rows import steps
from tests.data.test_prepared_far import open_generated
table, config = open_generated(epath.Path(sys.argv[1]))
assert len(steps(table, config, Share(), 0, 50)) == 50
print(1024 * int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]))
"""


def generated(number: int) -> Encoded:
    """Rows of a shard, without a tokenizer."""
    at = np.arange(SHARD, dtype=np.int64) * (PROMPT + ANSWER)
    tokens = np.random.default_rng(number).integers(0, 50, SHARD * (PROMPT + ANSWER))
    history = np.stack([at, at + PROMPT], axis=1)
    response = np.stack([at + PROMPT, at + PROMPT + ANSWER], axis=1)
    zeros = np.zeros(SHARD, np.int64)
    return Encoded(tokens.astype(np.int32), history, response, zeros, np.arange(SHARD))


def generate(folder: epath.Path, rows: int, config: Config, tokenizer: Tokenizer) -> None:
    """A folder as `prepare` leaves it."""
    records = []
    for number in range(rows // SHARD):
        encoded = {split: generated(number) for split in ("train", "validation")}
        about = ShardRecord(number, 0, "")
        records.append(write_shard(folder, about, encoded, [], np.empty(0, np.uint64)))
    manifest = Manifest(
        schema=SCHEMA,
        version=__version__,
        made_from=settings_of(config.data),
        tokenizer=tokenizer_digest(folder / "tokenizer", tokenizer.ids),
        tokenizer_path="",
        sources=[{"name": "rows", "weight": 1.0, "forms": [], "rows": rows, "digest": ""}],
        counts={"skipped": {}, "not_encoded": {}},
        errors=[],
        shards=[{"source": 0, "pairs": r.pairs, "tokens": r.tokens} for r in records],
    )
    make_spans(folder, manifest, config, tokenizer)
    (folder / "manifest.json").write_text(json.dumps(vars(manifest)))


def open_generated(folder: epath.Path) -> tuple[Table, Config]:
    config = run_config("", batch_size=64, tokenizer=SYMBOLS)
    tokenizer = read_tokenizer(SYMBOLS, folder / "tokenizer")
    manifest = preparing.read_manifest(folder)
    assert manifest is not None
    return open_table(folder, manifest, "train", config, tokenizer), config


SYMBOLS = run_config("").data.tokenizer


@pytest.mark.slow
def test_opening_many_rows_takes_no_memory(symbols: Tokenizer, tmp_path: Path) -> None:
    """Twenty times the rows: arrays are mapped, the order is computed."""
    held = []
    for rows in (20_000, 400_000):
        folder = epath.Path(tmp_path / str(rows))
        symbols.save(folder_of(folder))
        (folder / "tokenizer" / "kind.json").write_text('{"kind": "symbols"}')
        generate(folder, rows, run_config("", tokenizer=SYMBOLS), symbols)
        done = subprocess.run(
            [sys.executable, "-c", CODE, str(folder)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        held.append(int(done.stdout))
    print(held)
    assert held[1] - held[0] < 40e6


def folder_of(folder: epath.Path) -> epath.Path:
    (folder / "tokenizer").mkdir(parents=True)
    return folder / "tokenizer"
