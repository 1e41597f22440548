"""`data.files`: what an entry may say, and what is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_mdlm.config import ConfigError
from jax_mdlm.data.rows import read_files
from jax_mdlm.data.sources import RowSource, parse_sources, source_files
from tests.data.conftest import plain_config
from tests.data.prepared_rows import save


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("a.jsonl", [RowSource("a.jsonl")]),
        (" a.jsonl , b/*.parquet ", [RowSource("a.jsonl"), RowSource("b/*.parquet")]),
        ("a.jsonl,,b.csv,", [RowSource("a.jsonl"), RowSource("b.csv")]),
        ("a.jsonl[:100]", [RowSource("a.jsonl", 0, 100)]),
        ("a.jsonl[100:]", [RowSource("a.jsonl", 100)]),
        ("a.jsonl[5:7]*2", [RowSource("a.jsonl", 5, 7, 2.0)]),
        ("a.jsonl[:]", [RowSource("a.jsonl")]),
        ("a.csv*0.25,b.csv*10", [RowSource("a.csv", weight=0.25), RowSource("b.csv", weight=10)]),
        ("b/*.parquet*0.5", [RowSource("b/*.parquet", weight=0.5)]),
        ("b/*", [RowSource("b/*")]),
        ("part-[0-9].jsonl", [RowSource("part-[0-9].jsonl")]),
        ("part-[0-9][:3]*1.5", [RowSource("part-[0-9]", 0, 3, 1.5)]),
        ("gs://bucket/a.jsonl[:3]", [RowSource("gs://bucket/a.jsonl", 0, 3)]),
        ("hf://datasets/org/name@main/data/*.parquet[1:2]*3", [
            RowSource("hf://datasets/org/name@main/data/*.parquet", 1, 2, 3)
        ]),
        ("", []),
        (" , ", []),
    ],
)  # fmt: skip
def test_forms(text: str, sources: list[RowSource]) -> None:
    assert list(parse_sources(text)) == sources


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a[3:3]", "data.files: a[3:3] takes no row; a slice is [first:after the last]"),
        ("a[:0]*2", "data.files: a[:0]*2 takes no row; a slice is [first:after the last]"),
        ("b, a[4:3]", "data.files: a[4:3] takes no row; a slice is [first:after the last]"),
        ("a*0", "data.files: a*0 has weight 0; leave it out"),
        ("a[:3]*0.0", "data.files: a[:3]*0.0 has weight 0; leave it out"),
    ],
)
def test_entries_that_take_nothing(text: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_sources(text)
    assert str(caught.value) == error


@given(
    start=st.integers(0, 50),
    size=st.none() | st.integers(1, 50),
    weight=st.sampled_from([1.0, 2.0, 0.5, 1.25]),
)
def test_what_is_written_is_what_is_read(start: int, size: int | None, weight: float) -> None:
    source = RowSource("a.jsonl", start, None if size is None else start + size, weight)
    (found,) = parse_sources(f"{source.name}*{weight}")
    assert found == source
    assert parse_sources(source.name)[0].name == source.name


def rows(begin: int, end: int) -> list[dict]:
    return [{"prompt": f"{n}", "response": "a"} for n in range(begin, end)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Numbers 0 to 9 in a, 10 to 19 in b, 20 to 29 in c."""
    for number, name in enumerate("abc"):
        save(tmp_path / f"{name}.jsonl", rows(10 * number, 10 * number + 10))
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "numbers", "sizes"),
    [
        ("{0}/a.jsonl[:3]", [0, 1, 2], [3]),
        ("{0}/*.jsonl[8:12]*3", [8, 9, 10, 11], [4]),  # counted through all files
        ("{0}/a.jsonl[7:],{0}/c.jsonl[:1]", [7, 8, 9, 20], [3, 1]),
        ("{0}/a.jsonl,{0}/*.jsonl", [*range(30)], [10, 20]),  # what was there is not read again
        ("{0}/a.jsonl[:2],{0}/a.jsonl[:2]", [0, 1, 0, 1], [2, 2]),  # slices are
        ("{0}/a.jsonl[8:],{0}/a.jsonl[50:],{0}/b.jsonl[:1]", [8, 9, 10], [2, 0, 1]),
    ],
)
def test_rows_of_sources(folder: Path, pattern: str, numbers: list[int], sizes: list[int]) -> None:
    found = read_files(plain_config(files=pattern.format(folder)))
    assert [int(example[0].content) for example in found.examples] == numbers
    assert [part.rows for part in found.parts] == sizes
    sources = parse_sources(pattern.format(folder))
    assert [part.name for part in found.parts] == [source.name for source in sources]


def test_files_that_are_not_there(folder: Path) -> None:
    for files, text in [
        ("", r"^data.files must name files of rows, it is empty; set --config.data.files="),
        (f"{folder}/d.jsonl[:3]*2", rf"^data.files: no file {folder}/d.jsonl; correct the path$"),
        (f"{folder}/d*.jsonl*2", rf"^data.files: no file matches {folder}/d\*.jsonl; correct"),
        (f"{folder}[:3]", rf"^data.files: {folder} is a folder; write {folder}/\*.jsonl$"),
    ]:
        with pytest.raises(ConfigError, match=text):
            source_files(files)
