"""Arrays that are written piece by piece, and never exist as a whole.

A `Streamed` leaf stands in a tree that `Checkpoints.save` writes: Orbax keeps the folder's form
and its atomic rename, the pieces are filled and written by a few threads.
"""

import asyncio
import concurrent.futures
import dataclasses
import math
import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import future

from jax_mdlm.storage import chunks
from jax_mdlm.storage.chunks import Index

# Threads that fill and write pieces; each holds one buffer, so this bounds the memory too.
WORKERS = min(4, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A box of an array.

    Attributes:
      index: A slice with start and stop per axis; covers whole chunks.
      fill: Writes the box's values into a C-contiguous array of its shape; called in a thread.
    """

    index: Index
    fill: Callable[[np.ndarray], None]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the box."""
        return tuple(part.stop - part.start for part in self.index)


@dataclasses.dataclass(frozen=True)
class Streamed:
    """A leaf that `Checkpoints.save` writes from its pieces.

    Attributes:
      shape: Of the whole array.
      dtype: NumPy's or ml_dtypes'.
      chunks: Shape of a stored chunk; no two pieces share one, also not in two processes.
      pieces: Those that this process writes; all processes together cover the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...]
    pieces: tuple[Piece, ...]


def run_pieces(
    work: Sequence[tuple[Callable[[np.ndarray], None], int]], workers: int = WORKERS
) -> None:
    """Calls functions in threads, each with a buffer that its thread uses again.

    A fresh buffer per piece would cost a page fault per 4 KiB, as much time as filling it.

    Args:
      work: (function, bytes it needs); taken up in this order. Buffers are uint8 arrays.
      workers: Threads; memory is at most this many times the largest piece.

    Raises:
      Exception: the first that a function raised; what was not begun then is left out.
    """
    waiting: queue.SimpleQueue[tuple[Callable[[np.ndarray], None], int]] = queue.SimpleQueue()
    for item in work:
        waiting.put(item)
    stop = threading.Event()

    def drain() -> None:
        buffer = np.empty(0, np.uint8)
        try:
            while not stop.is_set():
                function, size = waiting.get_nowait()
                if buffer.size < size:
                    buffer = np.empty(0, np.uint8)  # first, so that never two are held
                    buffer = np.empty(size, np.uint8)
                function(buffer[:size])
        except queue.Empty:
            return
        except BaseException:
            stop.set()
            raise

    with concurrent.futures.ThreadPoolExecutor(max(1, workers)) as threads:
        running = [threads.submit(drain) for _ in range(min(workers, len(work)))]
    for thread in running:
        thread.result()


class StreamedHandler(ocp.type_handlers.TypeHandler):
    """Writes `Streamed` leaves as plain zarr arrays; Orbax's own handler reads them back."""

    def typestr(self) -> str:
        """What the folder's description calls the leaf, so that it is restored as an array."""
        return "jax.Array"

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> list[future.Future]:
        """Starts writing; the future ends when all pieces of this process are on disk."""

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
    work = []
    for leaf, place in zip(leaves, places, strict=True):
        array = chunks.create(place, leaf.shape, leaf.chunks, leaf.dtype)
        size = np.dtype(leaf.dtype).itemsize
        for piece in leaf.pieces:
            work.append((_writer(array, leaf, piece), size * math.prod(piece.shape)))
    run_pieces(work)


def _writer(array: chunks.RawArray, leaf: Streamed, piece: Piece) -> Callable[[np.ndarray], None]:
    def write(buffer: np.ndarray) -> None:
        box = buffer.view(leaf.dtype).reshape(piece.shape)
        piece.fill(box)
        array.write(piece.index, box)

    return write
