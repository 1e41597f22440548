"""Published weights straight into their places: no intermediate copy, no whole model on a host.

Every process reads only the slices that its devices hold, one slice of a stacked array at a time.
"""

import math
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from jax_mdlm.containers import ParamRow, Params
from jax_mdlm.conversion import boxes
from jax_mdlm.conversion.boxes import Axes
from jax_mdlm.conversion.shards import Tensor
from jax_mdlm.conversion.source import Source
from jax_mdlm.model import table
from jax_mdlm.storage import run_pieces


class Meter:
    """What a process has read, and what of it was not finite; filled by several threads.

    Attributes:
      num_bytes: Of tensors, as stored.
      not_finite: Values that are NaN or infinite, by tensor name.
    """

    def __init__(self, note: Callable[[int], None] = lambda num_bytes: None) -> None:
        """`note` is called with the bytes of every piece, from any thread."""
        self.num_bytes = 0
        self.not_finite: dict[str, int] = {}
        self._note = note
        self._lock = threading.Lock()

    def add(self, name: str, num_bytes: int, not_finite: int) -> None:
        """Counts a piece."""
        with self._lock:
            self.num_bytes += num_bytes
            if not_finite:
                self.not_finite[name] = self.not_finite.get(name, 0) + not_finite
        self._note(num_bytes)

    def warnings(self) -> list[str]:
        """A line per tensor with values that are not finite."""
        return [
            f"{name} holds {count:,} values that are NaN or infinite"
            for name, count in sorted(self.not_finite.items())
        ]


def read_box(
    tensor: Tensor, axes: Axes, index: tuple[slice, ...], out: np.ndarray, meter: Meter
) -> None:
    """Reads a box of one layer.

    Args:
      tensor: On disk.
      axes: Of its row.
      index: A slice per axis of our layout, "layers" not counted.
      out: The box, C-contiguous, of the dtype that is wanted.
      meter: Counts what was read.
    """
    cut = len(axes.inputs)
    inputs, outputs = index[:cut], index[cut:]
    first = outputs[0].start * axes.rows_each
    rows = tensor.rows(first, outputs[0].stop * axes.rows_each)
    fetched = rows.nbytes
    if cut:
        heads = (outputs[0].stop - outputs[0].start, *axes.outputs[1:])
        whole = rows.reshape(*heads, *axes.inputs)  # a view: rows are contiguous
        part = whole[(slice(None), *outputs[1:], *inputs)]
        rows = part.reshape(math.prod(part.shape[: len(heads)]), -1)
    else:
        rows = rows[(slice(None), *outputs[1:])]
    boxes.from_torch(rows, axes, out)
    meter.add(tensor.name, rows.nbytes if tensor.mapped else fetched, boxes.count_not_finite(out))


def read_params(
    source: Source,
    place: Callable[[ParamRow], Sharding],
    dtype: str,
    meter: Meter | None = None,
) -> Params:
    """The parameters of a source, every array made in its place.

    The host holds one device's slice of one stacked array beside what the devices hold.

    Args:
      source: Opened and checked.
      place: The sharding of a row's array.
      dtype: `float32` or `bfloat16`, of the arrays; widening is exact.
      meter: Counts what this process reads.

    Returns:
      Nested dict as from `model.init`.
    """
    meter = meter or Meter()
    kind = boxes.BFLOAT16 if dtype == "bfloat16" else boxes.FLOAT32
    rows = table.rows(source.config)
    arrays = {row.path: _read_row(source, row, place(row), kind, meter) for row in rows}
    return table.tree(arrays)


def _read_row(
    source: Source, row: ParamRow, place: Sharding, dtype: np.dtype, meter: Meter
) -> jax.Array:
    shape = table.shape(row, source.config)
    slices: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in place.addressable_devices_indices_map(shape).items():
        bounds = tuple(
            part.indices(size)[:2] for part, size in zip(index or (), shape, strict=True)
        )
        slices.setdefault(bounds, []).append(device)
    parts = []
    for bounds, devices in slices.items():
        host = _read_slice(source, row, bounds, dtype, meter)
        parts += [jax.device_put(host, device) for device in devices]
        jax.block_until_ready(parts)  # or the next slice would be read beside this one
    return jax.make_array_from_single_device_arrays(shape, place, parts)


def _read_slice(
    source: Source,
    row: ParamRow,
    bounds: tuple[tuple[int, int], ...],
    dtype: np.dtype,
    meter: Meter,
) -> np.ndarray:
    """One device's slice of a row, layers in parallel."""
    axes = boxes.axes_of(row, source.config)
    host = np.empty([stop - start for start, stop in bounds], dtype)
    stacked = boxes.is_stacked(row)
    first, last = bounds[0] if stacked else (0, 1)
    index = tuple(slice(*pair) for pair in bounds[1 if stacked else 0 :])
    tensors = source.layers(row)

    def layer(number: int) -> Callable[[np.ndarray], None]:
        out = host[number - first] if stacked else host
        return lambda _: read_box(tensors[number], axes, index, out, meter)

    run_pieces([(layer(number), 0) for number in range(first, last)])
    return host
