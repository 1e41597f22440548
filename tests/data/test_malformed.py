"""Files that are damaged, empty or wrong: one line that names the file, and the row where one is.

Each entry: the file's name, its bytes, where the line says it is, and what it says.
"""

import bz2
import gzip
import io
import json
import pickle
import sqlite3
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import feather, parquet

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data.rows import read_files, read_rows

GOOD = b'{"prompt": "a", "response": "b"}\n'
LONG = b"".join(b'{"prompt": "%d", "response": "b"}\n' % number for number in range(9999))
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}


def row(**fields: Any) -> bytes:
    return GOOD + json.dumps(fields).encode() + b"\n"


def chat(*turns: Any) -> bytes:
    return row(messages=list(turns))


def share(*turns: Any) -> bytes:
    return row(conversations=list(turns))


def stored(*columns: tuple[str, list[Any]], **format: Any) -> bytes:
    written = io.BytesIO()
    names, values = zip(*columns)
    parquet.write_table(pyarrow.table([*values], list(names)), written, **format)
    return written.getvalue()


def packed_up(kind: str) -> bytes:
    written = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(written, "w") as archive:
            archive.writestr("rows.jsonl", GOOD)
    else:
        with tarfile.open(fileobj=written, mode=kind) as archive:
            entry = tarfile.TarInfo("rows.jsonl")
            entry.size = len(GOOD)
            archive.addfile(entry, io.BytesIO(GOOD))
    return written.getvalue()


def arrow() -> bytes:
    written = io.BytesIO()
    feather.write_feather(pyarrow.table({"prompt": ["a"]}), written)
    return written.getvalue()


def database(folder: Path) -> bytes:
    with sqlite3.connect(folder / "made") as made:
        made.execute("create table rows (prompt text)")
    made.close()
    return (folder / "made").read_bytes()


ZSTD = pyarrow.compress(LONG, "zstd", asbytes=True)
TABLE = stored(("prompt", ["a"] * 9), ("response", ["b"] * 9))
EMPTY = stored(("prompt", pyarrow.array([], pyarrow.string())))
LIST = "must be a list with at least one message, got"

FILES: list[tuple[str, bytes, str, str]] = [
    # packed
    ("cut.jsonl.gz", gzip.compress(LONG)[:500], "", "is damaged or cut off (Compressed file ended"),
    ("cut.jsonl.bz2", bz2.compress(LONG)[:500], "", "is damaged or cut off (Compressed file ended"),
    ("cut.jsonl.zst", ZSTD[:500], "", "is damaged or cut off (Truncated compressed stream"),
    ("bad.jsonl.gz", gzip.compress(LONG)[:-8] + b"12345678", "", "is damaged or cut off (CRC"),
    ("bad.gz", b"\x1f\x8b\x08\x00junk junk junk", "", "is damaged or cut off"),
    ("bad.bz2", b"BZh9junk", "", "is damaged or cut off"),
    ("bad.zst", b"\x28\xb5\x2f\xfdjunkjunkjunk", "", "is damaged or cut off"),
    ("none.jsonl.gz", gzip.compress(b""), "", "is empty; give a file with one JSON object a line"),
    ("none.zst", pyarrow.compress(b"", "zstd", asbytes=True), "", "is empty; give a file with"),
    ("none.bz2", bz2.compress(b"\n"), "", "is empty; give a file with"),
    # what is not read
    ("a.xz", b"\xfd7zXZ\x00", "", "is compressed (xz); unpack it first"),
    ("a.zip", packed_up("zip"), "", "is a ZIP archive or a spreadsheet; unpack it"),
    ("a.tar", packed_up("w"), "", "is a tar archive; unpack it"),
    ("a.tar.gz", packed_up("w:gz"), "", "is a tar archive; unpack it"),
    ("a.7z", b"7z\xbc\xaf\x27\x1c\x00\x04", "", "is a 7z archive; unpack it"),
    ("a.pkl", pickle.dumps([{"prompt": "a"}]), "", "is binary (a pickle, a database?), no text"),
    ("a.arrow", arrow(), "", "is an Arrow file; save it as Parquet"),
    ("a.png", b"\x89PNG\r\n\x1a\n\x00\x00", "", "is not UTF-8"),
    ("le.jsonl", ("\ufeff" + GOOD.decode()).encode("utf-16-le"), "", "is UTF-16 text; save it as"),
    ("be.csv", "\ufeffprompt,response\n".encode("utf-16-be"), "", "is UTF-16 text; save it as"),
    ("bare.jsonl", GOOD.decode().encode("utf-16-le"), "", "is UTF-16 text; save it as UTF-8"),
    ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "", "is a Git LFS pointer"),
    ("a.html", b"<!DOCTYPE html>\n<p>", "", "is a web page, not the file itself"),
    ("over.json", b'{\n "data": []\n}\n', "", "is JSON over several lines; write one object a"),
    # arrays
    ("empty.json", b"", "", "is empty; give a file with one JSON object a line"),
    ("none.json", b"[]", "", "is empty; give a file with rows"),
    ("cut.json", b'[{"prompt": "a", "response": "b"}, {"prom', ":2", "is where the file ends"),
    ("open.json", b'[{"prompt": "a", "response": "b"}', ":1", "is where the file ends, within"),
    ("comma.json", b'[{"prompt": "a", "response": "b"},', ":2", "is where the file ends, within"),
    ("more.json", b'[{"prompt": "a", "response": "b"}] x', "", "must be one JSON array, but there"),
    ("numbers.json", b"[1, 2, 3]", ":1", "must be a JSON object, got int; correct the row"),
    ("texts.json", b'["a"]', ":1", "must be a JSON object, got str; correct the row"),
    ("bad.json", b'[{"prompt" "a"}, {}, {}, {}]', ":1", "is not JSON (Expecting ':' delimiter)"),
    ("colon.json", b'[{"prompt": "a"} {"prompt": "b"}]', ":1", "is not JSON (Expecting ',' deli"),
    ("deep.json", b"[{}, " + b"[" * 100_000, ":2", "is not JSON (nested too deeply)"),
    ("bytes.json", b'[{"prompt": "\xff", "response": "b"}]', ":1", "is not UTF-8 (invalid start"),
    # tables
    ("empty.csv", b"", "", "is empty"),
    ("header.csv", b"prompt,response\n", "", "is empty; give a file with rows"),
    ("header.tsv", b"prompt\tresponse\r\n\r\n", "", "is empty; give a file with rows"),
    ("twice.csv", b"prompt,prompt\na,b\n", "", "must name each of its columns once in its first"),
    ("unnamed.csv", b"prompt,,response\na,b,c\n", "", "must name each of its columns once"),
    ("headless.csv", b"what is it?,a cat\nand that?,a dog\n", ":2", "must have messages, prompt"),
    ("ragged.csv", b"prompt,response\na,b\na,b,c\n", ":3", "must have 2 fields as the first line"),
    ("short.tsv", b"prompt\tresponse\na\tb\nc\n", ":3", "must have 2 fields as the first line ha"),
    ("quote.csv", b'prompt,response\na,b\n"a,b\nc,d\n', ":3", "is no record of a table (unexpecte"),
    ("after.csv", b'prompt,response\n"a"x,b\n', ":2", "is no record of a table (',' expected aft"),
    ("bytes.csv", b"prompt,response\n\xff,b\n", ":2", "is not UTF-8"),
    # Parquet
    ("cut.parquet", TABLE[:-20], "", "is damaged or cut off (Parquet magic bytes not found"),
    ("short.parquet", b"PAR1", "", "is damaged or cut off"),
    ("page.parquet", TABLE[:4] + b"\xff" * 40 + TABLE[44:], "", "is damaged or cut off"),
    ("none.parquet", EMPTY, "", "is empty; give a file with rows"),
    ("columns.parquet", stored(("x", ["a"])), ":1", "its fields are: x; correct the row"),
    ("twice.parquet", stored(("x", ["a"]), ("x", ["b"])), "", "must name each of its columns once"),
    ("typed.parquet", stored(("prompt", [1]), ("response", ["b"])), ":1", "a string, got int"),
    ("bytes.parquet", stored(("prompt", [b"a"]), ("response", ["b"])), ":1", "string, got bytes"),
    ("null.parquet", stored(("prompt", ["a"]), ("response", [None])), ":1", "string, got null"),
    # texts
    ("empty.txt", b"", "", "is empty"),
    ("blank.txt", b"\n \n", "", "is empty"),
    ("a.txt", b"once upon a time", ":1", "has only a text, which needs data.pretraining=True"),
    # wrong types in the fields of every form
    ("1.jsonl", row(messages="x"), ":2", f": messages {LIST} str"),
    ("2.jsonl", chat(3), ":2", ": message 1 must be an object with role and content, got int"),
    ("3.jsonl", chat({"role": 1, "content": "a"}), ":2", ": role of message 1 must be a string"),
    ("4.jsonl", chat(USER | {"content": 1}, ANSWER), ":2", ": content of message 1 must be a str"),
    ("5.jsonl", chat(USER | {"content": [{"type": "image"}]}), ":2", "got a part of type 'image'"),
    ("6.jsonl", chat(USER | {"content": [[]]}, ANSWER), ":2", "must be text, got a part of list"),
    ("7.jsonl", chat(USER | {"role": "root"}), ":2", ": role of message 1 must be one of system"),
    ("8.jsonl", chat(USER, ANSWER | {"weight": 2}), ":2", ": weight of message 2 must be 1 (learn"),
    ("9.jsonl", row(prompt=1, response="b"), ":2", ": prompt must be a string, got int"),
    ("10.jsonl", row(prompt="a", response=["b"]), ":2", ": response must be a string, got list"),
    ("11.jsonl", row(question={}, answer="b"), ":2", ": question must be a string, got dict"),
    ("12.jsonl", row(conversations={}), ":2", f": conversations {LIST} dict"),
    ("13.jsonl", share("a"), ":2", ": message 1 must be an object with from and value, got str"),
    ("14.jsonl", share({"from": "human"}), ":2", ": value of message 1 must be a string, got noth"),
    ("15.jsonl", share({"from": "bird", "value": ""}), ":2", ": from of message 1 must be one of"),
    ("16.jsonl", row(instruction=1, output="b"), ":2", ": instruction must be a string, got int"),
    ("17.jsonl", row(instruction="a", input=[], output="b"), ":2", ": input must be a string, got"),
    ("18.jsonl", row(instruction="a", output=None), ":2", ": output must be a string, got null"),
    ("19.jsonl", row(prompt="a", completion=1), ":2", ": completion must be a string, got int"),
    ("20.jsonl", row(prompt=[USER], completion=[{}]), ":2", ": completion: role of message 1 must"),
    ("21.jsonl", row(text=1), ":2", "has only a text, which needs data.pretraining=True"),
    ("22.jsonl", row(chosen="a", rejected="b"), ":2", "is a row of preferences (chosen, rejected)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "place", "said"), FILES, ids=[name for name, *_ in FILES]
)
def test_one_line_says_what_is_wrong(
    tmp_path: Path, name: str, content: bytes, place: str, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    errors = []
    for read in (lambda: read_files(DataConfig(files=str(path))), lambda: read_rows(str(path), "")):
        with pytest.raises(ConfigError) as caught:
            read()
        errors.append(str(caught.value))
    for error in errors:
        assert error.startswith(f"{path}{place}")
        assert said in error
        assert "\n" not in error
        assert len(error) < len(str(path)) + 320


def test_a_database_is_binary(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    path.write_bytes(database(tmp_path))
    with pytest.raises(ConfigError, match=r"rows\.db is binary \(a pickle, a database\?\), no te"):
        read_files(DataConfig(files=str(path)))


def test_a_text_of_pretraining_must_be_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": 1}\n')
    with pytest.raises(ConfigError, match=r":1: text must be a string, got int; correct the line"):
        read_files(DataConfig(files=str(path), pretraining=True))
