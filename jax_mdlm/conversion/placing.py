"""Parameters on their way to the devices: a layer at a time, in the form in which they are used.

A model is read once. While a layer is cast or quantised and put in its place, the next ones are
read: what is held beside the finished parameters, on the host and on every device, are a few layers
of one array, whatever the size of the model.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import ParamRow, Params
from jax_mdlm.conversion.boxes import copy
from jax_mdlm.model import table
from jax_mdlm.model.form import Form, abstract_held, is_cpu
from jax_mdlm.sharding import Layout
from jax_mdlm.storage.arrays import Index, StoredArray, box_shape

Arrays = Mapping[ParamRow, StoredArray]
Note = Callable[[int], None]

_AHEAD = 2  # parts that are read while one is put in its place
_PART_BYTES = 64 * 2**20  # of a part of an array without layers
_ALIGNED = 64  # bytes


def place_params(
    arrays: Arrays,
    config: ModelConfig,
    place: Callable[[ParamRow], Sharding],
    dtype: str,
    note: Note = lambda num_bytes: None,
) -> Params:
    """Parameters as they are trained.

    Every process reads only the slices that its devices hold.

    Args:
      arrays: Row by row; see `reading`.
      config: The network.
      place: The sharding of a row's array.
      dtype: `float32` or `bfloat16`, of the result.
      note: Is called with the bytes of every slice that was read.

    Returns:
      Nested dict as from `model.init`.
    """
    targets = {}
    for row, array in arrays.items():
        there, shape = place(row), table.shape(row, config)
        axis, parts = _parts(row, array, shape, there)
        if is_cpu(there):  # where it stays, an array is read as a whole
            axis, parts = 0, [_all(shape)]
        whole = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=there)
        targets[row] = _Target(array, axis, parts, there, there, whole.dtype, whole=whole)
    return table.tree({row.path: value for (row, _), value in _placed(targets, note).items()})


def place_prepared(
    arrays: Arrays,
    config: ModelConfig,
    layout: Layout,
    form: Form,
    note: Note = lambda num_bytes: None,
    *,
    stacked: bool = False,
) -> Params:
    """Parameters as the sampler reads them: what `model.prepare` makes, without a second copy.

    Args:
      arrays: Row by row; see `reading`.
      config: The network.
      layout: Where they go.
      form: What they are held in.
      note: Is called with the bytes of every slice that was read.
      stacked: Whether layers stay in one array on a CPU too, as training wants them.
    """
    on_cpu = is_cpu(layout.replicated)
    targets = {}
    for row, array in arrays.items():
        axes, shape = table.flat_axes(row), table.shape(row, config)
        quantizer = form.quantizer(row, on_cpu=on_cpu)
        apart = on_cpu and row.stacked and not stacked
        # Axes that flattening joins are cut by the first of them.
        kept = tuple(axis if axis in axes[apart:] else None for axis in row.axes)
        stored = layout.sharding(kept)
        axis, parts = _parts(row, array, shape, stored)
        if apart:
            parts = [_all(shape, (0, layer, layer + 1)) for layer in range(config.layers)]
        elif on_cpu and quantizer is None:
            parts = [_all(shape)]
        targets[row] = _Target(
            array,
            axis,
            parts,
            stored,
            layout.sharding(axes[apart:]),
            array.dtype if quantizer else jnp.dtype(config.compute_dtype),
            lambda shape, row=row, apart=apart: table.flat_shape(row, shape)[apart:],
            quantizer,
            None if apart else abstract_held(row, config, form, layout),
        )
    found = _placed(targets, note)
    leaves = {row.path: value for (row, part), value in found.items() if part is None}
    if stacked or not on_cpu:
        return table.tree(leaves)
    blocks: list[dict[str, Any]] = [{} for _ in range(config.layers)]
    for (row, layer), value in found.items():
        if layer is not None:
            blocks[layer][row.path[-1]] = value
    return table.tree(leaves) | {"blocks": blocks}


@dataclasses.dataclass(frozen=True)
class _Target:
    """How an array gets into its place.

    Attributes:
      array: What is read.
      axis: Along which it is cut into parts.
      parts: Boxes of it, ascending.
      stored: How a part, as it is stored, is cut over the devices.
      place: The same once it has the shape of its place.
      dtype: In which it goes there.
      flatten: A shape as it is stored -> the shape in its place.
      form: What makes its final form there; None: it has it.
      whole: The finished array, as shapes; None: every part stands for itself.
    """

    array: StoredArray
    axis: int
    parts: Sequence[Index]
    stored: Sharding
    place: Sharding
    dtype: np.dtype
    flatten: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda shape: shape
    form: Callable[[jax.Array], Any] | None = None
    whole: Any = None

    def read(self, index: Index, note: Note) -> jax.Array:
        """A part in its place; a process reads the slices that its devices hold."""
        shape = box_shape(index)
        slices: dict[tuple[tuple[int, int], ...], list[Any]] = {}
        for device, part in self.stored.addressable_devices_indices_map(shape).items():
            bounds = [own.indices(size) for own, size in zip(part or (), shape, strict=True)]
            slices.setdefault(tuple(bound[:2] for bound in bounds), []).append(device)
        made = []
        for bounds, devices in slices.items():
            box = tuple(
                slice(whole.start + first, whole.start + last)
                for whole, (first, last) in zip(index, bounds, strict=True)
            )
            host = _empty(box_shape(box), self.array.dtype)
            self.array.read(box, host)
            note(host.nbytes)
            if host.dtype != self.dtype:
                cast = _empty(host.shape, self.dtype)
                copy(host, cast)
                host = cast
            host = host.reshape(self.flatten(host.shape))
            made += [jax.device_put(host, device) for device in devices]
            jax.block_until_ready(made)  # or the next slice would be read beside this one
        return jax.make_array_from_single_device_arrays(self.flatten(shape), self.place, made)

    def put(self, into: Any, part: jax.Array, index: Index) -> Any:
        """The array with one more part."""
        held = part if self.form is None else self.form(part)
        if self.whole is None:
            return jax.block_until_ready(held)
        there = jax.tree.map(lambda leaf: leaf.sharding, self.whole)
        if len(self.parts) == 1:
            return jax.block_until_ready(jax.device_put(held, there))
        if into is None:
            into = jax.tree.map(
                lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), self.whole
            )
        write = jax.jit(_write, static_argnums=3, donate_argnums=0, out_shardings=there)
        return jax.block_until_ready(write(into, held, index[self.axis].start, self.axis))


def _write(into: Any, part: Any, start: jax.Array, axis: int) -> Any:
    return jax.tree.map(
        lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis),
        into,
        part,
    )


def _placed(
    targets: Mapping[ParamRow, _Target], note: Note
) -> dict[tuple[ParamRow, int | None], Any]:
    """Finished arrays by row; parts that stand for themselves by row and number."""
    # Layer by layer, as published files hold them; arrays without layers where they come.
    order: list[tuple[ParamRow, int]] = []
    for stacked, rows in itertools.groupby(targets, lambda row: row.stacked):
        own = [[(row, part) for part in range(len(targets[row].parts))] for row in rows]
        order += (
            [one for layer in itertools.zip_longest(*own) for one in layer if one]
            if stacked
            else itertools.chain.from_iterable(own)
        )

    def read(item: tuple[ParamRow, int]) -> jax.Array:
        row, number = item
        return targets[row].read(targets[row].parts[number], note)

    found: dict[tuple[ParamRow, int | None], Any] = {}
    for (row, number), part in _ahead(read, order):
        target = targets[row]
        key = (row, number if target.whole is None else None)
        found[key] = target.put(found.pop(key, None), part, target.parts[number])
    return found


def _ahead(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Calls a function in threads, a few items ahead of who takes the results, in order."""
    with concurrent.futures.ThreadPoolExecutor(_AHEAD) as threads:
        running: collections.deque[tuple[Any, Any]] = collections.deque()
        try:
            for item in items:
                running.append((item, threads.submit(function, item)))
                if len(running) > _AHEAD:
                    item, future = running.popleft()
                    yield item, future.result()
            while running:
                item, future = running.popleft()
                yield item, future.result()
        finally:
            threads.shutdown(cancel_futures=True)


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that begins where XLA on CPU wants it: it is taken as it is, and not copied."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNED, np.uint8)
    first = -memory.ctypes.data % _ALIGNED
    return memory[first : first + size].view(dtype).reshape(shape)


def _parts(
    row: ParamRow, array: StoredArray, shape: tuple[int, ...], stored: Sharding
) -> tuple[int, list[Index]]:
    """The axis along which an array is read in parts, and the parts: layers, or tokens.

    One where the mesh cuts that axis: a part would stand on some devices only.
    """
    axis = 0 if row.stacked or row.is_vector else row.axes.index("vocab")
    if (row.is_vector and not row.stacked) or stored.shard_shape(shape)[axis] != shape[axis]:
        return axis, [_all(shape)]
    each = array.dtype.itemsize * (np.prod(shape) // shape[axis])
    step = 1 if row.stacked else max(1, int(_PART_BYTES // each))
    bounds = [(first, min(first + step, shape[axis])) for first in range(0, shape[axis], step)]
    return axis, [_all(shape, (axis, *pair)) for pair in bounds]


def _all(shape: tuple[int, ...], cut: tuple[int, int, int] | None = None) -> Index:
    """The box of a whole array, or of some of an axis: (axis, first, after the last)."""
    box = [slice(0, size) for size in shape]
    if cut:
        axis, first, last = cut
        box[axis] = slice(first, last)
    return tuple(box)
