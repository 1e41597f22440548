"""Boxes of arrays on disk: zarr arrays as Orbax keeps them, read and written without the rest.

TensorStore opens whatever Orbax writes, local or in a bucket. The one form that it costs several
copies is the simplest: a local, uncompressed zarr array, whose chunks are plain files of values.
Those are read and written directly: half the time of an import was spent in those copies.
"""

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import tensorstore as ts
from etils import epath

Index = tuple[slice, ...]

_DESCRIPTION = ".zarray"
_CACHE_BYTES = 256 * 2**20  # of chunks that are larger than the boxes: they are not read twice


class StoredArray(Protocol):
    """An array on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole array."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """NumPy's or ml_dtypes'."""
        ...

    def read(self, index: Index, out: np.ndarray) -> None:
        """Reads a box into `out`, which is C-contiguous and of the stored dtype.

        Raises:
          OSError: a file is missing or short.
          ValueError: TensorStore cannot read it.
        """
        ...


@dataclasses.dataclass(frozen=True)
class RawArray:
    """An uncompressed zarr array: a file of values per chunk.

    Attributes:
      place: Its folder; writing works in buckets too.
      shape: Of the whole array.
      chunk: Shape of a chunk; those at the upper edges are stored whole.
      dtype: NumPy's or ml_dtypes'.
    """

    place: epath.Path
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype

    def read(self, index: Index, out: np.ndarray) -> None:
        """See `StoredArray`."""
        size = self.dtype.itemsize * math.prod(self.chunk)
        for name, inside, outside in self._chunks(index):
            path = self.place / name
            part = out[outside]
            with open(path, "rb", buffering=0) as file:
                _check_size(path, os.fstat(file.fileno()).st_size, size)
                if part.shape == self.chunk and part.flags.c_contiguous:
                    file.readinto(memoryview(_bytes(part)))
                else:
                    values = np.memmap(file, np.uint8, "r").view(self.dtype)
                    _bits(part)[...] = _bits(values.reshape(self.chunk))[inside]

    def check(self) -> None:
        """Raises OSError if a chunk's file is missing or short; reads none."""
        size = self.dtype.itemsize * math.prod(self.chunk)
        for name, *_ in self._chunks(tuple(slice(0, length) for length in self.shape)):
            _check_size(self.place / name, os.stat(self.place / name).st_size, size)

    def write(self, index: Index, box: np.ndarray) -> None:
        """Writes a box that covers whole chunks (to the array's edges)."""
        local = "://" not in os.fspath(self.place)
        for name, inside, outside in self._chunks(index):
            part = box[outside]
            if part.shape != self.chunk:
                whole = np.zeros(self.chunk, self.dtype)
                whole[inside] = part
                part = whole
            values = memoryview(_bytes(np.ascontiguousarray(part)))
            if local:
                with open(self.place / name, "wb", buffering=0) as file:
                    while values:
                        values = values[file.write(values) :]
            else:
                ts.KvStore.open(_spec(self.place)).result().write(name, bytes(values)).result()

    def _chunks(self, index: Index) -> Iterator[tuple[str, Index, Index]]:
        """File name, place in the chunk, place in the box, of every chunk that a box touches."""
        spans = [
            range(part.start // size, -(-part.stop // size))
            for part, size in zip(index, self.chunk, strict=True)
        ]
        for numbers in itertools.product(*spans):
            inside, outside = [], []
            for number, size, part in zip(numbers, self.chunk, index, strict=True):
                begin = number * size
                first, last = max(begin, part.start), min(begin + size, part.stop)
                inside.append(slice(first - begin, last - begin))
                outside.append(slice(first - part.start, last - part.start))
            yield ".".join(map(str, numbers)), tuple(inside), tuple(outside)


@dataclasses.dataclass(frozen=True)
class OpenedArray:
    """Any other zarr array, through TensorStore."""

    store: Any = dataclasses.field(repr=False)
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, index: Index, out: np.ndarray) -> None:
        """See `StoredArray`."""
        ts.array(out, dtype=self.store.dtype, copy=False).write(self.store[index]).result()


def create(
    place: epath.Path, shape: tuple[int, ...], chunk: tuple[int, ...], dtype: np.dtype
) -> RawArray:
    """Describes a new array; several processes may describe the same one."""
    dtype = np.dtype(dtype)
    description = {
        "zarr_format": 2,
        "shape": shape,
        "chunks": chunk,
        "dtype": dtype.name if dtype == ml_dtypes.bfloat16 else dtype.str,
        "compressor": None,
        "filters": None,
        "order": "C",
        "fill_value": None,
        "dimension_separator": ".",
    }
    place.mkdir(parents=True, exist_ok=True)
    (place / _DESCRIPTION).write_text(json.dumps(description))
    return RawArray(place, shape, chunk, dtype)


def open_arrays(folder: epath.Path, names: Iterable[str]) -> dict[str, StoredArray]:
    """Opens arrays of an Orbax folder (the one that holds `_METADATA`).

    Args:
      folder: Local, `gs://` or `s3://`.
      names: As in `Checkpoints.shapes`: `params/wte`.

    Returns:
      An array per name; nothing but their descriptions has been read.

    Raises:
      ValueError: TensorStore cannot open one.
    """
    described = folder / "_METADATA"
    zarr3 = described.exists() and json.loads(described.read_text()).get("use_zarr3", False)
    packed = (folder / "manifest.ocdbt").exists()
    context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
    arrays: dict[str, StoredArray] = {}
    for name in names:
        key = name.replace("/", ".")
        raw = None if packed else _open_raw(folder / key)
        if raw is not None:
            arrays[name] = raw
            continue
        place: Any = _spec(folder / key)
        if packed:
            place = {"driver": "ocdbt", "base": _spec(folder), "path": f"{key}/"}
        spec = {
            "driver": "zarr3" if zarr3 else "zarr",
            "kvstore": place,
            "fill_missing_data_reads": False,  # a lost chunk is an error, not zeros
        }
        store = ts.open(spec, open=True, read=True, context=context).result()
        arrays[name] = OpenedArray(store, tuple(store.shape), np.dtype(store.dtype.numpy_dtype))
    return arrays


def check_files(folder: epath.Path, *, values: bool) -> None:
    """Checks the plain arrays of a local folder of Orbax's before Orbax reads them.

    Orbax reads arrays side by side: where one fails, it leaves the others running, and Python
    prints a traceback for each of them later on. It does not name the file either.

    Args:
      folder: The one that holds `_METADATA`; in a bucket nothing is checked.
      values: Also the sizes of the chunks' files, not only the descriptions.

    Raises:
      OSError: a file is missing or short.
      ValueError: a description is damaged.
    """
    if "://" in os.fspath(folder) or (folder / "manifest.ocdbt").exists():
        return
    described = json.loads((folder / "_METADATA").read_text())
    for leaf in described["tree_metadata"].values():
        place = folder / ".".join(str(part["key"]) for part in leaf["key_metadata"])
        if leaf["value_metadata"].get("skip_deserialize"):
            continue  # an empty node, no array
        if not any((place / name).exists() for name in (_DESCRIPTION, "zarr.json")):
            raise FileNotFoundError(f"{place / _DESCRIPTION} is missing")
        array = _open_raw(place)
        if values and array is not None:
            array.check()


def _open_raw(place: epath.Path) -> RawArray | None:
    """The array if it is local and its chunks are plain files, else None."""
    path = place / _DESCRIPTION
    if "://" in os.fspath(place) or not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        plain = found.get("compressor") is None and not found.get("filters")
        if not plain or found["order"] != "C" or found.get("dimension_separator", ".") != ".":
            return None
        kind = found["dtype"]
        dtype = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
        return RawArray(place, tuple(found["shape"]), tuple(found["chunks"]), dtype)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} does not describe an array: {error}") from error


def _spec(place: epath.Path) -> Any:
    """How TensorStore calls a folder."""
    text = os.fspath(place)
    return f"{text}/" if "://" in text else {"driver": "file", "path": f"{text}/"}


def _check_size(path: epath.Path, found: int, size: int) -> None:
    if found != size:
        raise OSError(f"{path} must have {size:,} bytes, it has {found:,}")


def _bytes(values: np.ndarray) -> Any:
    return values.reshape(-1).view(np.uint8)


def _bits(values: np.ndarray) -> np.ndarray:
    """The same memory as integers: NumPy copies bfloat16 value by value through Python's hooks."""
    return values.view(f"u{values.dtype.itemsize}")
