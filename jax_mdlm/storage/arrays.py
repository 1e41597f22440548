"""Arrays that are read and written in boxes, and never exist as a whole.

Orbax keeps its folders as zarr arrays, which TensorStore opens, local or in a bucket. The one form
that it costs several copies is the simplest: an uncompressed array, whose chunks are plain files of
values. Those are read and written directly: half the time of an import was spent in those copies. A
`Streamed` leaf has a type handler of its own: Orbax keeps the folder's form, its description and
the atomic rename, and threads of ours fill the chunks.
"""

import asyncio
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from orbax.checkpoint import future

# A box of an array: a slice with start and stop per axis.
Index = tuple[slice, ...]

# Threads that fill and write boxes; each holds one buffer, so this bounds the memory too.
WORKERS = min(4, os.cpu_count() or 1)
_DESCRIPTION = ".zarray"
_CACHE_BYTES = 256 * 2**20  # of chunks that are larger than the boxes: they are not read twice


class StoredArray(Protocol):
    """An array that is read in boxes, wherever it is."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Is that of the whole array."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Is NumPy's or ml_dtypes'."""
        ...

    def read(self, index: Index, out: np.ndarray) -> None:
        """Reads a box into `out`, which is C-contiguous and of the array's dtype.

        Raises:
          OSError: a file is missing or short.
          ValueError: TensorStore cannot read it.
        """
        ...


def box_shape(index: Index) -> tuple[int, ...]:
    """Gives the shape of a box."""
    return tuple(part.stop - part.start for part in index)


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
        """Reads as `StoredArray` says."""
        for name, inside, outside in self._chunks(index):
            part = out[outside]
            with open(self.place / name, "rb", buffering=0) as file:
                self._check_size(name, os.fstat(file.fileno()).st_size)
                if part.shape == self.chunk and part.flags.c_contiguous:
                    file.readinto(memoryview(_bytes(part)))
                else:
                    values = np.memmap(file, np.uint8, "r").view(self.dtype)
                    as_bits(part)[...] = as_bits(values.reshape(self.chunk))[inside]

    def check(self) -> None:
        """Raises OSError if a chunk's file is missing or short; reads none."""
        for name, *_ in self._chunks(tuple(slice(0, length) for length in self.shape)):
            self._check_size(name, os.stat(self.place / name).st_size)

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
        """Gives file name, place in the chunk and in the box, of all chunks that a box touches."""
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

    def _check_size(self, name: str, found: int) -> None:
        size = self.dtype.itemsize * math.prod(self.chunk)
        if found != size:
            raise OSError(f"{self.place / name} must have {size:,} bytes, it has {found:,}")


@dataclasses.dataclass(frozen=True)
class OpenedArray:
    """Any other zarr array, through TensorStore."""

    store: Any = dataclasses.field(repr=False)
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, index: Index, out: np.ndarray) -> None:
        """Reads as `StoredArray` says."""
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
    """Opens arrays of an Orbax folder (the one that holds `_METADATA`); reads no values.

    Names are those of `Checkpoints.shapes`: `params/wte`.

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
    prints a traceback for each of them later on. It does not name the file either. With `values`
    the sizes of the chunks' files are checked as well; in a bucket nothing is.

    Raises:
      OSError: a file is missing or short.
      ValueError: a description is damaged.
    """
    if "://" in os.fspath(folder) or (folder / "manifest.ocdbt").exists():
        return
    for leaf in json.loads((folder / "_METADATA").read_text())["tree_metadata"].values():
        place = folder / ".".join(str(part["key"]) for part in leaf["key_metadata"])
        if leaf["value_metadata"].get("skip_deserialize"):
            continue  # an empty node, no array
        if not any((place / name).exists() for name in (_DESCRIPTION, "zarr.json")):
            raise FileNotFoundError(f"{place / _DESCRIPTION} is missing")
        array = _open_raw(place)
        if values and array is not None:
            array.check()


@dataclasses.dataclass(frozen=True)
class Streamed:
    """A leaf that `Checkpoints.save` writes box by box; Orbax keeps the folder and its rename.

    Attributes:
      array: Gives the values.
      chunk: Shape of a stored chunk; no two boxes share one, also not in two processes.
      boxes: Those that this process writes; all processes together cover the array.
    """

    array: StoredArray
    chunk: tuple[int, ...]
    boxes: tuple[Index, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Is that of the whole array; Orbax asks its leaves."""
        return self.array.shape


class StreamedHandler(ocp.type_handlers.TypeHandler):
    """Writes `Streamed` leaves as plain zarr arrays; Orbax's own handler reads them back."""

    def typestr(self) -> str:
        """Names the leaf in the folder's description, so that it is restored as an array."""
        return "jax.Array"

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> list[future.Future]:
        """Starts writing; the future ends when all boxes of this process are on disk."""

        async def write() -> None:
            for info in infos:
                await info.await_path_creation()
            await asyncio.to_thread(_write, values, [info.path for info in infos])

        return [future.CommitFutureAwaitingContractedSignals(write(), name="streamed_arrays")]

    async def metadata(self, infos: Any) -> Any:
        """Not called: folders are described by Orbax's own handler."""
        raise RuntimeError("streamed arrays are only written")

    async def deserialize(self, infos: Any, args: Any = None) -> Any:
        """Not called: folders are read by Orbax's own handler."""
        raise RuntimeError("streamed arrays are only written")


def _write(leaves: Sequence[Streamed], places: Sequence[epath.Path]) -> None:
    def fill(leaf: Streamed, target: RawArray, index: Index, buffer: np.ndarray) -> None:
        box = buffer.view(target.dtype).reshape(box_shape(index))
        leaf.array.read(index, box)
        target.write(index, box)

    work = []
    for leaf, place in zip(leaves, places, strict=True):
        target = create(place, leaf.shape, leaf.chunk, leaf.array.dtype)
        for index in leaf.boxes:
            size = target.dtype.itemsize * math.prod(box_shape(index))
            work.append((functools.partial(fill, leaf, target, index), size))
    run_in_threads(work)


def run_in_threads(
    work: Sequence[tuple[Callable[[np.ndarray], None], int]], workers: int = WORKERS
) -> None:
    """Calls functions in threads, each with a buffer that its thread uses again.

    A fresh buffer per box would cost a page fault per 4 KiB, as much time as filling it.

    Args:
      work: (function, bytes it needs); taken up in this order. Buffers are uint8 arrays.
      workers: Threads; memory is at most this many times the largest box.

    Raises:
      Exception: the first that a function raised; what was not begun then is left out.
    """
    own = threading.local()

    def call(function: Callable[[np.ndarray], None], size: int) -> None:
        if not hasattr(own, "buffer") or own.buffer.size < size:
            own.buffer = None  # first, so that never two are held
            own.buffer = np.empty(size, np.uint8)
        function(own.buffer[:size])

    with concurrent.futures.ThreadPoolExecutor(workers) as threads:
        running = [threads.submit(call, *item) for item in work]
        concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_EXCEPTION)
        threads.shutdown(cancel_futures=True)
    for one in running:
        one.result()


def as_bits(values: np.ndarray) -> np.ndarray:
    """Views memory as integers: NumPy copies bfloat16 value by value through Python's hooks."""
    return values.view(f"u{values.dtype.itemsize}")


def _open_raw(place: epath.Path) -> RawArray | None:
    """Opens a local array whose chunks are plain files; None for any other."""
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
    """Names a folder as TensorStore does."""
    text = os.fspath(place)
    return f"{text}/" if "://" in text else {"driver": "file", "path": f"{text}/"}


def _bytes(values: np.ndarray) -> Any:
    return values.reshape(-1).view(np.uint8)
