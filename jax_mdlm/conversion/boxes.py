"""The same values in two layouts: boxes of our arrays, rows of PyTorch's tensors.

PyTorch keeps a matrix `[out, in]` per layer; ours is `[layers, in axes..., out axes...]`
(`model/table`). Everything here works on one layer and some of its outputs at a time.
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

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)

_MOST_BYTES = 16 * 2**20  # of a box, where an axis allows it: buffers stay in the last cache
_LEAST_CHUNK = 4 * 2**20  # bytes of a stored chunk, where an array has as many
_PARTS = 16  # the embed axis is stored in up to this many chunks: the usual fsdp shards
_TILE = 256  # rows and columns of a block that is transposed in the cache
_SKEW = 32  # values between its rows there
_CHECKED = 2**17  # values whose exponents are looked at together; stays in the cache


@dataclasses.dataclass(frozen=True)
class Axes:
    """The shape of one layer of a row, in and out axes apart.

    Attributes:
      inputs: Lengths of the input axes; empty for vectors and lookup tables.
      outputs: Lengths of the output axes; the first counts the rows of the PyTorch tensor.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """`[out, in]`; for vectors and tables as it is here."""
        if self.inputs:
            return (math.prod(self.outputs), math.prod(self.inputs))
        return self.outputs

    @property
    def rows_each(self) -> int:
        """Rows of the PyTorch tensor per entry of the first output axis."""
        return math.prod(self.outputs[1:]) if self.inputs else 1


def axes_of(row: ParamRow, config: ModelConfig) -> Axes:
    """The axes of a row, without "layers"."""
    shape = layer_shape(row, config)
    return Axes(shape[: row.num_inputs], shape[row.num_inputs :])


def layer_shape(row: ParamRow, config: ModelConfig) -> tuple[int, ...]:
    """The shape of one layer of a row; of the whole array where it is not stacked."""
    shape = table.shape(row, config)
    return shape[1:] if is_stacked(row) else shape


def is_stacked(row: ParamRow) -> bool:
    """Whether the row's array has a "layers" axis."""
    return row.axes[0] == "layers"


def torch_names(row: ParamRow, config: ModelConfig) -> list[str]:
    """The published names of a row's tensors, by layer."""
    count = config.layers if is_stacked(row) else 1
    return [row.torch_name.format(layer=layer) for layer in range(count)]


@dataclasses.dataclass(frozen=True)
class Box:
    """Some outputs of one layer of a row: what is converted at once.

    Attributes:
      row: Of the parameter table.
      layer: Its number; 0 where the row is not stacked.
      start: First entry of the first output axis.
      stop: Behind the last.
      shape: In our layout, "layers" not counted.
    """

    row: ParamRow
    layer: int
    start: int
    stop: int
    shape: tuple[int, ...]

    @property
    def index(self) -> tuple[slice, ...]:
        """Where it stands in our array."""
        cut = self.row.num_inputs
        own = [slice(0, size) for size in self.shape]
        own[cut] = slice(self.start, self.stop)
        return (slice(self.layer, self.layer + 1), *own) if is_stacked(self.row) else tuple(own)

    def torch_rows(self, axes: Axes) -> tuple[int, int]:
        """First and last row of the PyTorch tensor."""
        return self.start * axes.rows_each, self.stop * axes.rows_each


def boxes(row: ParamRow, config: ModelConfig, itemsize: int) -> Iterator[Box]:
    """Cuts a row into boxes, layer by layer; none shares a chunk of `chunk_shape` with another."""
    step = _step(row, config, itemsize)
    shape = list(layer_shape(row, config))
    total = shape[row.num_inputs]
    for layer, start in itertools.product(
        range(config.layers if is_stacked(row) else 1), range(0, total, step)
    ):
        stop = min(start + step, total)
        shape[row.num_inputs] = stop - start
        yield Box(row, layer, start, stop, tuple(shape))


def chunk_shape(row: ParamRow, config: ModelConfig, itemsize: int) -> tuple[int, ...]:
    """Shape of the chunks in which a row is stored: one layer, one box or a run of its values.

    Where the embed axis comes first it is cut, so that a host of a pod, which holds a part of it,
    need not read all.
    """
    shape = list(layer_shape(row, config))
    shape[row.num_inputs] = _step(row, config, itemsize)
    if row.num_inputs and _layer_axes(row)[0] == "embed":
        shape[0] //= _parts(shape[0], itemsize * math.prod(shape))
    return (1, *shape) if is_stacked(row) else tuple(shape)


def _step(row: ParamRow, config: ModelConfig, itemsize: int) -> int:
    """Entries of the first output axis in a box."""
    shape = layer_shape(row, config)
    total, size = shape[row.num_inputs], itemsize * math.prod(shape)
    if _layer_axes(row)[row.num_inputs] == "embed":
        return total // _parts(total, size)
    pieces = min(total, -(-size // _MOST_BYTES))
    even = next(count for count in range(pieces, total + 1) if total % count == 0)
    # Equal pieces where their number is near; else the last one is shorter.
    return total // even if even < 2 * pieces else -(-total // pieces)


def _layer_axes(row: ParamRow) -> tuple[str, ...]:
    return row.axes[1:] if is_stacked(row) else row.axes


def _parts(length: int, size: int) -> int:
    """Equal parts of an axis, at most `_PARTS`, of at least `_LEAST_CHUNK` bytes each."""
    parts = 1
    while parts < _PARTS and length % (2 * parts) == 0 and size // (2 * parts) >= _LEAST_CHUNK:
        parts *= 2
    return parts


def from_torch(rows: np.ndarray, axes: Axes, out: np.ndarray) -> None:
    """Writes rows of a PyTorch tensor into our layout, cast to the dtype of `out`.

    Args:
      rows: [out rows, in], or a piece of a vector or table; any strides.
      axes: Of the row.
      out: The box in our layout, C-contiguous.
    """
    if not axes.inputs:
        _copy(rows.reshape(out.shape), out)
    elif rows.dtype == out.dtype:
        _transpose(rows, out.reshape(-1, rows.shape[0]))
    else:
        flat = out.reshape(-1, rows.shape[0])
        for first in range(0, rows.shape[0], _TILE):
            wide = np.empty((min(_TILE, rows.shape[0] - first), rows.shape[1]), out.dtype)
            _copy(rows[first : first + _TILE], wide)
            _transpose(wide, flat[:, first : first + _TILE])


def to_torch(box: np.ndarray, axes: Axes, out: np.ndarray) -> None:
    """Writes a box of ours as rows of a PyTorch tensor, cast to the dtype of `out`.

    Args:
      box: In our layout, C-contiguous; "layers" not counted.
      axes: Of the row.
      out: [out rows, in], or a piece of a vector or table; C-contiguous.
    """
    if not axes.inputs:
        _copy(box.reshape(out.shape), out)
        return
    flat = box.reshape(-1, out.shape[0])  # [in, out rows]
    if box.dtype == out.dtype:
        _transpose(flat, out)
        return
    for first in range(0, flat.shape[0], _TILE):
        narrow = np.empty((min(_TILE, flat.shape[0] - first), flat.shape[1]), out.dtype)
        _copy(flat[first : first + _TILE], narrow)
        _transpose(narrow, out[:, first : first + _TILE])


def count_not_finite(values: np.ndarray) -> int:
    """How many values are NaN or infinite; `values` is C-contiguous, bfloat16, float16 or float32.

    Looks at the exponent's bits: several times faster than `isfinite` on bfloat16.
    """
    wide = values.dtype.itemsize == 4
    mask = 0x7F800000 if wide else 0x7C00 if values.dtype == np.float16 else 0x7F80
    bits = values.reshape(-1).view(np.uint32 if wide else np.uint16)
    scratch = np.empty(min(_CHECKED, bits.size), bits.dtype)
    found = 0
    for first in range(0, bits.size, _CHECKED):
        part = bits[first : first + _CHECKED]
        seen = np.bitwise_and(part, mask, out=scratch[: part.size])
        if seen.max(initial=0) == mask:
            found += int(np.count_nonzero(seen == mask))
    return found


def _transpose(source: np.ndarray, out: np.ndarray) -> None:
    """out = source.T, in tiles that stay in the cache.

    A tile is copied aside first, with rows of an odd number of cache lines: columns of the matrix
    itself lie a power of two apart and would evict each other.
    """
    source, out = _bits(source), _bits(out)
    aside = np.empty((_TILE, _TILE + _SKEW), source.dtype)
    for i in range(0, source.shape[1], _TILE):
        for j in range(0, source.shape[0], _TILE):
            part = source[j : j + _TILE, i : i + _TILE]
            tile = aside[: part.shape[0], : part.shape[1]]
            tile[...] = part
            out[i : i + _TILE, j : j + _TILE] = tile.T


def _bits(values: np.ndarray) -> np.ndarray:
    """The same memory as integers: NumPy copies bfloat16 value by value through Python's hooks."""
    return values.view(np.uint32 if values.dtype.itemsize == 4 else np.uint16)


def _copy(source: np.ndarray, out: np.ndarray) -> None:
    if source.dtype == out.dtype:
        np.copyto(_bits(out), _bits(source))
    elif source.dtype == BFLOAT16 and out.dtype == FLOAT32:
        bits = out.view(np.uint32)
        np.copyto(bits, source.view(np.uint16))
        np.left_shift(bits, 16, out=bits)  # exact: bfloat16 is the upper half of float32
    else:
        np.copyto(out, source, casting="unsafe")  # float32 -> bfloat16 rounds to nearest even
