"""Shards: what `prepare` writes for each piece of the sources, in files of NumPy's format.

Encoded rows enter and leave. A shard has, per split, the tokens of its rows and where their pairs
stand among them; of the rows that are held out also the texts, which evaluations ask and show.
Every file is written beside its place and renamed, so that one that has its name is whole, and the
record of a shard comes last: who finds it need not look at the others. The files say nothing of
when, where and by whom they were written.

Not ArrayRecord: a batch of 256 rows of 300 tokens takes 0.4 ms from a mapped array, 2.5 to 3.5 ms
record by record, and what is in a bucket is read by ranges here, where its reader needs a mount.
"""

import dataclasses
import io
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jax_mdlm.data.encode import Encoded
from jax_mdlm.data.examples import Example, Message
from jax_mdlm.data.tokens import HEADER

SPLITS = ("train", "validation")
_PARTIAL = ".partial"


@dataclasses.dataclass(frozen=True)
class ShardRecord:
    """What became of a piece.

    Attributes:
      number: Of the shard.
      source: Number of the source that it belongs to.
      digest: Of the piece that it was made from.
      form: Container and form of its rows, for the log.
      rows: Rows of each split.
      pairs: Prompt-response pairs of each split.
      tokens: Tokens of each split.
      skipped: Malformed rows by kind.
      not_encoded: How many of them were rows of each split, which could not be encoded.
      errors: What was wrong with the first of them.
    """

    number: int
    source: int
    digest: str
    form: str = ""
    rows: Mapping[str, int] = dataclasses.field(default_factory=dict)
    pairs: Mapping[str, int] = dataclasses.field(default_factory=dict)
    tokens: Mapping[str, int] = dataclasses.field(default_factory=dict)
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    not_encoded: Mapping[str, int] = dataclasses.field(default_factory=dict)
    errors: Sequence[str] = ()


def write_shard(
    folder: epath.Path,
    record: ShardRecord,
    encoded: Mapping[str, Encoded],
    held_out: Sequence[tuple[str, Example]],
    hashes: np.ndarray,
) -> ShardRecord:
    """Writes the files of a shard, its record last.

    Args:
      folder: Of the prepared rows.
      record: What is known of it besides its rows.
      encoded: Of each split.
      held_out: Origin and conversation of each row of the split "validation".
      hashes: uint64 [rows]; of the contents of all rows, to find those that are there twice.

    Returns:
      The record as it was written.
    """
    for split, rows in encoded.items():
        pairs = np.column_stack([rows.history, rows.response, rows.repeats, rows.row])
        write_file(shard_file(folder, split, record.number, "tokens"), npy_bytes(rows.tokens))
        write_file(shard_file(folder, split, record.number, "pairs"), npy_bytes(pairs))
    lines = [json.dumps([origin, example]) for origin, example in held_out]
    write_file(texts_file(folder, record.number), "".join(f"{line}\n" for line in lines).encode())
    write_file(_hashes_file(folder, record.number), npy_bytes(hashes))
    record = dataclasses.replace(
        record,
        rows={split: len(np.unique(rows.row)) for split, rows in encoded.items()},
        pairs={split: len(rows.row) for split, rows in encoded.items()},
        tokens={split: len(rows.tokens) for split, rows in encoded.items()},
    )
    write_file(_record_file(folder, record.number), json.dumps(vars(record)).encode())
    return record


def read_record(folder: epath.Path, number: int) -> ShardRecord | None:
    """The record of a whole shard; None where there is none."""
    path = _record_file(folder, number)
    if not path.exists():
        return None
    return ShardRecord(**json.loads(path.read_text()))


def read_pairs(folder: epath.Path, split: str, number: int) -> Encoded:
    """Where the pairs of a shard stand; no tokens."""
    content = shard_file(folder, split, number, "pairs").read_bytes()
    columns = np.load(io.BytesIO(content), allow_pickle=False)
    none = np.empty(0, np.int32)
    return Encoded(none, columns[:, :2], columns[:, 2:4], columns[:, 4], columns[:, 5])


def read_hashes(folder: epath.Path, number: int) -> np.ndarray:
    """Hashes of the contents of a shard's rows, uint64 [rows]."""
    return np.load(io.BytesIO(_hashes_file(folder, number).read_bytes()), allow_pickle=False)


def read_texts(folder: epath.Path, number: int) -> list[tuple[str, Example]]:
    """Origins and conversations of the rows that a shard holds out."""
    lines = texts_file(folder, number).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [(origin, tuple(Message(*message) for message in example)) for origin, example in rows]


def shard_file(folder: epath.Path, split: str, number: int, what: str) -> epath.Path:
    """One of the files of a shard."""
    return folder / split / f"{number:05d}.{what}.npy"


def texts_file(folder: epath.Path, number: int) -> epath.Path:
    """The file of held-out texts."""
    return folder / "validation" / f"{number:05d}.jsonl"


def work_folder(folder: epath.Path) -> epath.Path:
    """What only the preparation needs; it is gone afterwards."""
    return folder / "work"


def write_file(path: epath.Path, content: bytes) -> None:
    """Writes a file whole or not at all; a file of the same name is replaced.

    Two processes that write the same do not disturb each other.
    """
    if "://" in os.fspath(path):  # an object appears when it is whole
        path.write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{_PARTIAL}")
    try:
        aside.write_bytes(content)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def remove_partial(folder: epath.Path) -> None:
    """Removes what killed processes left."""
    for path in folder.iterdir() if folder.exists() else ():
        if is_partial(path):
            path.unlink(missing_ok=True)


def is_partial(path: epath.Path) -> bool:
    """Whether a file is one that a killed process left."""
    return path.name.endswith(_PARTIAL)


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as a file, its values from byte `HEADER` on."""
    file = io.BytesIO()
    file.write(npy_header(array.dtype, array.shape))
    file.write(np.ascontiguousarray(array).data)
    return file.getvalue()


def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The first `HEADER` bytes of a file that `np.load` reads."""
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    about = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)
    assert file.tell() == HEADER
    return file.getvalue()


def _record_file(folder: epath.Path, number: int) -> epath.Path:
    return work_folder(folder) / f"{number:05d}.json"


def _hashes_file(folder: epath.Path, number: int) -> epath.Path:
    return work_folder(folder) / f"{number:05d}.hashes.npy"
