"""Pieces of files: parsed apart they hold what a naive reader finds, whatever their size."""

import csv
import datetime
import io
import json
import pickle
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from jax_mdlm.config import ConfigError
from jax_mdlm.data.examples import BadRowError
from jax_mdlm.data.jsonl import to_line
from jax_mdlm.data.readers import Record, pieces, read_records, records

TEXT = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(['"', "\n", "a\r\nb"])
ROWS = st.lists(st.fixed_dictionaries({"prompt": TEXT, "response": TEXT}), min_size=1, max_size=12)
SIZES = st.integers(1, 200)


def write_table(path: Path, rows: list[dict[str, str]], **format: Any) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], quoting=csv.QUOTE_ALL, **format)
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[dict[str, str]]) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)


WRITERS = {
    "rows.jsonl": lambda path, rows: path.write_text(
        "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8"
    ),
    "rows.json": lambda path, rows: path.write_text(
        json.dumps(rows, indent=1, ensure_ascii=False), "utf-8"
    ),
    "compact.json": lambda path, rows: path.write_text(json.dumps(rows), "utf-8"),
    "rows.csv": write_table,
    "rows.tsv": lambda path, rows: write_table(path, rows, delimiter="\t"),
    "semicolons.csv": lambda path, rows: write_table(path, rows, delimiter=";"),
    "rows.parquet": write_parquet,
}


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, size=SIZES)
@pytest.mark.parametrize("name", WRITERS)
def test_records_are_the_rows(tmp_path_factory, name: str, rows: list[Any], size: int) -> None:
    path = tmp_path_factory.mktemp("rows") / name
    WRITERS[name](path, rows)
    cut = list(pieces(path, size))
    assert pickle.loads(pickle.dumps(cut)) == cut
    found = [one for piece in cut for one in records(piece)]
    assert [one.row for one in found] == rows
    assert found == list(read_records(path))


def test_origins_are_lines_or_rows(tmp_path: Path) -> None:
    rows = [{"prompt": "a\nb", "response": "c"}, {"prompt": "d", "response": "e"}]
    expected = {"jsonl": [1, 3], "json": [1, 2], "csv": [2, 4], "parquet": [1, 2]}
    for ending, numbers in expected.items():
        path = tmp_path / f"rows.{ending}"
        WRITERS[path.name](path, rows)
        assert [one.origin for one in read_records(path)] == [f"{path}:{n}" for n in numbers]


def test_a_bad_row_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(Record("a:1", BadRowError("a:1 is bad", "not JSON")))).row
    assert (str(error), error.kind) == ("a:1 is bad", "not JSON")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_file_is_streamed(tmp_path: Path, name: str) -> None:
    """24 MB are read with room for some pieces of a quarter of a megabyte."""
    rows = [{"prompt": "q" * 500, "response": str(number)} for number in range(45_000)]
    WRITERS[name](tmp_path / name, rows)
    tracemalloc.start()
    count = sum(1 for piece in pieces(tmp_path / name, 1 << 18) for _ in records(piece))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == len(rows)
    assert peak < 6 << 20


def test_an_element_that_is_larger_than_a_piece(tmp_path: Path) -> None:
    rows = [{"prompt": "é" * 50_000, "response": "[],{}"}, {"prompt": "", "response": "b"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    cut = list(pieces(tmp_path / "rows.json", 64))
    assert [one.row for piece in cut for one in records(piece)] == rows


def test_what_is_no_text_is_said_of_its_row(tmp_path: Path) -> None:
    good = {"prompt": "a", "response": "b"}
    (tmp_path / "rows.json").write_bytes(b'[{"prompt": "a", "response": "b"},\n{"prompt": "\xff"}]')
    (tmp_path / "rows.csv").write_bytes(b"prompt,response\na,b\n\xff,c\n")
    (tmp_path / "a.json").write_text('[{"prompt": "a", "response": "b"}, {"a": 1, "a": 2}, 3]')
    binary = pyarrow.array([b"a", b"\xff"]).view(pyarrow.string())
    table = pyarrow.table({"prompt": binary, "response": ["b", "c"]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    for name, kinds in {
        "rows.json": ["not UTF-8"],
        "rows.csv": ["not UTF-8"],
        "rows.parquet": ["not UTF-8"],
        "a.json": ["a field twice", "no object"],
    }.items():
        first, *rest = read_records(tmp_path / name)
        assert first.row == good
        assert [one.row.kind for one in rest if isinstance(one.row, BadRowError)] == kinds
        assert all(str(one.row).startswith(one.origin) for one in rest)


def test_a_quote_within_a_field_is_a_quote(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('prompt,response\na 5" disk,b\nc,"d\n"\n')
    assert [one.row for one in read_records(tmp_path / "rows.csv")] == [
        {"prompt": 'a 5" disk', "response": "b"},
        {"prompt": "c", "response": "d\n"},
    ]


def test_a_row_group_of_parquet_is_a_piece(tmp_path: Path) -> None:
    rows = [{"prompt": str(number), "response": "b"} for number in range(7)]
    write_parquet(tmp_path / "rows.parquet", rows)
    assert [(piece.first, piece.groups) for piece in pieces(tmp_path / "rows.parquet", 1)] == [
        (1, (0, 1)),
        (3, (1, 2)),
        (5, (2, 3)),
        (7, (3, 4)),
    ]


def test_other_columns_of_parquet_can_be_written_again(tmp_path: Path) -> None:
    """`sample` repeats a row's other fields as JSON."""
    day = datetime.date(2024, 2, 29)
    table = pyarrow.table({"prompt": ["a"], "day": [day], "image": [b"\xff"], "none": [None]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    (record,) = read_records(tmp_path / "rows.parquet")
    written = json.loads(to_line(record.row))
    assert written == {"prompt": "a", "day": "2024-02-29", "image": "b'\\xff'", "none": None}


def test_a_long_text_is_cut_at_empty_lines(tmp_path: Path) -> None:
    random.seed(1)
    written = io.StringIO()
    while written.tell() < 20 << 20:
        written.write("x" * random.randrange(60, 3000) + random.choice(["\n", "\n\n"]))
    path = tmp_path / "book.txt"
    path.write_text(written.getvalue())
    found = [one.row for one in read_records(path)]
    texts = [row["text"] for row in found if isinstance(row, dict)]
    assert len(texts) == 3
    assert "\n\n".join(texts) == written.getvalue().rstrip("\n")
    assert [piece.first for piece in pieces(path, 100)] == [piece.first for piece in pieces(path)]
    path.write_text("x" * (9 << 20) + "\ny\n")  # no empty line
    assert [one.origin for one in read_records(path)] == [f"{path}:1", f"{path}:2"]
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")
    assert [one.row for one in read_records(path)] == [{"text": "a\nb"}]
    path.write_bytes(b"a\xff")
    (record,) = read_records(path)
    assert str(record.row) == f"{path}:1 is not UTF-8 (invalid start byte)"


def test_a_text_that_begins_like_json(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in ("[MASK] is a token", "{x} is a set", "[a]\nb"):
        path.write_text(text)
        assert [one.row for one in read_records(path)] == [{"text": text}]


def test_one_array_is_all_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[{}]\n[{}]")
    with pytest.raises(ConfigError, match=r"a\.json must be one JSON array, but there is more beh"):
        list(read_records(tmp_path / "a.json"))
