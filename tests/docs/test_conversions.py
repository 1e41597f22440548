"""The lines of the data guide that make rows of other forms: each is run on a small file."""

import json
from pathlib import Path

import pytest

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data.examples import Message, pair
from jax_mdlm.data.jsonl import read_jsonl
from tests.docs.prepared import all_blocks

BLOCKS = {
    block.needs.split()[0].strip(","): block.text
    for block in all_blocks()
    if block.file == "docs/guides/data.md" and block.language == "python" and block.needs
}
TALK = [{"from": "human", "value": "hä?"}, {"from": "gpt", "value": "Ja 😊"}]
CHAT = (Message("user", "hä?"), Message("assistant", "Ja 😊"))
ALPACA = [
    {"instruction": "Add.", "input": "1 + 2", "output": "3"},
    {"instruction": "Say hi.", "input": "", "output": "hi"},
    {"instruction": "Say ho.", "output": "ho"},
]
MESSAGES = [message._asdict() for message in CHAT]


def write_parquet(path: Path) -> None:
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(arrow.Table.from_pylist([{"messages": MESSAGES}]), path)


def write_text(text: str, encoding: str = "utf-8"):
    return lambda path: path.write_text(text, encoding=encoding)


FORMS = {
    "array.json": (write_text(json.dumps([{"messages": MESSAGES}], indent=2)), [CHAT]),
    "sharegpt.json": (write_text(json.dumps([{"id": 1, "conversations": TALK}], indent=2)), [CHAT]),
    "alpaca.json": (
        write_text(json.dumps(ALPACA, ensure_ascii=False)),
        [pair("Add.\n\n1 + 2", "3"), pair("Say hi.", "hi"), pair("Say ho.", "ho")],
    ),
    "table.csv": (
        write_text('id,prompt,response\n1,"a, b",c\n2,"two\nlines",ü\n', "utf-8-sig"),
        [pair("a, b", "c"), pair("two\nlines", "ü")],
    ),
    "rows.parquet": (write_parquet, [CHAT]),
}


def test_every_form_of_the_guide_is_here() -> None:
    assert set(BLOCKS) == set(FORMS)


@pytest.mark.parametrize("name", FORMS)
def test_a_conversion(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, expected = FORMS[name]
    make(Path(name))
    with pytest.raises(ConfigError, match=r"docs/guides/data\.md shows how to convert it$"):
        read_jsonl(DataConfig(files=name))
    exec(compile(BLOCKS[name], name, "exec"), {})  # as a reader would paste it
    assert read_jsonl(DataConfig(files="rows.jsonl")).examples == expected
