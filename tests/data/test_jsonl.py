"""The user's files: every row shape, every error with file and line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data.examples import Message, pair
from jax_mdlm.data.files import find_files
from jax_mdlm.data.rows import open_rows, read_files

GOOD = '{"prompt": "a", "response": "b"}'


def write(path: Path, *lines: str) -> str:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def config(files: str, **changes: Any) -> DataConfig:
    values: dict[str, Any] = {"source": "chat_jsonl", "files": files}
    return DataConfig(**(values | changes))


def test_row_shapes(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r", "x": 1}]
    path = write(
        tmp_path / "train.jsonl",
        json.dumps({"messages": messages}),
        GOOD,
        "",
        json.dumps({"question": "2 + 2?", "answer": "4", "source": "gsm8k"}),
        # a line separator of Unicode ends no line of the file
        json.dumps({"prompt": "one\u2028two", "response": "ü"}, ensure_ascii=False),
    )
    read = read_files(config(path))
    assert read.examples == [
        (Message("user", "q"), Message("assistant", "r")),
        pair("a", "b"),
        pair("2 + 2?", "4"),
        pair("one\u2028two", "ü"),
    ]
    assert [origin.removeprefix(path) for origin in read.origins] == [":1", ":2", ":4", ":5"]
    assert read.bad.total == 0


def test_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{GOOD}\r\n\r\n{GOOD}".encode())
    assert read_files(config(str(path))).examples == [pair("a", "b")] * 2


def test_texts_are_for_pretraining(tmp_path: Path) -> None:
    only_user = json.dumps({"messages": [{"role": "user", "content": "x"}]})
    path = write(tmp_path / "train.jsonl", '{"text": "once"}', only_user, GOOD)
    read = read_files(config(path, pretraining=True))
    assert read.examples == [(Message("text", "once"),), (Message("user", "x"),), pair("a", "b")]
    with pytest.raises(
        ConfigError, match=r":1 has only a text, which needs data\.pretraining=True"
    ):
        read_files(config(path))


def test_several_files_and_globs(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    one = write(tmp_path / "one.jsonl", GOOD)
    write(tmp_path / "more" / "b.jsonl", GOOD)
    write(tmp_path / "more" / "a.jsonl", GOOD)
    (tmp_path / "more" / "c.jsonl.d").mkdir()
    found = find_files(f"{one}, {tmp_path}/more/*.jsonl*,{tmp_path}/*.jsonl,")
    assert [path.name for path in found] == ["one.jsonl", "a.jsonl", "b.jsonl"]
    assert len(find_files(f"{tmp_path}/**/*.jsonl")) == 3


def test_globs_on_gs_do_not_recurse() -> None:
    with pytest.raises(
        ConfigError, match=r"data\.files: \*\* needs a local folder, got gs://b/\*\*"
    ):
        find_files("gs://b/**/x.jsonl")


def test_relative_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "one.jsonl", GOOD)
    monkeypatch.chdir(tmp_path)
    assert read_files(config("o*.jsonl")).origins == ["one.jsonl:1"]


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"data\.files must name files of rows, it is empty; set --config\.data\.f",
    ):
        find_files(" , ")
    with pytest.raises(ConfigError, match=r"data\.files: no file .*x\.jsonl; correct the path"):
        find_files(f"{tmp_path}/x.jsonl")
    with pytest.raises(ConfigError, match=r"data\.files: no file matches .*\*\.jsonl; correct the"):
        find_files(f"{tmp_path}/*.jsonl")
    with pytest.raises(ConfigError, match=r"is a folder; write .*/\*\.jsonl"):
        find_files(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.jsonl is empty; give a file with one JSON object a"):
        read_files(config(f"{tmp_path}/x.jsonl"))


BAD = [
    ('{"prompt": "a" "b"}', " is not JSON (Expecting ',' delimiter at column 16)"),
    ("[" * 100_000, " is not JSON that can be read (nested too deeply)"),
    ("[1]", " must be a JSON object, got list"),
    (
        '{"input": "a", "prompt": "b"}',
        " must have messages, prompt and response, or question and answer; "
        "its fields are: input, prompt",
    ),
    (
        "{}",
        " must have messages, prompt and response, or question and answer; its fields are: none",
    ),
    ('{"prompt": 3, "response": "b"}', ": prompt must be a string, got int"),
    ('{"question": "3", "answer": null}', ": answer must be a string, got null"),
    ('{"messages": "hi"}', ": messages must be a list with at least one message, got str"),
    ('{"messages": []}', ": messages must be a list with at least one message, got an empty list"),
    ('{"messages": ["hi"]}', ": message 1 must be an object with role and content, got str"),
    (
        '{"messages": [{"role": "user", "content": {"text": "hi"}}]}',
        ": content of message 1 must be a string, got dict",
    ),
    ('{"messages": [{"content": "hi"}]}', ": role of message 1 must be a string, got nothing"),
    (
        '{"messages": [{"role": "user", "content": "hi"}]}',
        ": messages must hold an assistant message to learn, got none",
    ),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_rows(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "train.jsonl", GOOD, line, GOOD)
    expected = re.escape(f"{path}:2{message}; correct the line or set data.on_bad_row=skip")
    with pytest.raises(ConfigError, match=expected):
        read_files(config(path))
    read = read_files(config(path, on_bad_row="skip"))
    assert read.bad.total == 1
    assert [origin.removeprefix(path) for origin in read.origins] == [":1", ":3"]


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"prompt": "\xff", "response": "b"}\n')
    with pytest.raises(
        ConfigError, match=r"x\.jsonl:1 is not UTF-8 \(invalid start byte\); correct the line$"
    ):
        read_files(config(f"{tmp_path}/x.jsonl"))


def test_only_bad_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", "x", "}")
    with pytest.raises(
        ConfigError,
        match=r"all 2 rows of data\.files=.* are malformed; the first: .*:1 is not JSON",
    ):
        read_files(config(path, on_bad_row="skip"))


def test_validation_is_held_out_by_content(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"p{i}", "response": "r"}) for i in range(2000)]
    settings = config(write(tmp_path / "a.jsonl", *lines), validation_percent=10.0)
    train, validation = (
        open_rows(settings, epath.Path(tmp_path), s) for s in ("train", "validation")
    )
    assert len(train) + len(validation) == 2000
    assert 150 < len(validation) < 250
    assert not set(train.examples) & set(validation.examples)
    assert validation.name == "chat_jsonl (validation)"
    prompt = validation[0][0].content
    assert validation.origin(0).endswith(f"a.jsonl:{int(prompt[1:]) + 1}")
    # other order, other file, more rows: a row keeps its side
    write(tmp_path / "a.jsonl", *reversed(lines[:500]))
    again = open_rows(settings, epath.Path(tmp_path), "validation")
    assert set(again.examples) == {e for e in validation.examples if int(e[0].content[1:]) < 500}


def test_a_small_file_has_a_validation_row(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"p{i}", "response": "r"}) for i in range(5)]
    settings = config(write(tmp_path / "a.jsonl", *lines), validation_percent=0.001)
    assert len(open_rows(settings, epath.Path(tmp_path), "validation")) == 1
    assert len(open_rows(settings, epath.Path(tmp_path), "train")) == 4
    off = config(settings.files, validation_percent=0.0)
    assert len(open_rows(off, epath.Path(tmp_path), "train")) == 5
    with pytest.raises(ConfigError, match="has no test split; .* with --split validation$"):
        open_rows(settings, epath.Path(tmp_path), "test")
