"""Weights as int8 with a scale per output channel: an 8B model on one chip of 16 GB.

Enters: parameters of any float dtype. Leaves: the same tree, in which every matrix and the
embedding are `Int8`. Only weights are quantised; activations stay in the compute dtype. For
sampling: there is no gradient through these. Weight-only and symmetric it is a product, a cast and
a scale, for which no library is needed.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import ParamRow, Params
from jax_mdlm.model import table
from jax_mdlm.model.weights import Weight


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
