"""`data.on_bad_row=skip`: bad rows are counted by their kind, the others learned."""

import dataclasses
import gzip
import json
from pathlib import Path

import pytest
from etils import epath

from jax_mdlm.config import Config, ConfigError, DataConfig, TokenizerConfig
from jax_mdlm.data.corpus import load_corpus
from jax_mdlm.data.rows import open_rows, read_files

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}
# kind -> lines that are of it
BAD = {
    "not JSON": ['{"prompt": "a"', "x", "[" * 100_000],
    "no known form": ["{}", '{"chosen": "a", "rejected": "b"}'],
    "no object": ["3"],
    "not UTF-8": ['{"prompt": "\udcff", "response": "b"}'],
    "a field twice": ['{"prompt": "a", "prompt": "b", "response": "c"}'],
    "unknown role": [json.dumps({"messages": [USER | {"role": "root"}, ANSWER]})],
    "no answer": [json.dumps({"messages": [USER]})],
    "empty response": ['{"prompt": "a", "response": " "}'],
    "not text": ['{"prompt": "a", "response": "\\ud83d"}'],
    "content that is no text": [json.dumps({"messages": [IMAGE, ANSWER]})],
    "a field of another type": ['{"prompt": 1, "response": "b"}'],
    "a weight that is neither 0 nor 1": [json.dumps({"messages": [USER | {"weight": 2}, ANSWER]})],
    "only a text": ['{"text": "a"}'],
}
LINES = [line for lines in BAD.values() for line in lines]
GOOD = [json.dumps({"prompt": f"a{number}", "response": "b"}) for number in range(40)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A bad row after every second good one."""
    mixed = [*GOOD]
    for number, line in enumerate(LINES):
        mixed.insert(3 * number + 2, line)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(mixed), encoding="utf-8", errors="surrogateescape")
    return path


def test_kinds_are_counted(path: Path) -> None:
    read = read_files(DataConfig(files=str(path), on_bad_row="skip"))
    assert read.bad.kinds == {kind: len(lines) for kind, lines in BAD.items()}
    assert read.bad.total == len(LINES)
    assert [example[0].content for example in read.examples] == [f"a{n}" for n in range(40)]
    assert read.forms == (f"{path}: JSONL, prompt and response, 40 rows",)
    first, *errors = read.bad.lines()
    assert first.startswith("rows that were left out: 3 not JSON, 2 no known form, 1 no object, 1")
    assert errors == [
        f"  {path}:3 is not JSON (Expecting ',' delimiter at column 15)",
        f"  {path}:6 is not JSON (Expecting value at column 1)",
        f"  {path}:9 is not JSON that can be read (nested too deeply)",
    ]


def test_the_first_stops_a_run_that_skips_none(path: Path) -> None:
    with pytest.raises(ConfigError, match=r":3 is not JSON .*; correct the line or set data\.on_b"):
        read_files(DataConfig(files=str(path)))


def test_every_container_is_skipped_in(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,response\na,b\nc\n, \n")
    (tmp_path / "b.json").write_text('[{"prompt": "a", "response": "b"}, 3]')
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a", "response": "b"}\nx'))
    read = read_files(DataConfig(files=f"{tmp_path}/*", on_bad_row="skip"))
    assert len(read) == 3
    assert read.bad.kinds == {
        "another number of columns": 1,
        "empty response": 1,
        "no object": 1,
        "not JSON": 1,
    }
    assert [form.partition(": ")[2] for form in read.forms] == [
        "CSV, prompt and response, 1 row",
        "JSON array, prompt and response, 1 row",
        "JSONL, prompt and response, 1 row",
    ]


def test_a_weight_of_0_in_pretraining(tmp_path: Path) -> None:
    turns = [USER, ANSWER | {"weight": 0}]
    rows = [json.dumps({"messages": turns}), '{"text": "a"}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    config = DataConfig(files=f"{tmp_path}/a.jsonl", on_bad_row="skip", pretraining=True)
    assert read_files(config).bad.kinds == {"a weight of 0": 1}


def test_the_corpus_has_lines_for_the_log(path: Path, tmp_path: Path) -> None:
    tokenizer = TokenizerConfig("bpe", vocab_size=263)
    data = DataConfig(files=str(path), on_bad_row="skip", length=64, tokenizer=tokenizer)
    corpus = load_corpus(Config(name="x", data=data), epath.Path(tmp_path))
    assert corpus.train.counts.skipped == len(LINES)
    rows = open_rows(data, epath.Path(tmp_path), "train")
    assert corpus.read == (*rows.forms, *rows.bad.lines())
    assert len(corpus.read) == 5
    many = dataclasses.replace(rows, forms=rows.forms * 1234)
    assert many.lines()[19:22] == [rows.forms[0], "and 1,214 more files", rows.bad.lines()[0]]
