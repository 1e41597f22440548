"""One reader of rows: what train reads, sample and evaluate read, and refuse in the same words."""

import bz2
import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mdlm.config import Config, ConfigError, DataConfig, TokenizerConfig
from jax_mdlm.data.chat import make_template
from jax_mdlm.data.corpus import load_corpus
from jax_mdlm.data.examples import Message, pair, without_answer
from jax_mdlm.data.files import find_files
from jax_mdlm.data.jsonl import to_line
from jax_mdlm.data.rows import open_rows, parse_files, read_files
from jax_mdlm.data.table import encode_rows, make_table
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.evaluation.judge.rows import read_object_lines as judged_rows
from jax_mdlm.evaluation.likelihood import parse_multiple_choice
from jax_mdlm.evaluation.tasks import open_task
from jax_mdlm.setup import Setup
from jax_mdlm.viewing.prompts import encode_prompt, read_prompts


def trained(path: Path, **changes: Any) -> list[tuple[Message, ...]]:
    return read_files(DataConfig(files=str(path), **changes)).examples


def evaluated(path: Path) -> list[tuple[tuple[Message, ...], str]]:
    task = open_task(Config(name="x"), epath.Path("nowhere"), file=str(path))
    pairs = zip(task.conversations, task.references, strict=True)
    return [(tuple(asked), reference) for asked, (reference,) in pairs]  # pyright: ignore


def asked(path: Path) -> list[tuple[tuple[Message, ...], str | None]]:
    return [(prompt.conversation, prompt.reference) for prompt in read_prompts([], str(path), None)]  # pyright: ignore


DOORS = {"train": trained, "evaluate": evaluated, "sample": asked}


def refusals(path: Path) -> dict[str, str]:
    """What each door says, without the remedy, which differs: only training can skip a row."""
    said = {}
    for name, door in DOORS.items():
        with pytest.raises(ConfigError) as caught:
            door(path)
        said[name] = str(caught.value).partition("; correct the line")[0]
    return said


def chat(*turns: dict) -> str:
    return json.dumps({"messages": list(turns)})


def turn(role: str, content: Any, **more: Any) -> dict:
    return {"role": role, "content": content, **more}


GOOD = '{"prompt": "a", "response": "b"}'
PAIR = (turn("user", "q"), turn("assistant", "r"))

READ = {
    "byte order mark": b"\xef\xbb\xbf" + GOOD.encode(),
    "byte order mark within": GOOD.encode() + b"\n\xef\xbb\xbf" + GOOD.encode(),
    "line separator": '{"prompt": "a\u2028\u2029\x85b", "response": "c"}'.encode(),
    "carriage returns": f"{GOOD}\r\n\r\n{GOOD}\r\n".encode(),
    "no line feed at the end": GOOD.encode(),
    "blank lines": f"\n\n{GOOD}\n \t\n".encode(),
    "NUL": b'{"prompt": "a\\u0000b", "response": "c"}',
    "NaN elsewhere": b'{"prompt": "a", "response": "b", "score": NaN, "x": [1e999, -Infinity]}',
    "a long number": b'{"prompt": "a", "response": "b", "x": ' + b"9" * 4000 + b"}",
    "half a pair in another field": b'{"prompt": "a", "response": "b", "\\ud83d": "\\udc00"}',
    "a whole pair": b'{"prompt": "\\ud83d\\ude00", "response": "b"}',
    "an empty prompt": b'{"prompt": "", "response": "b"}',
    "only an answer": chat(turn("assistant", "hi")).encode(),
    "other roles": chat(turn("system", "s"), turn("human", "q"), turn("GPT", "r")).encode(),
    "weights": chat(
        turn("user", "q", weight=0),
        turn("assistant", "bad", weight=0),
        turn("user", "q"),
        turn("assistant", "good", weight=1.0),
    ).encode(),
    "weights of other kinds": chat(
        turn("assistant", "a", weight=False), turn("assistant", "b", weight=None)
    ).encode(),
    "messages before a prompt": json.dumps(
        {"prompt": "q", "response": "x", "messages": PAIR}
    ).encode(),
    "an odd ending": GOOD.encode(),
    "parts": chat(turn("user", [{"type": "text", "text": "a"}, "b"]), PAIR[1]).encode(),
    "a tool": chat(*PAIR, turn("tool", "42"), PAIR[1]).encode(),
    "no prompt beside a question": b'{"prompt": null, "response": null, "question": "a", '
    b'"answer": "b"}',
    "ShareGPT": b'{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}'
    b"]}",
    "Alpaca": b'{"instruction": "a", "input": "b", "output": "c"}',
    "Alpaca without an input": b'{"instruction": "a", "input": null, "output": "c"}',
    "prompt and completion": b'{"prompt": "a", "completion": "b"}',
    "prompt and completion of messages": json.dumps(
        {"prompt": [PAIR[0]], "completion": [PAIR[1]]}
    ).encode(),
}


@pytest.mark.parametrize("name", READ)
def test_what_one_reads_all_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / ("rows.csv" if name == "an odd ending" else "rows.jsonl")
    path.write_bytes(READ[name])
    rows = trained(path)
    assert rows
    expected = [without_answer(row) for row in rows]
    assert evaluated(path) == expected
    assert asked(path) == expected


def test_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"

    def read(name: str) -> tuple[Message, ...]:
        path.write_bytes(READ[name])
        return trained(path)[0]

    assert read("line separator")[0].content == "a\u2028\u2029\x85b"
    assert [one.role for one in read("other roles")] == ["system", "user", "assistant"]
    assert [one.weight for one in read("weights")] == [0, 0, 1, 1]
    assert [one.weight for one in read("weights of other kinds")] == [0, 1]
    assert read("messages before a prompt")[0].content == "q"
    assert read("a whole pair")[0].content == "\U0001f600"


ROLES = "system, user, human, assistant, gpt, bot, chatbot, model, ai, tool, function, observation"
WEIGHT = ": weight of message 1 must be 1 (learned) or 0 (not learned), got "
REFUSED: dict[bytes, str] = {
    b'{"prompt": "a\\ud83d", "response": "b"}': ": prompt must be text, but its character 2 is "
    "half of a surrogate pair (\\ud83d)",
    b'{"question": "a", "answer": "\\udc00"}': ": answer must be text, but its character 1 is half "
    "of a surrogate pair (\\udc00)",
    chat(turn("user", "\ud83d"), turn("assistant", "r")).encode(): ": content of message 1 must be "
    "text, but its character 1 is half of a surrogate pair (\\ud83d)",
    b'{"messages": null}': ": messages must be a list with at least one message, got null",
    b'{"messages": []}': ": messages must be a list with at least one message, got an empty list",
    b'{"messages": {"role": "user"}}': ": messages must be a list with at least one message, "
    "got dict",
    b'{"messages": "hi"}': ": messages must be a list with at least one message, got str",
    b'{"messages": [[]]}': ": message 1 must be an object with role and content, got list",
    chat(turn("user", None), turn("assistant", "r")).encode(): ": content of message 1 must be a "
    "string, got null",
    chat(turn("user", 3), turn("assistant", "r")).encode(): ": content of message 1 must be a "
    "string, got int",
    chat(
        turn("user", [{"type": "image", "image": "a"}]), turn("assistant", "r")
    ).encode(): ": content of message 1 must be text, got a part of type 'image'",
    chat(
        turn("user", [{"type": "text", "text": 3}]), turn("assistant", "r")
    ).encode(): ": content of message 1 must be text, got a part of int",
    chat(
        {"content": "a"}, turn("assistant", "r")
    ).encode(): ": role of message 1 must be a string, got nothing",
    chat(*PAIR, turn("root", "x"), turn("assistant", "r")).encode(): ": role of message 3 must be "
    f"one of {ROLES}, got 'root'",
    chat(
        turn("\ud83d", "a"), turn("assistant", "r")
    ).encode(): f": role of message 1 must be one of {ROLES}, got '\\ud83d'",
    chat(turn("user", "a", weight=0.5), turn("assistant", "r")).encode(): WEIGHT + "0.5",
    chat(turn("user", "a", weight="0"), turn("assistant", "r")).encode(): WEIGHT + "'0'",
    chat(turn("user", "a", weight=-1), turn("assistant", "r")).encode(): WEIGHT + "-1",
    chat(turn("user", "a", weight=[]), turn("assistant", "r")).encode(): WEIGHT + "[]",
    b'{"prompt": 3, "response": "b"}': ": prompt must be a string, got int",
    b'{"prompt": ["a"], "response": "b"}': ": prompt must be a string, got list",
    b'{"prompt": "a", "response": null}': ": response must be a string, got null",
    b'{"prompt": "a", "prompt": "b", "response": "c"}': " has the field prompt twice",
    b'{"prompt": "a", "response": "c", "x": {"y": 1, "y": 2}}': " has the field y twice",
    b'{"prompt": "a", "response": "b"} {}': " is not JSON (Extra data at column 34)",
    b'{"prompt": "a\tb", "response": "b"}': " is not JSON (Invalid control character at at column "
    "14)",
    b'{"prompt": "a\x00b", "response": "b"}': " is not JSON (Invalid control character at at "
    "column 14)",
    b'{"x": ' + b"9" * 5000 + b"}": " is not JSON that can be read (a number too long)",
    b'{"x": ' + b"[" * 100_000: " is not JSON that can be read (nested too deeply)",
    b'{"prompt": "\xff", "response": "b"}': " is not UTF-8 (invalid start byte)",
    b"3": " must be a JSON object, got int",
    b"null": " must be a JSON object, got NoneType",
    b'["a"]': " must be a JSON object, got list",
}


@pytest.mark.parametrize("line", REFUSED, ids=[text[:40] for text in REFUSED.values()])
def test_what_one_refuses_all_refuse_in_its_words(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD.encode() + b"\n\n" + line + b"\n")
    said = refusals(path)
    assert set(said.values()) == {f"{path}:3{REFUSED[line]}"}
    read = read_files(DataConfig(files=str(path), on_bad_row="skip"))
    assert (len(read.examples), read.bad.total) == (1, 1)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (
            chat(turn("user", "q")),
            ": messages must hold an assistant message to learn, got none",
        ),
        (
            chat(turn("user", "q"), turn("assistant", "r", weight=0)),
            ": messages must hold an assistant message to learn, all have weight 0",
        ),
        (
            chat(*PAIR, turn("user", "q"), turn("assistant", " \n")),
            ": the response is empty; there is nothing to learn, fill it",
        ),
        (
            '{"prompt": "q", "response": " "}',
            ": the response is empty; there is nothing to learn, fill it",
        ),
    ],
)
def test_without_an_answer_a_row_can_be_asked_only(tmp_path: Path, row: str, why: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{GOOD}\n{row}\n")
    for door in (trained, evaluated):
        with pytest.raises(ConfigError) as caught:
            door(path)
        assert str(caught.value).startswith(f"{path}:2{why}; correct the line")
    assert [prompt[0].content for prompt, _ in asked(path)] == ["a", "q"]


@pytest.mark.parametrize("content", [b"", b"\n \r\n\t\n", b"\xef\xbb\xbf"])
def test_nothing_in_a_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert set(refusals(path).values()) == {
        f"{path} is empty; give a file with one JSON object a line"
    }


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(GOOD)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(epath.Path(path)), "open", refuse)
    assert set(refusals(path).values()) == {
        f"{path} must be a file that can be read, but Permission denied"
    }


def test_skipping_is_recommended_where_a_row_would_be_left(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for lines, remedy in [
        (["{}", GOOD], "; correct the line or set data.on_bad_row=skip"),
        ([GOOD, "{}"], "; correct the line or set data.on_bad_row=skip"),
        (["{}", "3", "{}"], "; correct the line"),
    ]:
        path.write_text("\n".join(lines))
        with pytest.raises(ConfigError) as caught:
            trained(path)
        assert str(caught.value).endswith(remedy)


# What is learned.


def test_a_turn_of_weight_0_is_not_learned(tmp_path: Path, llada) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(READ["weights"])
    config = DataConfig(files=str(path), validation_percent=0)
    rows = open_rows(config, epath.Path(tmp_path), "train")
    encoded, _ = encode_rows(rows, config, llada, make_template("llada", llada))
    texts = [llada.decode(encoded.tokens[begin:end]) for begin, end in encoded.response]
    assert texts == ["good"]
    ((begin, end),) = encoded.history
    assert "bad" in llada.decode(encoded.tokens[begin:end])


def test_pretraining_learns_every_turn(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(READ["weights"])
    with pytest.raises(
        ConfigError, match=r":1: weight of message 1 must be 1 with data\.pretraining=True, which"
    ):
        trained(path, pretraining=True)


def test_equal_rows_are_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{GOOD}\n" * 40)
    config = DataConfig(files=str(path))
    train, validation = (
        open_rows(config, epath.Path(tmp_path), s) for s in ("train", "validation")
    )
    assert len(train) == len(validation) == 40
    assert train.note == (
        "the 40 rows of chat_jsonl are all equal: none is held out, validation measures what was "
        "trained on"
    )
    path.write_text(GOOD)
    one = open_rows(config, epath.Path(tmp_path), "train")
    assert one.note == (
        "chat_jsonl has one row: none is held out, validation measures what was trained on"
    )
    tokenizer = TokenizerConfig("bpe", vocab_size=263)
    small = dataclasses.replace(config, length=64, tokenizer=tokenizer)
    corpus = load_corpus(Config(name="x", data=small), epath.Path(tmp_path))
    assert (len(corpus.train), len(corpus.validation), corpus.note) == (1, 1, one.note)
    path.write_text(f"{GOOD}\n" * 40 + '{"prompt": "c", "response": "d"}\n')
    for percent in (1.0, 50.0, 99.999, 100.0):  # whatever the two hashes are
        config = DataConfig(files=str(path), validation_percent=percent)
        train, validation = (
            open_rows(config, epath.Path(tmp_path), s) for s in ("train", "validation")
        )
        assert len(train)
        assert len(validation)
        assert len(train) + len(validation) == 41
        assert not train.note


# Files of other containers, and files that are not read.

ROW = {"prompt": "a", "response": "b"}
CONTAINERS = {
    "packed.jsonl.gz": gzip.compress(GOOD.encode()),
    "named.jsonl": gzip.compress(GOOD.encode()),
    "packed.bz2": bz2.compress(GOOD.encode()),
    "packed.zst": pyarrow.compress(GOOD.encode(), "zstd", asbytes=True),
    "table.csv": b"prompt,response\na,b\n",
    "semicolons.csv": b'"prompt";"response"\r\n"a";"b"\r\n',
    "a.tsv": b"prompt\tresponse\na\tb\n",
    "named.txt": b'"prompt";"response"\n"a";"b"\n',
    "array.json": json.dumps([ROW], indent=1).encode(),
    "array.jsonl": json.dumps([ROW]).encode(),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(CONTAINERS[name])
    assert trained(path) == [pair("a", "b")]
    assert evaluated(path) == asked(path) == [((Message("user", "a"),), "b")]


FORMS = {
    "a.xz": (b"\xfd7zXZ\x00", "compressed (xz); unpack it first"),
    "a.xlsx": (b"PK\x03\x04junk", "a ZIP archive or a spreadsheet; unpack it"),
    "a.arrow": (b"ARROW1\0\0", "an Arrow file; save it as Parquet or JSONL"),
    "stream.arrow": (b"\xff\xff\xff\xff\x10", "an Arrow stream; save it as Parquet"),
    "utf16.jsonl": (("\ufeff" + GOOD).encode("utf-16-le"), "UTF-16 text; save it as UTF-8"),
    "lfs.jsonl": (b"version https://git-lfs.github.com/spec/v1\noid 1", "a Git LFS pointer, not"),
    "page.jsonl": (b"<!DOCTYPE html>\n<html>", "a web page, not the file itself; download"),
    "object.json": (json.dumps({"a": 1}, indent=1).encode(), "JSON over several lines; write one"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_file_of_another_form_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content, form = FORMS[name]
    path.write_bytes(content)
    (said,) = set(refusals(path).values())
    assert said.startswith(f"{path} is {form}")
    with pytest.raises(ConfigError, match="is"):  # a file is no row that could be skipped
        trained(path, on_bad_row="skip")


def test_a_row_of_preferences_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"chosen": [], "rejected": []}\n')
    assert set(refusals(path).values()) == {
        f"{path}:1 is a row of preferences (chosen, rejected); give one of the two as messages"
    }


def test_a_first_line_that_only_looks_like_another_form(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    lines = [
        "What, then, is a question and an answer, in the end?",
        "[MASK] is a token",
        "<b>",
        "{",
    ]
    for first in lines:
        path.write_text(f"{first}\n" if first != "{" else "x\n{\n")
        assert read_prompts([], str(path), None)[-1].conversation == first


# Nothing is a traceback.

FIELDS = ["messages", "role", "content", "weight", "prompt", "response", "question", "answer"]
FIELDS += ["conversations", "from", "value", "instruction", "input", "output", "completion"]
FIELDS += ["text", "choices", "\ud83d", "\n"]
PIECES = [b"\n", b"\r\n", b'{"prompt": "', b'"}', b'"response": "', b'", ', b"\xef\xbb\xbf", b"NaN"]
PIECES += [GOOD.encode(), b"\\ud83d", b"{", b"[", b"]", b",", b"\x1f\x8b", b"PAR1"]
PIECES += [b"BZh9", b"\x28\xb5\x2f\xfd", b"prompt,response\n", b"a,b\n", b"1e999"]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["user", "assistant", "gpt", "", "\ud83d", "\x00", "\u2028"])
    | st.text(st.characters(codec=None, exclude_categories=())),  # halves of pairs, too
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(["rows.jsonl", "rows.json", "rows.txt", "rows.csv", "rows.tsv", "rows"])


def check_all_doors(path: Path, tokenizer: Tokenizer) -> None:
    """Reads a file wherever one is read, and encodes what was read."""
    template = make_template("llada", tokenizer)
    setup = Setup(epath.Path(), Config(), tokenizer, template)

    def tokens(path: Path) -> None:
        for prompt in read_prompts([], str(path), None):
            encode_prompt(prompt, setup)

    def table(path: Path) -> None:
        config = DataConfig(files=str(path), on_bad_row="skip", length=64)
        make_table(open_rows(config, epath.Path(), "train"), config, tokenizer)

    for door in (
        tokens,
        table,
        trained,
        lambda path: trained(path, on_bad_row="skip"),
        lambda path: trained(path, pretraining=True),
        evaluated,
        lambda path: judged_rows(path, "a row"),
        lambda path: list(parse_files([path], parse_multiple_choice)),
    ):
        said = ""
        try:
            door(path)
        except ConfigError as error:
            said = str(error)
        assert "\n" not in said


@settings(max_examples=200, deadline=None)
@given(name=NAMES, rows=st.lists(JSON, max_size=3))
def test_no_json_is_a_traceback(tmp_path_factory, llada, name: str, rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("fuzz") / name
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    check_all_doors(path, llada)
    path.write_text("\n".join(map(to_line, rows)), encoding="utf-8")
    check_all_doors(path, llada)


@settings(max_examples=200, deadline=None)
@given(
    name=NAMES,
    content=st.lists(
        st.binary(max_size=8) | st.sampled_from(PIECES),
        max_size=8,
    ),
)
def test_no_bytes_are_a_traceback(tmp_path_factory, llada, name: str, content: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("fuzz") / name
    path.write_bytes(b"".join(content))
    check_all_doors(path, llada)


def test_lines_of_json_are_read_back(tmp_path: Path) -> None:
    """Half a pair becomes its escape, and a line separator stays in its line."""
    rows = [{"a": "\ud83d\u2028 \U0001f600", "\udc00": [None, 1.5]}, {"b": "ü"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(to_line(row) + "\n" for row in rows), encoding="utf-8")
    assert list(parse_files([path], lambda row, origin: row)) == rows
    assert find_files(str(path), "--file") == [epath.Path(path)]
