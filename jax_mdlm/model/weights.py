"""Weights in the forms in which they are read: arrays, and what may stand for one.

The network asks three things of a parameter: a product, rows of a table, the whole array. A plain
array gives them by JAX; a `Weight` gives them in its own way, and no layer asks of what kind it is:
`Int8` here, adapters in `lora`.

int8 has a scale per output channel: an 8B model on one chip of 16 GB. Only weights are quantised;
activations stay in the compute dtype. Weight-only and symmetric it is a product, a cast and a
scale, for which no library is needed. It is for sampling: there is no gradient through it.
"""

import abc
import functools
from typing import Any, Literal, Self

import flax.struct
import jax
import jax.numpy as jnp

from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import ParamRow, Params
from jax_mdlm.model import table
from jax_mdlm.sharding import Layout


class Weight(abc.ABC):
    """A parameter that is no array: quantised (`Int8`), or changed (`Adapted`, `WithSlack`).

    It has the `shape` of the array that it stands for.
    """

    def astype(self, dtype: jax.typing.DTypeLike) -> Self:
        """The same with its arrays in another dtype."""
        return jax.tree.map(lambda array: array.astype(dtype), self)

    def multiply(self, x: jax.Array) -> jax.Array:
        """The product of `x` [..., I] with a matrix [I, O]: [..., O], as wide as it is summed."""
        raise TypeError(f"{type(self).__name__} is no matrix of a layer")

    def rows(self, tokens: jax.Array) -> jax.Array:
        """Rows of a table [V, D]: int [B, L] -> [B, L, D]."""
        raise TypeError(f"{type(self).__name__} is no table")

    @abc.abstractmethod
    def merged(self, dtype: jax.typing.DTypeLike) -> jax.Array:
        """The array that it stands for, in `dtype`."""

    def as_head(self) -> Any:
        """What hidden states are multiplied with: itself, where it can multiply."""
        return self


def is_weight(leaf: Any) -> bool:
    """Whether a node of a tree of parameters is a `Weight`; for `is_leaf`."""
    return isinstance(leaf, Weight)


@flax.struct.dataclass
class Int8(Weight):
    """A quantised weight: `values * scale`.

    Attributes:
      values: int8, the shape of the weight; within -127 .. 127.
      scale: float32, 1 on the input axes (the embedding: on the embed axis).
    """

    values: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.values.shape

    def astype(self, dtype: jax.typing.DTypeLike) -> "Int8":
        """Itself: it takes the dtype of what it is multiplied with."""
        return self

    def reshape(self, *shape: int) -> "Int8":
        """The weight in another shape whose input axes are one: [..., I, O]."""
        return Int8(self.values.reshape(shape), self.scale.reshape(*shape[:-2], 1, shape[-1]))

    def multiply(self, x: jax.Array) -> jax.Array:
        """`x (values * scale)` for a matrix: float [..., I] -> float32 [..., O].

        int8 is exact in bfloat16 and the scale does not depend on the input axis: it is applied to
        the float32 sums, so that the product rounds as one with exact weights would.
        """
        # Tied to x: free, XLA would widen the weights once before the sampler's loop and keep them.
        values, x = jax.lax.optimization_barrier((self.values, x))
        product = jnp.matmul(x, values.astype(x.dtype), preferred_element_type=jnp.float32)
        return product * self.scale[0]

    def rows(self, tokens: jax.Array) -> jax.Array:
        """The rows of a lookup table, float32 [..., D]."""
        return jnp.take(self.values, tokens, axis=0) * jnp.take(self.scale, tokens, axis=0)

    def merged(self, dtype: jax.typing.DTypeLike) -> jax.Array:
        """The rounded weight, in `dtype`."""
        return (self.values * self.scale).astype(dtype)


def quantize(params: Params, config: ModelConfig) -> Params:
    """Replaces every matrix and the embedding by int8 and scales; norms stay as they are.

    Symmetric, to the nearest: `scale = max |w| / 127` over the input axes of an output channel,
    `values = round(w / scale)`; the error of a weight is at most half its channel's scale.

    Args:
      params: As from `model.init`, any float dtype.
      config: The network.

    Returns:
      The same nesting; `Int8` in place of matrices.
    """
    rows = table.rows(config)
    return table.tree({row.path: quantize_weight(table.at(params, row.path), row) for row in rows})


@functools.partial(jax.jit, static_argnames="row")
def quantize_weight(weight: jax.Array, row: ParamRow) -> "jax.Array | Int8":
    """One parameter; a vector comes back as it is.

    Args:
      weight: The shape of `row`'s axes.
      row: Its row of the parameter table; static.
    """
    axes = input_axes(row)
    if not axes:
        return weight
    wide = weight.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=axes, keepdims=True) / 127
    scale = jnp.where(scale == 0, 1.0, scale)  # a channel of zeros stays zeros
    return Int8(jnp.round(wide / scale).astype(jnp.int8), scale)


def input_axes(row: ParamRow) -> tuple[int, ...]:
    """The axes that a scale is shared over: empty for vectors, the last for a lookup table."""
    stacked = int(row.axes[0] == "layers")
    if row.num_inputs:
        return tuple(range(stacked, stacked + row.num_inputs))
    return (len(row.axes) - 1,) if len(row.axes) - stacked > 1 else ()


def prepare(
    params: Params,
    config: ModelConfig,
    weights: Literal["full", "int8"] = "full",
    *,
    move_to: jax.sharding.Sharding | None = None,
) -> Params:
    """Casts, quantises, flattens and, on a CPU, unstacks parameters, once before many generations.

    Flattened, a matrix is [I, O]: a TPU would copy the weights of the attention into that form at
    every generation (1.6 GB of LLaDA-8B's int8 weights).

    Args:
      params: As from `init`, any float dtype.
      config: `compute_dtype` is that of the result.
      weights: `int8` quantises matrices and embedding (`model.quantize`).
      move_to: Where the result goes; None = it stays where `params` are.

    Returns:
      Parameters for the sampler. Not for training.
    """
    params = _flatten(
        quantize(params, config) if weights == "int8" else cast(params, config), config
    )
    if move_to is not None:
        params = jax.device_put(params, move_to)
    on_cpu = all(
        device.platform == "cpu" for device in jax.tree.leaves(params)[0].sharding.device_set
    )
    return unstack(params) if on_cpu else params


def cast(params: Params, config: ModelConfig) -> Params:
    """Parameters in the compute dtype; int8 weights and their scales stay."""
    dtype = jnp.dtype(config.compute_dtype)
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype),
        params,
        is_leaf=is_weight,
    )


@functools.partial(jax.jit, static_argnames="config")
def _flatten(params: Params, config: ModelConfig) -> Params:
    leaves = {}
    for row in table.rows(config):
        weight = table.at(params, row.path)
        stacked = int(row.axes[0] == "layers")
        leaves[row.path] = (
            table.matrix(weight, row.num_inputs, stacked) if row.num_inputs else weight
        )
    return table.tree(leaves)


def abstract_prepared(
    config: ModelConfig, weights: Literal["full", "int8"], layout: Layout
) -> Params:
    """Shapes, dtypes and placements of prepared (stacked) parameters; allocates nothing."""

    raw = {
        row.path: jax.ShapeDtypeStruct(table.shape(row, config), config.compute_dtype)
        for row in table.rows(config)
    }
    shapes = jax.eval_shape(
        lambda params: _flatten(quantize(params, config) if weights == "int8" else params, config),
        table.tree(raw),
    )

    def place(row: ParamRow, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        # The scale of a channel has one element where the weight has its inputs.
        axes = (axis if n > 1 else None for axis, n in zip(_axes(row), leaf.shape, strict=True))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout.sharding(tuple(axes)))

    leaves = {
        row.path: jax.tree.map(functools.partial(place, row), table.at(shapes, row.path))
        for row in table.rows(config)
    }
    return table.tree(leaves)


def _axes(row: ParamRow) -> tuple[str, ...]:
    """Logical axes of a flattened parameter: the first of its inputs and of its outputs."""
    if not row.num_inputs:
        return row.axes
    stacked = int(row.axes[0] == "layers")
    return (*row.axes[:stacked], row.axes[stacked], row.axes[stacked + row.num_inputs])


def unstack(params: Params) -> Params:
    """Gives every layer arrays of its own, for a CPU.

    XLA on CPU copies a layer out of stacked arrays at every call, which is a third of the time of a
    call on a small window. Elsewhere stacked layers compile in one piece and are not copied.

    Args:
      params: As from `model.init`.

    Returns:
      The same, with a list of layers for `blocks`; for `encode_window` only. The layers are copies.
    """
    blocks = params["blocks"]
    count = jax.tree.leaves(blocks)[0].shape[0]
    take = jax.jit(lambda blocks, index: jax.tree.map(lambda weight: weight[index], blocks))
    return params | {"blocks": [take(blocks, index) for index in range(count)]}
