"""The real dialogues: what is dropped, who speaks, how they are split; and the missing package."""

import importlib.util
import itertools
from pathlib import Path

import pytest
from etils import epath

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data import demo
from jax_mdlm.data.examples import SplitRows
from jax_mdlm.data.rows import open_rows

CONFIG = DataConfig(source="dialogues")


@pytest.fixture(scope="session")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SplitRows]:
    folder = epath.Path(tmp_path_factory.mktemp("dialogues"))
    return {name: open_rows(CONFIG, folder, name) for name in ("train", "validation", "test")}


def test_turns() -> None:
    def part(text: str, sender: str) -> dict[str, str]:
        return {"text": text, "timestamp": "2018-05-02T19:38:15Z", "sender": sender}

    entry = {"messages": [[part("Hello", "A"), part(" how are you? ", "A")], [part("fine", "B")]]}
    assert demo.turns_of(entry) == ["Hello how are you?", "fine"]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (["hi", "hello"], True),
        (["hi"], False),
        (["hi", ""], False),
        (["hi", "x" * 2001], False),
        (["hi", "that is shit"], False),
        (["write to", "someone@example.org"], False),
        (["Dickens", "grape juice"], True),
    ],
)
def test_what_is_wanted(turns: list[str], expected: bool) -> None:
    assert demo.wanted(turns) is expected


def test_counts(splits: dict[str, SplitRows]) -> None:
    assert len(demo.read_dialogues()) == 7168
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 3557,
        "validation": 203,
        "test": 186,
    }


def test_speakers_alternate_and_nothing_private_is_left(splits: dict[str, SplitRows]) -> None:
    senders = {
        part["sender"]
        for entry in demo.read_dialogues().values()
        for turn in entry["messages"]
        for part in turn
    }
    for rows in splits.values():
        words = {word for text in rows.texts() for word in text.split()}
        assert not senders & words
        for example in rows:
            assert [message.role for message in example[:2]] == ["user", "assistant"]
            assert all(a.role != b.role for a, b in itertools.pairwise(example))
            assert max(len(message.content) for message in example) <= 2000


def test_the_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "chitchat_dataset" else found(name),
    )
    message = r"source=dialogues needs the package chitchat-dataset; pip install -e '\S+\[demo\]'$"
    with pytest.raises(ConfigError, match=message):
        open_rows(CONFIG, epath.Path(tmp_path), "train")
