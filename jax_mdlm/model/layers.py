"""The pieces of a block as pure functions: product, norm, rotary positions, attention, lookup.

Each follows the published LLaDA code to the order of its casts, so that imported weights give the
published logits (DESIGN: RMSNorm and RoPE in float32, scores and softmax in float32).
"""

import jax
import jax.numpy as jnp

from jax_mdlm.model.int8 import Int8


def linear(x: jax.Array, weight: jax.Array | Int8) -> jax.Array:
    """`x weight` over the last axis of `x` and the first of `weight`.

    Args:
      x: [B, L, I].
      weight: [I, O], or a quantised matrix.

    Returns:
      [B, L, O] in the dtype of `x`.
    """
    if isinstance(weight, Int8):
        return weight.multiply(x).astype(x.dtype)
    return _linear(x, weight)


@jax.custom_vjp
def _linear(x: jax.Array, weight: jax.Array) -> jax.Array:
    """The product with its own derivative, written out.

    JAX transposes the weight's gradient after the product, for which XLA on CPU writes a transposed
    copy of every cotangent (a backward pass of the MLP takes twice as long). Contracted in this
    order nothing is transposed.
    """
    return x @ weight


def _linear_forward(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple]:
    return x @ weight, (x, weight)


def _linear_backward(saved: tuple, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weight = saved
    return cotangent @ weight.T, jnp.einsum("bli,blo->io", x, cotangent)


_linear.defvjp(_linear_forward, _linear_backward)


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


def rotary_angles(
    length: int, head_dim: int, theta: float, first: int | jax.Array = 0
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of `position * theta^(-2i / H)` (arXiv 2104.09864); padding counts.

    Args:
      length: L, slots.
      head_dim: H, even.
      theta: Base of the frequencies.
      first: Position of the first slot.

    Returns:
      Two float32 arrays [L, H / 2].
    """
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = (first + jnp.arange(length)).astype(jnp.float32)[:, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns each pair (i, i + H/2) of a head by its angle, in float32 (half-split layout).

    Args:
      x: [B, L, N, H].
      cos: float32 [L, H / 2].
      sin: float32 [L, H / 2].

    Returns:
      [B, L, N, H] in the dtype of `x`.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Bidirectional attention, `softmax(q k^T / sqrt(H)) v`; only keys are masked.

    Args:
      q: [B, L, N, H].
      k: [B, S, K, H]; each of the K heads serves N / K query heads.
      v: [B, S, K, H].
      valid: bool [B, S], keys that exist; None = all.

    Returns:
      [B, L, N, H] in the dtype of `q`; scores and softmax are float32.
    """
    mask = None if valid is None else valid[:, None, None, :]
    return jax.nn.dot_product_attention(q, k, v, mask=mask)


def attention_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None
) -> jax.Array:
    """`attention` where no gradient is wanted: on a CPU with the heads moved forward first.

    XLA there multiplies heads in place, in strides, a quarter slower than after a copy.

    Args:
      q: As in `attention`.
      k: As in `attention`.
      v: As in `attention`.
      valid: As in `attention`.

    Returns:
      As `attention`.
    """
    if valid is None:
        valid = jnp.ones(k.shape[:2], bool)
    return jax.lax.platform_dependent(q, k, v, valid, cpu=_heads_first, default=attention)


def _heads_first(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array) -> jax.Array:
    groups = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, groups, axis=2) if groups > 1 else x for x in (k, v))
    scores = jnp.matmul(
        jnp.swapaxes(q, 1, 2), jnp.transpose(k, (0, 2, 3, 1)), preferred_element_type=jnp.float32
    )
    scores = scores * q.shape[-1] ** -0.5
    # Finite: a row that sees no key at all must not become NaN.
    scores = jnp.where(valid[:, None, None, :], scores, -0.7 * jnp.finfo(jnp.float32).max)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.swapaxes(jnp.matmul(weights, jnp.swapaxes(v, 1, 2)), 1, 2)


def lookup(table: jax.Array | Int8, tokens: jax.Array) -> jax.Array:
    """Rows of the embedding.

    Args:
      table: [V, D], or quantised.
      tokens: int32 [B, L].

    Returns:
      [B, L, D]; the dtype of the table, float32 where it is quantised.
    """
    if isinstance(table, Int8):
        return table.rows(tokens)
    return jnp.take(table, tokens, axis=0)
