"""Attention: one function, whatever computes it.

On TPU it is the splash kernel, which never holds the scores [B, N, L, S] (2.1 GB a row of LLaDA-8B
at 4,096 slots); elsewhere, and for shapes that the kernel does not take, XLA's products. A canvas
cut over `context` keeps its queries where they are and gathers keys and values, one collective
each and layer: every slot sees every other, so a ring would move the same bytes in many steps, and
its gain, not to hold 67 MB of keys and values, is small beside a layer's weights.
"""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jax_mdlm.sharding import Layout

Kind = Literal["auto", "splash", "xla"]

SAVED = "attention"  # name of what remat may keep: the kernel's output and its log-sums

_LANES = 128  # the kernel takes heads and lengths in multiples of a register's width
# Slots of a tile, the largest that divides the length. The backward pass writes a part of q's
# gradient for every tile of keys before it adds them up: 34 MB each, a row of LLaDA-8B.
_QUERY_BLOCKS = (512, 256, 128)
_KEY_BLOCKS = (2048, 1024, *_QUERY_BLOCKS)


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array | None,
    *,
    layout: Layout | None = None,
    kind: Kind = "auto",
) -> jax.Array:
    """Bidirectional attention, `softmax(q k^T / sqrt(H)) v`; only keys are masked.

    Args:
      q: [B, L, N, H].
      k: [B, S, K, H]; each of the K heads serves N / K query heads.
      v: [B, S, K, H].
      valid: bool [B, S], keys that exist; None = all.
      layout: Mesh and rules, which a kernel must know; None = one device.
      kind: `auto`: the kernel on TPU where it takes the shapes, else XLA. `splash`: the kernel,
        interpreted (slowly) where there is no TPU.

    Returns:
      [B, L, N, H] in the dtype of `q`; scores and softmax are float32.

    Raises:
      ValueError: `splash` for shapes that it does not take.
    """
    on_tpu = _platform(layout) == "tpu"
    length = q.shape[1] // (layout.parts("length") if layout else 1)
    fits = not (length % _LANES or k.shape[1] % _LANES or q.shape[3] % _LANES)
    if kind == "splash" and not fits:
        raise ValueError(
            f"splash attention must have slots (of a device) and head_dim in multiples of {_LANES},"
            f" got {length} queries, {k.shape[1]} keys and head_dim {q.shape[3]}; change "
            "data.length, or set model.attention=xla"
        )
    if kind == "xla" or not fits or (kind == "auto" and not on_tpu):
        mask = None if valid is None else valid[:, None, None, :]
        return jax.nn.dot_product_attention(q, k, v, mask=mask)
    if valid is None:
        valid = jnp.ones(k.shape[:2], bool)
    kernel = functools.partial(_kernel, interpret=not on_tpu)
    if layout is None:
        return kernel(q, k, v, valid)
    # The compiler cannot cut a kernel: each device runs it on its rows, heads and queries.
    queries = layout.spec(("batch", "length", "heads", "head_dim"))
    keys = layout.spec(("batch", None, "kv_heads", "head_dim"))
    return jax.shard_map(
        kernel,
        mesh=layout.mesh,
        in_specs=(queries, keys, keys, layout.spec(("batch", None))),
        out_specs=queries,
        check_vma=False,
    )(q, k, v, valid)


def attention_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None
) -> jax.Array:
    """`attention` where no gradient is wanted: on a CPU with the heads moved forward first.

    XLA there multiplies heads in place, in strides, a quarter slower than after a copy.

    Args:
      q: Queries [B, Q, N, H].
      k: Keys [B, S, K, H].
      v: Values [B, S, K, H].
      valid: bool [B, S]; keys that exist. None = all.

    Returns:
      [B, Q, N, H] in the dtype of `q`.
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


def _kernel(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array, *, interpret: bool
) -> jax.Array:
    """Splash attention of one device's part."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # a second, TPU only

    length, heads = q.shape[1:3]
    slots, kv_heads = k.shape[1:3]
    groups = heads // kv_heads
    block_q = next(block for block in _QUERY_BLOCKS if length % block == 0)
    block_kv = next(block for block in _KEY_BLOCKS if slots % block == 0)
    compute = min(block_kv, _QUERY_BLOCKS[0])
    blocks = splash.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_kv_compute=compute,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_kv_dkv_compute=compute,
        use_fused_bwd_kernel=True,
    )
    mask = splash.MultiHeadMask([splash.FullMask((length, slots))] * groups)
    attend: Any = splash.make_splash_mqa_single_device(
        mask, block_sizes=blocks, interpret=interpret, residual_checkpoint_name=SAVED
    )

    def row(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array) -> jax.Array:
        # Queries are all of segment 1, and so are the keys that exist.
        own = splash.SegmentIds(q=jnp.ones(length, jnp.int32), kv=valid.astype(jnp.int32))
        grouped = q.reshape(length, kv_heads, groups, -1).transpose(1, 2, 0, 3)  # [K, G, L, H]
        mixed = jax.vmap(attend, in_axes=(0, 0, 0, None))(
            grouped, k.swapaxes(0, 1), v.swapaxes(0, 1), own
        )
        return mixed.transpose(2, 0, 1, 3).reshape(q.shape)

    # The kernel does not scale.
    q = (q.astype(jnp.float32) / math.sqrt(q.shape[-1])).astype(q.dtype)
    return jax.vmap(row)(q, k, v, valid).astype(q.dtype)


def _platform(layout: Layout | None) -> str:
    """What the program is compiled for, which need not be here."""
    return jax.default_backend() if layout is None else layout.mesh.devices.flat[0].platform
