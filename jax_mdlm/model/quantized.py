"""Quantised weights: int8 with a scale per output channel, int4 with a scale per group of inputs.

An 8B model takes 8.0 GB in int8 and 4.8 GB in int4: one chip of 16 GB, or a laptop. Only weights
are quantised, symmetrically and to the nearest; activations stay in the compute dtype. That is a
product, a cast and a scale, for which no library is needed.

On a TPU the cast is fused into the product. XLA on CPU writes the cast matrix out before it
multiplies, which takes as long as the product itself, and makes int8 of int4 arrays before a loop
begins. There columns are cast and multiplied in tiles that stay in the cache, as fast as a product
of floats, and two values of four bits are kept in a byte of ours.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp

from jax_mdlm.model.weights import Weight

Bits = Literal[4, 8]

_DTYPES = {8: jnp.int8, 4: jnp.int4}
_TILE = 512  # columns that a CPU casts and multiplies at a time


@flax.struct.dataclass
class Quantized(Weight):
    """A quantised matrix or table: `values * scale`.

    Attributes:
      values: int8 [..., I, O] within -127 .. 127, or int4 within -7 .. 7; of a table [V, D].
        uint8 [..., I / 2, O] (`packed`): two of four bits, of the first half of a group's inputs
        the lower ones.
      scale: float32 [..., G, O], one per group of I / G inputs and output channel (int8: G = 1);
        of a table [V, 1].
    """

    values: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        *stacked, inputs, outputs = self.values.shape
        return (*stacked, inputs * (2 if self.values.dtype == jnp.uint8 else 1), outputs)

    def astype(self, dtype: jax.typing.DTypeLike) -> "Quantized":
        """Itself: it takes the dtype of what it is multiplied with."""
        return self

    def multiply(self, x: jax.Array) -> jax.Array:
        """`x (values * scale)` for a matrix: float [..., I] -> float32 [..., O].

        With one scale a channel it is applied to the float32 sums, so that the product rounds as
        one with exact weights would: int8 is exact in bfloat16. Groups are scaled in float32 before
        the product, and rounded once to the dtype of `x`.
        """
        return _product(x, self.values, self.scale)

    def rows(self, tokens: jax.Array) -> jax.Array:
        """The rows of a lookup table, float32 [..., D]."""
        values = jnp.take(self.values, tokens, axis=0).astype(jnp.float32)
        return values * jnp.take(self.scale, tokens, axis=0)

    def merged(self, dtype: jax.typing.DTypeLike) -> jax.Array:
        """The rounded weight, in `dtype`."""
        groups = self.scale.shape[-2]
        halves = [
            _scaled(half, self.scale).reshape(*half.shape[:-2], groups, -1, half.shape[-1])
            for half in _halves(self.values)
        ]
        return jnp.concatenate(halves, axis=-2).reshape(self.shape).astype(dtype)


@functools.partial(jax.jit, static_argnames=("bits", "group", "packed"))
def quantize_matrix(
    weight: jax.Array, bits: Bits, group: int = 0, *, packed: bool = False
) -> Quantized:
    """A matrix [..., I, O], symmetric and to the nearest.

    `scale = max |w| / (2^(bits - 1) - 1)` over the inputs of a group, `values = round(w / scale)`;
    the error of a weight is at most half a scale.

    Args:
      weight: Any float dtype.
      bits: Of a value.
      group: Inputs that share a scale, if possible; see `group_size`.
      packed: Whether two values of four bits share a byte, where a group has an even number.
    """
    *stacked, inputs, outputs = weight.shape
    size = group_size(inputs, group)
    groups = weight  # XLA on CPU takes three times as long over an axis of one group
    if size < inputs:
        groups = weight.reshape(*stacked, inputs // size, size, outputs)
    values, scale = _rounded(groups, -2, bits)
    if packed and size % 2 == 0:
        low, high = (half.astype(jnp.uint8) for half in jnp.split(values.astype(jnp.int8), 2, -2))
        values = low & 15 | high << 4
    return Quantized(values.reshape(*stacked, -1, outputs), scale.reshape(*stacked, -1, outputs))


@functools.partial(jax.jit, static_argnames="bits")
def quantize_table(table: jax.Array, bits: Bits = 8) -> Quantized:
    """A table [V, D] whose rows are looked up, with a scale a row."""
    return Quantized(*_rounded(table, -1, bits))


def group_size(inputs: int, group: int) -> int:
    """Inputs of a group: the largest divisor of `inputs` that is not above `group`; 0 = all.

    An even one, if there is any.
    """
    most = min(group or inputs, inputs)
    sizes = [size for size in range(1, most + 1) if inputs % size == 0]
    return max([size for size in sizes if size % 2 == 0] or sizes)


def _rounded(weight: jax.Array, axis: int, bits: Bits) -> tuple[jax.Array, jax.Array]:
    # Apart: XLA on CPU takes three times as long where it fuses what it widens with both passes.
    largest = jnp.max(jnp.abs(jax.lax.optimization_barrier(weight)), axis=axis, keepdims=True)
    largest = largest.astype(jnp.float32)
    scale = jnp.where(largest == 0, 1.0, largest / (2 ** (bits - 1) - 1))  # zeros stay zeros
    return jnp.round(weight.astype(jnp.float32) / scale).astype(_DTYPES[bits]), scale


def _scaled(values: jax.Array, scale: jax.Array) -> jax.Array:
    """float32 [..., I, O]; the scales of groups are repeated over their inputs."""
    repeats = values.shape[-2] // scale.shape[-2]
    return values.astype(jnp.float32) * jnp.repeat(scale, repeats, axis=-2)


def _halves(values: jax.Array) -> list[jax.Array]:
    """Values as they are, or the lower and the upper halves of packed ones as int8."""
    if values.dtype != jnp.uint8:
        return [values]
    byte = jax.lax.bitcast_convert_type(values, jnp.int8)
    return [(byte << 4) >> 4, byte >> 4]


def _inputs_of_halves(x: jax.Array, values: jax.Array, scale: jax.Array) -> list[jax.Array]:
    """The inputs [..., I] that the halves of a matrix are multiplied with."""
    if values.dtype != jnp.uint8:
        return [x]
    split = x.reshape(*x.shape[:-1], scale.shape[0], 2, -1)
    return [split[..., half, :].reshape(*x.shape[:-1], -1) for half in range(2)]


@jax.custom_vjp
def _product(x: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
    return jax.lax.platform_dependent(x, values, scale, cpu=_in_tiles, default=_at_once)


def _forward(x: jax.Array, values: jax.Array, scale: jax.Array) -> tuple[jax.Array, tuple]:
    return _product(x, values, scale), (x, values, scale)


def _backward(saved: tuple, cotangent: jax.Array) -> tuple[jax.Array, None, None]:
    """Of `x` only; quantised weights are frozen."""
    x, values, scale = saved
    back = jax.lax.platform_dependent(
        cotangent,
        values,
        scale,
        cpu=functools.partial(_back_in_tiles, dtype=x.dtype),
        default=functools.partial(_back_at_once, dtype=x.dtype),
    )
    return back.astype(x.dtype), None, None


_product.defvjp(_forward, _backward)


def _at_once(x: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
    # Tied to x: free, XLA would widen the weights once before the sampler's loop and keep them.
    values, x = jax.lax.optimization_barrier((values, x))
    return _sums(_inputs_of_halves(x, values, scale), values, scale)


def _sums(inputs: Sequence[jax.Array], values: jax.Array, scale: jax.Array) -> jax.Array:
    """The product of the inputs of each half with its half, float32 [..., O]."""
    total: Any = 0.0
    for x, half in zip(inputs, _halves(values), strict=True):
        matrix, after = _factors(half, scale, x.dtype)
        total += jnp.matmul(x, matrix, preferred_element_type=jnp.float32) * after
    return total


def _back_at_once(
    cotangent: jax.Array, values: jax.Array, scale: jax.Array, dtype: jax.typing.DTypeLike
) -> jax.Array:
    values, cotangent = jax.lax.optimization_barrier((values, cotangent))
    back = []
    for half in _halves(values):
        matrix, after = _factors(half, scale, dtype)
        product = jnp.einsum(
            "...o,io->...i",
            (cotangent * after).astype(dtype),
            matrix,
            preferred_element_type=jnp.float32,
        )
        back.append(product.reshape(*product.shape[:-1], scale.shape[0], -1))
    return jnp.concatenate(back, axis=-1).reshape(*cotangent.shape[:-1], -1)


def _factors(
    values: jax.Array, scale: jax.Array, dtype: jax.typing.DTypeLike
) -> tuple[jax.Array, jax.Array | float]:
    """The matrix that is multiplied with, and what the sums are multiplied with after it."""
    if scale.shape[-2] == 1:
        return values.astype(dtype), scale[0]
    return _scaled(values, scale).astype(dtype), 1.0


def _in_tiles(x: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
    if values.shape[1] <= _TILE:
        return _at_once(x, values, scale)
    rows = x.reshape(-1, x.shape[-1]).astype(_multiplied(x.dtype))
    inputs = _inputs_of_halves(rows, values, scale)

    def tile(out: jax.Array, start: jax.Array | int, width: int) -> jax.Array:
        sums = _sums(inputs, *_columns(values, scale, start, width))
        return jax.lax.dynamic_update_slice_in_dim(out, sums, start, axis=1)

    out = _over_tiles(tile, _zeros(rows, values.shape[1]), values.shape[1])
    return out.reshape(*x.shape[:-1], -1)


def _back_in_tiles(
    cotangent: jax.Array, values: jax.Array, scale: jax.Array, dtype: jax.typing.DTypeLike
) -> jax.Array:
    if values.shape[1] <= _TILE:
        return _back_at_once(cotangent, values, scale, dtype)
    rows, dtype = cotangent.reshape(-1, cotangent.shape[-1]), _multiplied(dtype)

    def tile(out: jax.Array, start: jax.Array | int, width: int) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(rows, start, width, axis=1)
        return out + _back_at_once(part, *_columns(values, scale, start, width), dtype)

    inputs = values.shape[0] * len(_halves(values))
    out = _over_tiles(tile, _zeros(rows, inputs), values.shape[1])
    return out.reshape(*cotangent.shape[:-1], -1)


def _zeros(rows: jax.Array, columns: int) -> jax.Array:
    """float32 [rows, columns], made of the rows (NaN stays what it would become).

    Free, XLA makes the zeros of all layers first and keeps them through a call of the network: 0.9
    GB of LLaDA-8B on 160 slots.
    """
    return jnp.broadcast_to(0.0 * rows[:, :1].astype(jnp.float32), (len(rows), columns))


def _over_tiles(tile: Callable[..., jax.Array], out: jax.Array, columns: int) -> jax.Array:
    """`tile(out, start, width)` for all columns: whole tiles, then what is left."""
    whole = columns // _TILE
    out = jax.lax.fori_loop(0, whole, lambda number, out: tile(out, number * _TILE, _TILE), out)
    return tile(out, whole * _TILE, columns % _TILE) if columns % _TILE else out


def _columns(
    values: jax.Array, scale: jax.Array, start: jax.Array | int, width: int
) -> tuple[jax.Array, jax.Array]:
    cut = functools.partial(
        jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=width, axis=1
    )
    return cut(values), cut(scale)


def _multiplied(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """What a CPU multiplies values of a dtype as: bfloat16 only where it has instructions for it.

    Elsewhere XLA multiplies bfloat16 several times slower than float32. Both are exact in their
    products and sum in float32. By the processor's flags and not by a measurement, so that the
    same machine gives the same sums every time.
    """
    return jnp.dtype(dtype if _has_bfloat16() else jnp.float32)


@functools.cache
def _has_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:  # no Linux
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
