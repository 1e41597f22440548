"""The same values in two layouts: boxes of our arrays, rows of PyTorch's tensors.

PyTorch keeps a matrix `[out, in]` per layer; ours is `[layers, in axes..., out axes...]`
(`model/table`). A box is an index of our array: one layer, and some of its outputs.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import ParamRow
from jax_mdlm.model import table
from jax_mdlm.storage.arrays import Index, as_bits

FLOATS = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}

_MOST_BYTES = 16 * 2**20  # of a box, where an axis allows it: buffers stay in the last cache
_LEAST_CHUNK = 4 * 2**20  # bytes of a stored chunk, where an array has as many
_PARTS = 16  # the embed axis is stored in up to this many chunks: the usual fsdp shards
_TILE = 256  # rows and columns of a block that is transposed in the cache
_SKEW = 32  # values between its rows there
_CHECKED = 2**17  # values whose exponents are looked at together; stays in the cache


@dataclasses.dataclass(frozen=True)
class BothLayouts:
    """A row of the parameter table: one array of ours, a tensor of PyTorch's per layer."""

    row: ParamRow
    config: ModelConfig

    @property
    def stacked(self) -> bool:
        """Says whether our array has a "layers" axis."""
        return self.row.axes[0] == "layers"

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """Gives the shape of a layer of ours: input axes (vectors, tables: none), output axes."""
        shape = table.shape(self.row, self.config)
        return shape[1:] if self.stacked else shape

    @property
    def outputs(self) -> tuple[int, ...]:
        """Gives the lengths of the output axes; the first counts the rows of the PyTorch tensor."""
        return self.layer_shape[self.row.num_inputs :]

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """Is `[out, in]`; for vectors and tables as it is here."""
        if not self.row.num_inputs:
            return self.outputs
        return math.prod(self.outputs), math.prod(self.layer_shape[: self.row.num_inputs])

    @property
    def torch_names(self) -> list[str]:
        """Lists the published names of the tensors, by layer."""
        count = self.config.layers if self.stacked else 1
        return [self.row.torch_name.format(layer=layer) for layer in range(count)]

    def by_layer(self, index: Index) -> tuple[range, Index]:
        """Says which layers a box touches, and where it stands in each of them."""
        if self.stacked:
            return range(index[0].start, index[0].stop), index[1:]
        return range(1), index

    def torch_rows(self, own: Index) -> tuple[int, int]:
        """Says which rows of a PyTorch tensor hold a box of its layer: first, after the last."""
        cut = own[self.row.num_inputs]
        each = math.prod(self.outputs[1:]) if self.row.num_inputs else 1
        return cut.start * each, cut.stop * each

    def boxes(self, itemsize: int) -> Iterator[Index]:
        """Cuts our array, layer by layer; no box shares a chunk of `chunk` with another."""
        step, total = self._step(itemsize), self.outputs[0]
        index = [slice(0, size) for size in self.layer_shape]
        layers = range(self.config.layers if self.stacked else 1)
        for layer, start in itertools.product(layers, range(0, total, step)):
            index[self.row.num_inputs] = slice(start, min(start + step, total))
            yield (slice(layer, layer + 1), *index) if self.stacked else tuple(index)

    def chunk(self, itemsize: int) -> tuple[int, ...]:
        """Gives the shape of stored chunks: one layer, one box or a run of its values.

        Where the embed axis comes first it is cut, so that a host of a pod, which holds a part of
        it, need not read all.
        """
        shape = list(self.layer_shape)
        shape[self.row.num_inputs] = self._step(itemsize)
        if self.row.num_inputs and self.row.axes[self.stacked] == "embed":
            shape[0] //= _parts(shape[0], itemsize * math.prod(shape))
        return (1, *shape) if self.stacked else tuple(shape)

    def _step(self, itemsize: int) -> int:
        """Counts the entries of the first output axis in a box."""
        total, size = self.outputs[0], itemsize * math.prod(self.layer_shape)
        if self.row.axes[self.stacked + self.row.num_inputs] == "embed":
            return total // _parts(total, size)
        pieces = min(total, -(-size // _MOST_BYTES))
        even = next(count for count in range(pieces, total + 1) if total % count == 0)
        # Equal pieces where their number is near; else the last one is shorter.
        return total // even if even < 2 * pieces else -(-total // pieces)


def flat_index(row: ParamRow, index: Index) -> Index:
    """The same box of an array whose matrices are [I, O]; axes after the first are whole."""
    if not row.num_inputs:
        return index

    def joined(parts: Index) -> slice:
        each = math.prod(part.stop - part.start for part in parts[1:])
        return slice(parts[0].start * each, parts[0].stop * each)

    first, last = int(row.stacked), row.stacked + row.num_inputs
    return (*index[:first], joined(index[first:last]), joined(index[last:]))


def _parts(length: int, size: int) -> int:
    """Counts equal parts of an axis: at most `_PARTS`, of at least `_LEAST_CHUNK` bytes each."""
    parts = 1
    while parts < _PARTS and length % (2 * parts) == 0 and size // (2 * parts) >= _LEAST_CHUNK:
        parts *= 2
    return parts


def transpose(source: np.ndarray, out: np.ndarray) -> None:
    """Writes `source.T`, cast to the dtype of `out`, in tiles that stay in the cache.

    A tile is copied aside first, with rows of an odd number of cache lines: columns of the matrix
    itself lie a power of two apart and would evict each other.
    """
    if source.dtype != out.dtype:  # whole rows are cast faster than tiles
        for first in range(0, source.shape[0], _TILE):
            rows = source[first : first + _TILE]
            cast = np.empty(rows.shape, out.dtype)
            copy(rows, cast)
            transpose(cast, out[:, first : first + _TILE])
        return
    source, out = as_bits(source), as_bits(out)
    aside = np.empty((_TILE, _TILE + _SKEW), source.dtype)
    for i in range(0, source.shape[1], _TILE):
        for j in range(0, source.shape[0], _TILE):
            part = source[j : j + _TILE, i : i + _TILE]
            tile = aside[: part.shape[0], : part.shape[1]]
            tile[...] = part
            out[i : i + _TILE, j : j + _TILE] = tile.T


def copy(source: np.ndarray, out: np.ndarray) -> None:
    """Writes `source`, cast to the dtype of `out`."""
    if source.dtype == out.dtype:
        np.copyto(as_bits(out), as_bits(source))
    elif source.dtype == FLOATS["bfloat16"] and out.dtype == FLOATS["float32"]:
        bits = out.view(np.uint32)
        np.copyto(bits, source.view(np.uint16))
        np.left_shift(bits, 16, out=bits)  # exact: bfloat16 is the upper half of float32
    else:
        np.copyto(out, source, casting="unsafe")  # float32 -> bfloat16 rounds to nearest even


def count_not_finite(values: np.ndarray) -> int:
    """Counts NaN and infinite values; `values` is C-contiguous, bfloat16, float16 or float32.

    Looks at the exponent's bits: several times faster than `isfinite` on bfloat16.
    """
    bits = as_bits(values.reshape(-1))
    mask = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000}[values.dtype.name]
    scratch = np.empty(min(_CHECKED, bits.size), bits.dtype)
    found = 0
    for first in range(0, bits.size, _CHECKED):
        part = bits[first : first + _CHECKED]
        seen = np.bitwise_and(part, mask, out=scratch[: part.size])
        if seen.max(initial=0) == mask:
            found += int(np.count_nonzero(seen == mask))
    return found
