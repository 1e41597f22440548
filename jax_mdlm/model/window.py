"""The network over a window of the canvas: what the sampler runs at each call.

Two things are left out that training needs: the output of slots that nobody reads (in the last
block of layers only the window's queries run), and, with a cache, the slots outside the window.
The layers are `denoiser.block`, the same as in training, which scans over stacked weights as its
gradient needs it; here layers are taken by index, since a slice without the last would copy them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import Params
from jax_mdlm.model import layers
from jax_mdlm.model.attention import attention_forward
from jax_mdlm.model.denoiser import KeysValues, block
from jax_mdlm.sharding import Layout, constrain


@flax.struct.dataclass
class Cache:
    """Keys and values of every slot, as a call on the whole canvas left them.

    Attributes:
      below: All layers but the last: stacked arrays [layers - 1, B, S, K, H] in a pair, or a list
        of pairs where the layers are (see `unstack`).
      last: The last layer's pair [B, S, K, H]; apart, because its queries are the window's only.
    """

    below: Any
    last: KeysValues


@dataclasses.dataclass(frozen=True)
class Window:
    """Which slots of a canvas run, and whose outputs are wanted. Columns may be traced.

    Attributes:
      start: First column of the block whose hidden states are wanted.
      width: Its slots; static.
      first: Column of the first slot that runs; the others come from a cache.
    """

    start: int | jax.Array
    width: int
    first: int | jax.Array = 0


def encode_window(
    params: Params,
    tokens: jax.Array,
    config: ModelConfig,
    window: Window,
    valid: jax.Array | None = None,
    layout: Layout | None = None,
    *,
    past: Cache | None = None,
    keep: bool = False,
) -> tuple[jax.Array, Cache | None]:
    """Hidden states of one block of slots.

    Without a cache they are those of `encode`, bit for bit up to the order of sums. With one, the
    slots that run attend to the cached keys and values of the slots before `window.start` and
    after the slots that run (Fast-dLLM, arXiv 2505.22618: both of its caches).

    Args:
      params: Of a network, as `encode` takes them; layers stacked or `unstack`ed.
      tokens: int32 [B, Q]; the slots that run, columns `window.first` and on.
      config: Layout; static.
      window: Where the block and the slots that run are.
      valid: bool [B, S]; slots that may be attended to. None = all.
      layout: Mesh and rules; None = leave it to the compiler.
      past: Keys and values of all S slots; None: Q = S.
      keep: Whether to return keys and values of the slots that run; only without `past`.

    Returns:
      [B, width, D] after the final norm, and the cache or None.

    Raises:
      ValueError: a cache, and positions that depend on what stands outside the window.
    """
    if config.uncounted_id >= 0 and past is not None:
        raise ValueError(
            "a window with a cache does not see the slots before it, which "
            f"model.uncounted_id={config.uncounted_id} must count; decode without a cache"
        )
    inside = window.start - window.first  # the block's first place among the slots that run
    positions = layers.positions(tokens, config.uncounted_id, window.first)
    rotary = layers.rotary_angles(positions, config.head_dim, config.rope_theta)
    # Windows are small and may not divide into the mesh's context axis; whole canvases do.
    length = None if past is not None else "length"

    def merge(cached: KeysValues, own: KeysValues) -> KeysValues:
        return _overwrite(cached[0], own[0], window), _overwrite(cached[1], own[1], window)

    def layer(x: jax.Array, index: int | jax.Array, cached: KeysValues | None, last: bool):
        options: dict[str, Callable[..., Any]] = {"attend": attention_forward}
        if cached is not None:
            options["past"] = lambda own: merge(cached, own)
        if last:
            options["window"] = lambda slots: jax.lax.dynamic_slice_in_dim(
                slots, inside, window.width, axis=1
            )
        x, own = block(_layer(params, index), x, rotary, valid, eps=config.norm_eps, **options)
        x = constrain(layout, x, "batch", None if last else length, None)
        return x, _placed(layout, own) if keep else None

    x = layers.lookup(params["wte"], tokens).astype(jnp.dtype(config.compute_dtype))
    x = constrain(layout, x, "batch", length, None)
    if isinstance(params["blocks"], dict):
        # By index: a slice that leaves the last layer out would copy all weights.
        below = jnp.arange(config.layers - 1), None if past is None else past.below
        x, kept = jax.lax.scan(lambda x, at: layer(x, at[0], at[1], False), x, below)
    else:
        kept = []
        for index in range(config.layers - 1):
            x, own = layer(x, index, None if past is None else past.below[index], False)
            kept.append(own)
    x, own = layer(x, config.layers - 1, None if past is None else past.last, True)
    x = layers.rms_norm(x, params["ln_f"], eps=config.norm_eps)
    return x, Cache(kept, own) if keep and own is not None else None


def _layer(params: Params, index: int | jax.Array) -> Params:
    blocks = params["blocks"]
    if not isinstance(blocks, dict):
        return blocks[index]
    return jax.tree.map(
        lambda weight: jax.lax.dynamic_index_in_dim(weight, index, keepdims=False), blocks
    )


def _overwrite(cached: jax.Array, own: jax.Array, window: Window) -> jax.Array:
    """Cached [B, S, K, H] with the slots from the block's start on that run, own [B, Q, K, H]."""
    width = own.shape[1]
    stale = jax.lax.dynamic_slice_in_dim(cached, window.first, width, axis=1)
    fresh = window.first + jnp.arange(width) >= window.start
    own = jnp.where(fresh[:, None, None], own, stale)
    return jax.lax.dynamic_update_slice_in_dim(cached, own, window.first, axis=1)


def _placed(layout: Layout | None, own: KeysValues) -> KeysValues:
    keys, values = (constrain(layout, x, "batch", None, "kv_heads", None) for x in own)
    return keys, values
