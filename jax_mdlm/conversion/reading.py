"""Parameters as arrays that are read in boxes, whatever holds them: the source of every walk.

Published tensors and the checkpoints of a work directory are read the same way, by devices, an
import, an export: one box at a time, so that no host holds a whole model.
"""

import contextlib
import dataclasses
import functools
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from etils import epath

from jax_mdlm.config import ConfigError, ModelConfig
from jax_mdlm.containers import ParamRow
from jax_mdlm.conversion.boxes import (
    FLOATS,
    BothLayouts,
    copy,
    count_not_finite,
    flat_index,
    transpose,
)
from jax_mdlm.conversion.shards import Tensor
from jax_mdlm.conversion.source import Source
from jax_mdlm.model import table
from jax_mdlm.parameters import has_adapters, open_base
from jax_mdlm.storage import CheckpointError, Checkpoints, reaching
from jax_mdlm.storage.arrays import Index, StoredArray, box_shape, run_in_threads
from jax_mdlm.workdir import choose_step, open_existing


class Meter:
    """What a process has read, and what of it was not finite; filled by several threads.

    Attributes:
      num_bytes: Of tensors, as stored.
      not_finite: Values that are NaN or infinite, by tensor name.
    """

    def __init__(self, note: Callable[[int], None] = lambda num_bytes: None) -> None:
        """`note` is called with the bytes of every box, from any thread."""
        self.num_bytes = 0
        self.not_finite: dict[str, int] = {}
        self._note = note
        self._lock = threading.Lock()

    def add(self, name: str, num_bytes: int, not_finite: int) -> None:
        """Counts a box."""
        with self._lock:
            self.num_bytes += num_bytes
            if not_finite:
                self.not_finite[name] = self.not_finite.get(name, 0) + not_finite
        self._note(num_bytes)

    def warnings(self) -> list[str]:
        """Gives a line per tensor with values that are not finite."""
        return [
            f"{name} holds {count:,} values that are NaN or infinite"
            for name, count in sorted(self.not_finite.items())
        ]


@dataclasses.dataclass(frozen=True)
class PublishedArray:
    """A row of the parameter table, in our layout, read from PyTorch's tensors.

    Attributes:
      layouts: Of the row.
      tensors: By layer.
      dtype: To which values are cast; widening is exact.
      meter: Counts what is read.
    """

    layouts: BothLayouts
    tensors: tuple[Tensor, ...]
    dtype: np.dtype
    meter: Meter

    @property
    def shape(self) -> tuple[int, ...]:
        """Is that of our array."""
        return table.shape(self.layouts.row, self.layouts.config)

    def read(self, index: Index, out: np.ndarray) -> None:
        """Reads as `StoredArray` says; several layers in parallel."""
        layers, own = self.layouts.by_layer(index)
        work = [
            functools.partial(self._read_layer, self.tensors[layer], own, part)
            for layer, part in zip(layers, out if self.layouts.stacked else out[None], strict=True)
        ]
        if len(work) == 1:
            work[0]()
        else:
            run_in_threads([(function, 0) for function in work])

    def _read_layer(self, tensor: Tensor, own: Index, out: np.ndarray, _: object = None) -> None:
        first, last = self.layouts.torch_rows(own)
        rows = tensor.rows(first, last)
        moved = rows.nbytes
        cut = self.layouts.row.num_inputs
        inputs, outputs = own[:cut], own[cut:]
        if cut:
            heads = (outputs[0].stop - outputs[0].start, *self.layouts.outputs[1:])
            whole = rows.reshape(*heads, *self.layouts.layer_shape[:cut])
            part = whole[(slice(None), *outputs[1:], *inputs)]  # a view: rows are contiguous
            rows = part.reshape(math.prod(part.shape[: len(heads)]), -1)
            transpose(rows, out.reshape(-1, rows.shape[0]))
        else:
            rows = rows[(slice(None), *outputs[1:])]
            copy(rows.reshape(out.shape), out)
        self.meter.add(tensor.name, rows.nbytes if tensor.mapped else moved, count_not_finite(out))


def published_arrays(source: Source, dtype: str, meter: Meter) -> dict[ParamRow, PublishedArray]:
    """Opens a source's arrays as `float32` or `bfloat16`, row by row; nothing is read yet."""
    arrays = {}
    for row in table.rows(source.config):
        layouts = BothLayouts(row, source.config)
        tensors = tuple(source.tensors[name] for name in layouts.torch_names)
        arrays[row] = PublishedArray(layouts, tensors, FLOATS[dtype], meter)
    return arrays


@dataclasses.dataclass(frozen=True)
class ChangedArray:
    """A frozen array on disk with what training adds to it; float32, so that it rounds once.

    Attributes:
      weight: The frozen array.
      change: (index, box) -> None; adds to a float32 box of the weight.
    """

    weight: StoredArray
    change: Callable[[Index, np.ndarray], None]
    dtype: np.dtype = FLOATS["float32"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Is that of the weight."""
        return self.weight.shape

    def read(self, index: Index, out: np.ndarray) -> None:
        """Reads as `StoredArray` says; a box is cut as `BothLayouts.boxes` cuts."""
        box = read_float32(self.weight, *index)
        self.change(index, box)
        out[...] = box.reshape(out.shape)


@dataclasses.dataclass(frozen=True)
class QuantizedArray:
    """A quantised parameter on disk, which is read as `values * scale`, in our layout.

    Attributes:
      row: Of the parameter table.
      shape: Of the parameter; a box is cut as `BothLayouts.boxes` cuts.
      values: int8, with matrices as [I, O].
      scale: float32, with an entry where several values share one.
    """

    row: ParamRow
    shape: tuple[int, ...]
    values: StoredArray
    scale: StoredArray
    dtype: np.dtype = FLOATS["float32"]

    def read(self, index: Index, out: np.ndarray) -> None:
        """Reads as `StoredArray` says."""
        index = flat_index(self.row, index)
        shared = (
            slice(0, 1) if size == 1 else part
            for part, size in zip(index, self.scale.shape, strict=True)
        )
        values = read_float32(self.values, *index)
        values *= read_float32(self.scale, *shared)
        out[...] = values.reshape(out.shape)


@contextlib.contextmanager
def opened_params(
    where: Source | epath.Path,
    config: ModelConfig,
    dtype: str,
    meter: Meter | None = None,
    step: int | None = None,
) -> Iterator[tuple[int, Mapping[ParamRow, StoredArray]]]:
    """The parameters of published weights or of a work directory, to be read while it is entered.

    Args:
      where: A source, opened and checked; or a work directory.
      config: The network.
      dtype: `float32` or `bfloat16`, of published values; those of a checkpoint are as they are.
      meter: Counts what is read of published weights.
      step: Which checkpoint; None: the newest.

    Returns:
      Its step, 0 of published weights, and an array a row.

    Raises:
      ConfigError: the work directory has no checkpoint, or not that one.
      CheckpointError: it does not fit the config; or, also while arrays are read, it is damaged.
    """
    if isinstance(where, Source):
        with reaching(os.fspath(where.folder)):
            yield 0, published_arrays(where, dtype, meter or Meter())
        return
    with contextlib.closing(open_existing(where)) as checkpoints:
        step = choose_step(checkpoints, step)
        try:
            yield step, stored_params(where, checkpoints, step, config)
        except ConfigError:
            raise
        except (OSError, ValueError) as error:  # what `StoredArray.read` raises
            raise checkpoints.damaged(step, error) from error


def stored_params(
    workdir: epath.Path, checkpoints: Checkpoints, step: int, config: ModelConfig
) -> dict[ParamRow, StoredArray]:
    """Opens the parameters of a step, row by row; a LoRA run's with its adapters added.

    The sum is made box by box, so that memory does not grow with the model.

    Raises:
      CheckpointError: files are missing or damaged, or of other shapes than the config's.
    """
    stored = checkpoints.arrays(step)
    if not has_adapters(checkpoints, step):
        return _by_row(stored, config)
    base, about = open_base(workdir)
    with contextlib.closing(base):
        params = _by_row(base.arrays(0), config)
    for row, weight in params.items():
        name = "adapters/" + "/".join(row.path)
        if f"{name}/down" in stored:
            change = _low_rank(row, stored[f"{name}/down"], stored[f"{name}/up"], about.scale)
            params[row] = ChangedArray(weight, change)
        elif f"{name}/slack" in stored:
            change = _one_token(row, read_float32(stored[f"{name}/slack"]), about.slack_id)
            params[row] = ChangedArray(weight, change)
    return params


def _by_row(stored: Mapping[str, StoredArray], config: ModelConfig) -> dict[ParamRow, StoredArray]:
    def find(row: ParamRow) -> StoredArray | None:
        name, shape = "params/" + "/".join(row.path), table.shape(row, config)
        values, scale = stored.get(f"{name}/values"), stored.get(f"{name}/scale")
        if values is None or scale is None:
            return stored.get(name)
        fits = values.shape == table.flat_shape(row, shape)
        return QuantizedArray(row, shape if fits else values.shape, values, scale)

    found = {row: find(row) for row in table.rows(config)}
    wrong = [
        f"{'/'.join(row.path)} is {array.shape if array else 'missing'}"
        for row, array in found.items()
        if array is None or array.shape != table.shape(row, config)
    ]
    if wrong:
        raise CheckpointError(f"the checkpoint does not fit its config.json: {'; '.join(wrong)}")
    return {row: array for row, array in found.items() if array is not None}


def _low_rank(
    row: ParamRow, down: StoredArray, up: StoredArray, scale: float
) -> Callable[[Index, np.ndarray], None]:
    """Adds `scale * down up`, [layers, I, r] x [layers, r, O]."""

    def change(index: Index, box: np.ndarray) -> None:
        layers, inputs, outputs = flat_index(row, index)
        left = read_float32(down, layers, inputs)
        right = read_float32(up, layers, slice(0, up.shape[1]), outputs)
        box += (scale * np.matmul(left, right)).reshape(box.shape)

    return change


def _one_token(row: ParamRow, added: np.ndarray, token: int) -> Callable[[Index, np.ndarray], None]:
    """Adds float32 [D] to the row (of the head: column) of a token."""
    axis = row.axes.index("vocab")

    def change(index: Index, box: np.ndarray) -> None:
        tokens, embed = index[axis], index[1 - axis]
        if tokens.start <= token < tokens.stop:
            np.moveaxis(box, axis, 0)[token - tokens.start] += added[embed]

    return change


def read_float32(array: StoredArray, *index: slice) -> np.ndarray:
    """Reads a box as float32; axes that `index` leaves out are read whole."""
    index += tuple(slice(0, size) for size in array.shape[len(index) :])
    own = np.empty(box_shape(index), array.dtype)
    array.read(index, own)
    return own.astype(np.float32, copy=False)
