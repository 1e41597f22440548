"""Where files are: buckets and datasets of the hub, against stub servers; packed streams."""

import bz2
import gzip
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pytest
from etils.epath import backend
from huggingface_hub import constants

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data.examples import pair
from jax_mdlm.data.files import find_files, open_plain
from jax_mdlm.data.rows import read_files
from tests.conversion.stubs import Hub, s3_store, serving

ROW = b'{"prompt": "a", "response": "b"}\n'
PACKED = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "gzip in two members": lambda data: gzip.compress(data[:5]) + gzip.compress(data[5:]),
    "bzip2": bz2.compress,
    "zstd": lambda data: pyarrow.compress(data, "zstd", asbytes=True),
}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize("name", PACKED)
def test_a_stream_is_unpacked_by_its_content(tmp_path: Path, name: str) -> None:
    data = b"".join(b"line %d\n" % number for number in range(100_000))
    (tmp_path / "rows").write_bytes(PACKED[name](data))
    with open_plain(tmp_path / "rows") as file:
        assert file.read(6) == b"line 0"
        assert file.readline() == b"\n"
        assert file.read() == data[7:]
    (tmp_path / "empty").write_bytes(PACKED[name](b""))
    with open_plain(tmp_path / "empty") as file:
        assert file.read() == b""


# Datasets of the hub.

FILES = {
    "README.md": b"not needed",
    "data/b.jsonl": ROW + ROW,  # equal files are fetched once
    "data/a.jsonl": ROW,
    "data/old/c.jsonl": ROW,
    "top.jsonl": ROW,
}


def point_at(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings are read from the environment when it is imported, too early for a test."""
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub("org/rows", {"main", "v2"}, FILES, "datasets")) as server:
        point_at(server.url, tmp_path, monkeypatch)
        yield server


def downloaded(server: Any) -> list[str]:
    asked = [seen.path for seen in server.log if seen.method == "GET" and "/resolve/" in seen.path]
    return sorted(path.partition("/resolve/")[2].partition("/")[2] for path in asked)


def test_files_of_a_dataset_of_the_hub(hub: Hub) -> None:
    files = "hf://datasets/org/rows/data/*.jsonl"
    assert [path.name for path in find_files(files)] == ["a.jsonl", "b.jsonl"]
    assert downloaded(hub) == ["data/a.jsonl", "data/b.jsonl"]  # and no other
    rows = read_files(DataConfig(files=files))
    assert rows.examples == [pair("a", "b")] * 3
    assert downloaded(hub) == ["data/a.jsonl", "data/b.jsonl"]  # once
    found = find_files("hf://datasets/org/rows@v2/top.jsonl, hf://datasets/org/rows/**/*.jsonl")
    assert [path.name for path in found] == ["top.jsonl", "a.jsonl", "b.jsonl", "c.jsonl"]
    assert "/api/datasets/org/rows/revision/v2" in {seen.path for seen in hub.log}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ("hf://datasets/org/rows", "must name files of a dataset, as hf://datasets/ORG/NAME/data"),
        ("hf://datasets/org/rows/", "must name files of a dataset"),
        ("hf://datasets/org/rows/*.parquet", r"no file of the hub matches hf://.*\*\.parquet"),
        ("hf://datasets/org/none/*.jsonl", r"does not give org/none \(no such repository"),
        ("hf://datasets/org/rows@v3/*.jsonl", r"does not give org/rows@v3 \(no such revision"),
        ("hf://org/rows/a.jsonl", r"must be a local path, gs://, s3:// or hf://datasets/ORG"),
        ("https://x.org/a.jsonl", r"must be a local path, gs://, s3:// or hf://datasets/ORG"),
    ],
)
def test_what_is_not_there(hub: Hub, files: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^[^\n]*{said}[^\n]*$"):
        find_files(files)


def test_without_the_hub_the_cache_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Hub("org/rows", {"main"}, FILES, "datasets")) as server:
        point_at(server.url, tmp_path, monkeypatch)
        find_files("hf://datasets/org/rows/data/*.jsonl")
    assert len(find_files("hf://datasets/org/rows/data/*.jsonl")) == 2
    begin = time.monotonic()
    with pytest.raises(ConfigError, match=r"^the hub does not give org/other \(it cannot be reach"):
        find_files("hf://datasets/org/other/*.jsonl")
    assert time.monotonic() - begin < 30  # generous: nothing is waited for


# Buckets.


def forget_clients() -> None:
    if "s3" in fsspec.registry:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    backend.fsspec_backend._get_filesystem.cache_clear()


def test_rows_in_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"prompt": ["c"], "response": ["d"]}), written)
    objects = {"rows/a.jsonl.gz": gzip.compress(ROW), "rows/b.parquet": written.getvalue()}
    with s3_store(objects, monkeypatch):
        rows = read_files(DataConfig(files="s3://bucket/rows/*"))
        assert rows.examples == [pair("a", "b"), pair("c", "d")]
        assert rows.origins == ["s3://bucket/rows/a.jsonl.gz:1", "s3://bucket/rows/b.parquet:1"]
        with pytest.raises(ConfigError, match=r"data\.files: no file s3://bucket/rows/c\.jsonl"):
            find_files("s3://bucket/rows/c.jsonl")
        with pytest.raises(ConfigError, match=r"no file matches s3://bucket/x/\*"):
            find_files("s3://bucket/x/*")
    forget_clients()
