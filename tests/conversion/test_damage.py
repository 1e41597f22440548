"""Damaged folders of published weights: one clear error, nothing written, the source untouched.

Whole folders that describe something else are in `test_mismatches.py`, interrupted and damaged
work directories in `test_kills.py` and `test_left_behind.py`.
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from tests.conversion.folders import INDEX, read_weights, write_folder, write_weights
from tests.conversion.refusals import command, refusal, the_error_of

FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
WTE, LN_F = "model.transformer.wte.weight", "model.transformer.ln_f.weight"
Q0, UP1 = (f"model.transformer.blocks.{name}_proj.weight" for name in ("0.q", "1.up"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "source", shards=2)
    return tmp_path / "source"


def replace_header(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Lets `change` edit the header of a safetensors file; the data stays."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    write_header(file, json.dumps(header).encode(), content[8 + length :])


def write_header(file: Path, text: bytes, data: bytes = b"") -> None:
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def edit_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


# --- files ---


@pytest.mark.parametrize("left", [0, 1, 7, 8, 9, 100, 0.3, 0.6, 0.999, -1])
def test_a_truncated_file_is_refused(folder: Path, left: float) -> None:
    """Cut inside the length, inside the header, at several places inside the data."""
    content = (folder / SECOND).read_bytes()
    kept = content[: left if isinstance(left, int) else int(left * len(content))]
    (folder / SECOND).write_bytes(kept)
    text = refusal(folder)
    assert text.startswith(f"{folder / SECOND} must be a whole safetensors file, but ")
    assert text.endswith("; copy or download it again")
    assert f"{len(kept):,}" in text  # of how many bytes the speech is


def test_a_pointer_of_git_lfs_is_named(folder: Path) -> None:
    """A clone without LFS holds these: as a header's length the first letters mean exabytes."""
    (folder / SECOND).write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4976698672\n"
    )
    assert refusal(folder) == (
        f"{folder / SECOND} is a pointer of Git LFS, not the file that it stands for; run git lfs "
        "pull in its repository, or download the file"
    )


def test_bytes_behind_the_data_are_refused(folder: Path) -> None:
    with (folder / SECOND).open("ab") as file:
        file.write(b"\0")
    assert f"{SECOND} must be a whole safetensors file" in refusal(folder)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b'{"\xff": 1}',
        b"[" * 200_000,
        b'{"x": 1}',
        b'{"x": null}',
        b'{"x": {"dtype": "F32", "shape": [2]}}',
        b'{"x": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}',
        b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 9]}}',
        b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, "end"]}}',
        b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, null]}}',
    ],
)
def test_a_header_that_is_none_is_refused(folder: Path, text: bytes) -> None:
    write_header(folder / FIRST, text, b"\0" * 8)
    assert f"{FIRST} must be a whole safetensors file, but its header cannot be read" in refusal(
        folder
    )


@pytest.mark.parametrize("length", [2**64 - 1, 2**62, 100_000_001, 10**6])
def test_an_absurd_header_length_is_refused(folder: Path, length: int) -> None:
    """Before it is read: nobody allocates exabytes."""
    content = (folder / FIRST).read_bytes()
    (folder / FIRST).write_bytes(struct.pack("<Q", length) + content[8:])
    assert f"its header cannot have {length:,} bytes in a file of {len(content):,}" in refusal(
        folder
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry.update(data_offsets=[value - 4 for value in entry["data_offsets"]]),
        lambda entry: entry.update(data_offsets=[value + 4 for value in entry["data_offsets"]]),
        lambda entry: entry.update(data_offsets=[0, 4]),
        lambda entry: entry.update(data_offsets=entry["data_offsets"][::-1]),
        lambda entry: entry.update(shape=[33]),
        lambda entry: entry.update(shape=[10**30]),
        lambda entry: entry.update(shape=[-32]),
        lambda entry: entry.update(dtype="BF16"),
    ],
    ids=["overlap", "gap", "short", "backwards", "shape", "huge", "negative", "dtype"],
)
def test_a_tensor_must_lie_where_its_shape_puts_it(
    folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    file = FIRST if (folder / FIRST).read_bytes().count(LN_F.encode()) else SECOND
    replace_header(folder / file, lambda header: change(header[LN_F]))
    text = refusal(folder)
    assert f"{file} must be a whole safetensors file" in text
    assert "does not lie where its shape and its neighbours put it" in text


def test_a_name_that_stands_twice_in_a_header_is_refused(folder: Path) -> None:
    content = (folder / FIRST).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + length].strip(), content[8 + length :]
    again = json.dumps({WTE: json.loads(header)[WTE]}).encode()
    write_header(folder / FIRST, header[:-1] + b"," + again[1:], data)
    assert f"{FIRST} must be a whole safetensors file, but its header names {WTE} twice" in refusal(
        folder
    )


def test_a_folder_in_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / FIRST).unlink()
    (folder / FIRST).mkdir()
    assert f"{folder / FIRST} must be a file that can be read" in refusal(folder)


def test_lost_files_are_all_named(folder: Path) -> None:
    (folder / FIRST).unlink()
    assert f"must hold the files that its index names, {FIRST} not found" in refusal(folder)
    (folder / SECOND).unlink()
    assert f"{FIRST}, {SECOND} not found; copy or download" in refusal(folder)


def test_weights_without_an_index_or_at_all_are_refused(folder: Path) -> None:
    (folder / INDEX).unlink()
    assert f"must hold {INDEX} beside its 2 safetensors file(s)" in refusal(folder)
    (folder / FIRST).unlink()
    (folder / SECOND).unlink()
    assert "it holds none; copy the weights there" in refusal(folder)


def test_two_sets_of_weights_in_a_folder_are_refused(folder: Path) -> None:
    save_file(read_weights(folder), folder / "model.safetensors")
    assert f"must hold model.safetensors or {INDEX}, it holds both" in refusal(folder)


# --- the index ---


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe\xfd", b"[" * 200_000])
@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_what_is_no_json_is_refused(folder: Path, name: str, text: bytes) -> None:
    (folder / name).write_bytes(text)
    assert refusal(folder).startswith(f"{folder / name} must be JSON, but ")


def test_json_that_is_no_object_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")
    assert f"{folder / 'config.json'} must be a JSON object, got list" in refusal(folder)


@pytest.mark.parametrize(
    "where",
    [None, [], {WTE: 1}, {WTE: "../other.safetensors"}, {WTE: "/etc/passwd"}],
    ids=str,
)
def test_an_index_without_a_map_to_files_of_the_folder_is_refused(
    folder: Path, where: object
) -> None:
    edit_json(folder / INDEX, lambda index: index.update(weight_map=where))
    assert f"{INDEX} must map tensor names to files of its folder" in refusal(folder)


def test_every_lie_of_the_index_is_named(folder: Path) -> None:
    def change(index: dict[str, Any]) -> None:
        where = index["weight_map"]
        del where[Q0]
        where[UP1] = FIRST if where[UP1] == SECOND else SECOND
        where["model.transformer.extra.weight"] = FIRST

    told = json.loads((folder / INDEX).read_text())["weight_map"]
    wrong = FIRST if told[UP1] == SECOND else SECOND
    edit_json(folder / INDEX, change)
    assert refusal(folder).splitlines() == [
        f"{folder}: the index does not fit its files:",
        f"  {UP1} must be in {wrong}, it is in {told[UP1]}",
        f"  model.transformer.extra.weight must be in {FIRST}, it is in none of the files",
        f"  {Q0} is in {told[Q0]}, but not in the index",
    ]


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    """Which is meant? The index says one, PyTorch users' loaders take the last that they read."""
    tensors = read_weights(folder)
    where = json.loads((folder / INDEX).read_text())["weight_map"]
    held = {name: tensors[name] for name, file in where.items() if file == SECOND}
    save_file(held | {WTE: tensors[WTE] * 2}, folder / SECOND)
    assert where[WTE] == FIRST
    assert f"\n  {WTE} is in {FIRST} and in {SECOND}" in refusal(folder)


# --- as users see it ---


def test_the_command_line_shows_one_line_and_exits_with_2(folder: Path) -> None:
    tensors = read_weights(folder)
    tensors["odd"] = tensors.pop(WTE)
    write_weights(folder, tensors)
    text = the_error_of(command("import", folder, folder.parent / "run"))
    lines = [line.strip() for line in refusal(folder).splitlines()]
    assert text == "; ".join(lines).replace(":; ", ": ")
    assert f"missing: {WTE}; unexpected: odd; nothing was written" in text
