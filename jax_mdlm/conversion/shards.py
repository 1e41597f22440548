"""Safetensors files: which tensors they hold, and any rows of one without the rest.

The format is eight bytes of header length, a JSON header, and the tensors' bytes. Local files are
mapped into memory, remote ones are read in ranges; writing streams, so that a 5 GB shard never
exists in memory. The `safetensors` package can do neither, and is the oracle in the tests.
"""

import collections
import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from jax_mdlm.config import ConfigError
from jax_mdlm.storage import read_range

DTYPES: dict[str, np.dtype] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_POINTER = b"version "  # how a clone without Git LFS has a large file: `version https://git-lfs...`
_MOST_HEADER = 100_000_000  # bytes; the limit of the format


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor on disk.

    Attributes:
      name: As published.
      shape: As stored, `[out, in]` for matrices.
      dtype: Its name in safetensors, e.g. `BF16`.
      file: The file that holds it, for messages.
      rows: (start, stop) -> array [stop - start, ...]; a view of the file where it is mapped.
      mapped: Whether `rows` copies nothing, so that only what is used of it is read.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str
    rows: Callable[[int, int], np.ndarray] = dataclasses.field(repr=False, compare=False)
    mapped: bool = True


def read_header(path: epath.Path) -> dict[str, Tensor]:
    """Opens the tensors of a safetensors file; reads only its header.

    Raises:
      ConfigError: the file is missing, truncated, or no safetensors file.
    """

    def damaged(reason: str) -> ConfigError:
        return ConfigError(
            f"{path} must be a whole safetensors file, but {reason}; copy or download it again"
        )

    # The bytes before the tensors.
    try:
        size = path.stat().length
        beginning = read_range(path, 0, min(8, size))
        if beginning == _POINTER:
            raise ConfigError(
                f"{path} is a pointer of Git LFS, not the file that it stands for; run git lfs "
                "pull in its repository, or download the file"
            )
        length = int.from_bytes(beginning, "little")
        if size < 8 or length > min(size - 8, _MOST_HEADER):
            raise damaged(f"its header cannot have {length:,} bytes in a file of {size:,}")
        text = read_range(path, 8, 8 + length)
    except FileNotFoundError:
        raise ConfigError(f"{path} was not found; copy or download it again") from None
    except OSError as error:
        raise ConfigError(f"{path} must be a file that can be read, but {error}") from error
    # The header: names, dtypes, shapes, places.
    repeated: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = collections.Counter(name for name, _ in pairs)
        repeated.extend(name for name, count in names.items() if count > 1)
        return dict(pairs)

    try:
        header = json.loads(text, object_pairs_hook=once)
        entries = {name: _entry(entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise damaged("its header cannot be read") from None
    if repeated:
        raise damaged(f"its header names {repeated[0]} twice")
    # Every byte belongs to one tensor.
    position = 0
    for name, (dtype, shape, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        wide = DTYPES[dtype].itemsize * math.prod(shape) if dtype in DTYPES else end - begin
        if begin != position or end - begin != wide:
            raise damaged(f"{name} does not lie where its shape and its neighbours put it")
        position = end
    if position != size - 8 - length:
        raise damaged(f"it has {size:,} bytes, its header needs {8 + length + position:,}")
    # Local values are mapped, remote ones read in ranges.
    mapped = os.path.exists(path)

    def rows_of(dtype: str, shape: tuple[int, ...], begin: int) -> Callable[..., np.ndarray]:
        kind = DTYPES.get(dtype, np.dtype(np.uint8))
        start, width = 8 + length + begin, kind.itemsize * math.prod(shape[1:])

        def rows(first: int, last: int) -> np.ndarray:
            begin, num_bytes = start + first * width, (last - first) * width
            if mapped and num_bytes:
                # Only what is read, and no longer: pages of a map count as the process's memory.
                piece = np.asarray(np.memmap(path, np.uint8, "r", begin, (num_bytes,)))
            else:
                piece = np.frombuffer(read_range(path, begin, begin + num_bytes), np.uint8)
            return piece.view(kind).reshape(last - first, *shape[1:])

        return rows

    return {
        name: Tensor(name, shape, dtype, path.name, rows_of(dtype, shape, begin), mapped)
        for name, (dtype, shape, begin, _) in entries.items()
    }


def _entry(entry: Mapping[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    """Gives dtype, shape, begin, end."""
    begin, end = entry["data_offsets"]
    return str(entry["dtype"]), tuple(map(int, entry["shape"])), int(begin), int(end)


@dataclasses.dataclass(frozen=True)
class Shard:
    """A safetensors file that is to be written.

    Attributes:
      file: Its name.
      header: The bytes before the tensors.
      offsets: Where in the file each tensor begins, in the order of the file.
      size: Bytes of the whole file.
    """

    file: str
    header: bytes
    offsets: Mapping[str, int]
    size: int


def plan_shards(
    tensors: Sequence[tuple[str, tuple[int, ...]]], dtype: str, most_bytes: int
) -> list[Shard]:
    """Distributes tensors over files of at most `most_bytes` (one tensor at least), in order.

    Args:
      tensors: (name, shape) in the order that they are written.
      dtype: `bfloat16` or `float32`, of all of them.
      most_bytes: Of tensors in a file.

    Returns:
      The files, named as Hugging Face names them.
    """
    kind = next(name for name, known in DTYPES.items() if known.name == dtype)
    groups: list[dict[str, Any]] = [{}]
    filled = 0
    for name, shape in tensors:
        size = DTYPES[kind].itemsize * math.prod(shape)
        if groups[-1] and filled + size > most_bytes:
            groups.append({})
            filled = 0
        offsets = [filled, filled + size]
        groups[-1][name] = {"dtype": kind, "shape": list(shape), "data_offsets": offsets}
        filled += size
    if len(groups) == 1:
        return [_shard(SINGLE, groups[0])]
    return [
        _shard(f"model-{number:05}-of-{len(groups):05}.safetensors", group)
        for number, group in enumerate(groups, start=1)
    ]


def _shard(file: str, entries: Mapping[str, Any]) -> Shard:
    # PyTorch users' loaders look for this metadata.
    header = {"__metadata__": {"format": "pt"}, **entries}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    begins = {name: 8 + len(text) + entry["data_offsets"][0] for name, entry in entries.items()}
    last = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    return Shard(file, len(text).to_bytes(8, "little") + text, begins, 8 + len(text) + last)


def index_of(plan: Sequence[Shard]) -> str:
    """Makes `model.safetensors.index.json` of several files."""
    where = {name: shard.file for shard in plan for name in shard.offsets}
    size = sum(shard.size - len(shard.header) for shard in plan)
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
    return json.dumps(index, indent=2) + "\n"
