"""The pieces of a block as pure functions: product, norm, rotary positions, lookup.

Each follows the published LLaDA code to the order of its casts, so that imported weights give the
published logits (RMSNorm and RoPE in float32).
"""

import jax
import jax.numpy as jnp

from jax_mdlm.model.weights import Weight


def linear(x: jax.Array, weight: jax.Array | Weight) -> jax.Array:
    """`x weight` over the last axis of `x` and the first of `weight`.

    Args:
      x: [B, L, I].
      weight: [I, O].

    Returns:
      [B, L, O] in the dtype of `x`.
    """
    if isinstance(weight, Weight):
        return weight.multiply(x).astype(x.dtype)
    return matmul(x, weight)


@jax.custom_vjp
def matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`x weight` of two arrays, with its derivative written out.

    JAX transposes the weight's gradient after the product, for which XLA on CPU writes a transposed
    copy of every cotangent (a backward pass of the MLP takes twice as long). Contracted in this
    order nothing is transposed. And it widens bfloat16 matrices where the product is not asked for
    in float32, which is rounded here: a product takes three times as long then.
    """
    return jnp.matmul(x, weight, preferred_element_type=jnp.float32).astype(x.dtype)


def _forward(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple]:
    return matmul(x, weight), (x, weight)


def _backward(saved: tuple, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weight = saved
    return cotangent @ weight.T, jnp.einsum("bli,blo->io", x, cotangent)


matmul.defvjp(_forward, _backward)


def rms_norm(x: jax.Array, weight: jax.Array, *, eps: float) -> jax.Array:
    """Divides by the root mean square: `x / sqrt(mean(x^2) + eps) * weight` (arXiv 1910.07467).

    The quotient is cast back to the dtype of `x` before the weight is applied; the other order
    differs in bfloat16 from the published checkpoints.

    Args:
      x: [..., D], any float dtype.
      weight: [D].
      eps: Added to the mean square.

    Returns:
      [..., D] in the dtype of `x`.
    """
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return wide.astype(x.dtype) * weight.astype(x.dtype)


def positions(tokens: jax.Array, uncounted_id: int, first: int | jax.Array = 0) -> jax.Array:
    """What rotary angles are made of: the number of a slot, padding counts.

    With `uncounted_id` (exploratory) the number of slots before it that hold another token: what
    stands after a slack keeps the position that it has in the text, and moves when a mask turns
    out to be slack.

    Args:
      tokens: int32 [B, L].
      uncounted_id: Token whose slots are not counted; negative = all are.
      first: Position of the first slot.

    Returns:
      int32 [1, L], or [B, L] with `uncounted_id`.
    """
    if uncounted_id < 0:
        return first + jnp.arange(tokens.shape[1])[None]
    counted = (tokens != uncounted_id).astype(jnp.int32)
    return first + jnp.cumsum(counted, axis=1) - counted


def rotary_angles(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of `position * theta^(-2i / H)` (arXiv 2104.09864).

    Args:
      positions: int32 [B, L], or [1, L] for all rows.
      head_dim: H, even.
      theta: Base of the frequencies.

    Returns:
      Two float32 arrays [B or 1, L, H / 2].
    """
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions.astype(jnp.float32)[..., None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns each pair (i, i + H/2) of a head by its angle, in float32 (half-split layout).

    Args:
      x: [B, L, N, H].
      cos: float32 [B or 1, L, H / 2].
      sin: float32 [B or 1, L, H / 2].

    Returns:
      [B, L, N, H] in the dtype of `x`.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def lookup(table: jax.Array | Weight, tokens: jax.Array) -> jax.Array:
    """Rows of the embedding.

    Args:
      table: [V, D].
      tokens: int32 [B, L].

    Returns:
      [B, L, D]; the dtype of the table, float32 where it is quantised.
    """
    if isinstance(table, Weight):
        return table.rows(tokens)
    return jnp.take(table, tokens, axis=0)
