"""The denoiser: a bidirectional transformer that predicts every slot (LLaDA, arXiv 2502.09992).

Tokens enter, hidden states or logits leave. Parameters are a plain nested dict with the paths of
`table.rows`, and these are pure functions of it. No time input: the number of masks tells the
level.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import ParamRow, Params
from jax_mdlm.model import layers, table
from jax_mdlm.model.attention import SAVED, attention
from jax_mdlm.model.weights import Weight
from jax_mdlm.sharding import Layout, constrain

KeysValues = tuple[jax.Array, jax.Array]  # each [B, slots, K, H]; keys are rotated

# What a block keeps for its backward pass; the names are the values of `model.remat`.
_REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    # What the kernel's backward pass needs, so that it is not run once more: 34 MB a row and layer
    # of LLaDA-8B at 4,096 slots.
    "attention": jax.checkpoint_policies.save_only_these_names(SAVED),
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def block(
    params: Params,
    x: jax.Array,
    rotary: tuple[jax.Array, jax.Array],
    valid: jax.Array | None,
    *,
    eps: float,
    past: Callable[[KeysValues], KeysValues] = lambda own: own,
    window: Callable[[jax.Array], jax.Array] = lambda slots: slots,
    attend: Callable[..., jax.Array] = attention,
) -> tuple[jax.Array, KeysValues]:
    """Attention and gated MLP, each on a normalised input and added to the stream.

    Args:
      params: Of one layer; each an array or a `Weight`.
      x: [B, Q, D], the stream of the slots that run.
      rotary: Angles of these slots.
      valid: bool [B, S]; keys that exist.
      eps: Of the norms.
      past: The keys and values of all S slots, given those of the Q that run.
      window: Picks the W slots (axis 1 of an array) whose output is wanted.
      attend: `attention` on a mesh, or its form without a gradient.

    Returns:
      The stream [B, W, D], and the keys and values of the Q slots.
    """

    def linear(h: jax.Array, name: str, inputs: int = 1) -> jax.Array:
        return layers.linear(h, table.matrix(params[name], inputs).astype(x.dtype))

    def heads(h: jax.Array, name: str) -> jax.Array:
        # Free, XLA on TPU carries the layout that attention likes back to the weights and keeps a
        # transposed copy of all layers' (3.2 GB of LLaDA-8B) beside the sampler's loop.
        flat = jax.lax.optimization_barrier(linear(h, name))
        return flat.reshape(*h.shape[:-1], -1, 2 * rotary[0].shape[-1])  # [B, Q, N, H]

    h = layers.rms_norm(x, params["attn_norm"], eps=eps)
    own = layers.rotate(heads(h, "k_proj"), *rotary), heads(h, "v_proj")
    keys, values = past(own)
    x, h = window(x), window(h)
    cos, sin = (window(angle) for angle in rotary)
    mixed = attend(layers.rotate(heads(h, "q_proj"), cos, sin), keys, values, valid)
    x = x + linear(mixed.reshape(*x.shape[:-1], -1), "attn_out", inputs=2)
    h = layers.rms_norm(x, params["ff_norm"], eps=eps)
    gated = jax.nn.silu(linear(h, "ff_proj")) * linear(h, "up_proj")
    return x + linear(gated, "ff_out"), own


def init(key: jax.Array, config: ModelConfig) -> Params:
    """Draws fresh parameters.

    Matrices are normal with variance 1 / inputs, those that write into the residual stream
    divided by sqrt(2 * layers) more; the embedding has variance 1 / D; norms are 1.

    Args:
      key: Typed PRNG key.
      config: Layout; `vocab_size` must be set.

    Returns:
      Nested dict of `config.param_dtype` arrays with the paths and shapes of `table.rows`.

    Examples:
      >>> config = ModelConfig(vocab_size=9, embed=16, layers=2, heads=2, kv_heads=1, head_dim=8)
      >>> init(jax.random.key(0), config)["blocks"]["k_proj"].shape
      (2, 16, 1, 8)
    """
    rows = table.rows(config)
    keys = jax.random.split(jax.random.fold_in(key, len(rows)), config.layers)
    leaves = {}
    for number, row in enumerate(rows):
        draw = functools.partial(_draw, row, number, config)
        leaves[row.path] = jax.vmap(draw)(keys) if row.axes[0] == "layers" else draw(key)
    return table.tree(leaves)


def encode(
    params: Params,
    tokens: jax.Array,
    config: ModelConfig,
    valid: jax.Array | None = None,
    layout: Layout | None = None,
) -> jax.Array:
    """Runs the network without its head.

    Args:
      params: As from `init`, any float dtype.
      tokens: int32 [B, L], masks included.
      config: Layout; static.
      valid: bool [B, L]; slots that may be attended to. None = all.
      layout: Mesh and rules for constraints on activations; None = leave it to the compiler.

    Returns:
      [B, L, D] in `config.compute_dtype`, after the final norm.

    Raises:
      ValueError: the canvas is longer than `config.max_length`.
    """
    if tokens.shape[1] > config.max_length:
        raise ValueError(
            f"canvas must have at most model.max_length={config.max_length} slots, got "
            f"{tokens.shape[1]}; shorten it or raise model.max_length"
        )
    dtype = jnp.dtype(config.compute_dtype)
    positions = layers.positions(tokens, config.uncounted_id)
    rotary = layers.rotary_angles(positions, config.head_dim, config.rope_theta)
    x = layers.lookup(params["wte"], tokens).astype(dtype)
    # Without this the gather leaves the stream sharded like the table, over vocab and embed.
    x = constrain(layout, x, "batch", "length", None)
    attend = functools.partial(attention, layout=layout, kind=config.attention)

    def layer(x: jax.Array, scanned: tuple[Params, jax.Array]) -> tuple[jax.Array, None]:
        weights, number = scanned
        weights = jax.tree.map(lambda w: _cast_in_layer(w, number, dtype), weights)
        x, _ = block(weights, x, rotary, valid, eps=config.norm_eps, attend=attend)
        # The carry keeps one placement through the scan; else XLA may reshard in every layer.
        return constrain(layout, x, "batch", "length", None), None

    if config.remat != "none":
        layer = jax.checkpoint(layer, policy=_REMAT_POLICIES[config.remat], prevent_cse=False)
    numbers = jnp.arange(config.layers, dtype=jnp.float32)
    x, _ = jax.lax.scan(layer, x, (params["blocks"], numbers))
    return layers.rms_norm(x, params["ln_f"], eps=config.norm_eps)


def head(params: Params) -> jax.Array:
    """The output matrix [D, V] in the dtype of `params` (or quantised); for `project`."""
    matrix = params["head"]
    return matrix.as_head() if isinstance(matrix, Weight) else matrix


def apply(
    params: Params,
    tokens: jax.Array,
    config: ModelConfig,
    valid: jax.Array | None = None,
    layout: Layout | None = None,
) -> jax.Array:
    """Logits of every slot, with the arguments of `encode`; training never holds them.

    Returns:
      float32 [B, L, V], accumulated in float32 from `compute_dtype` factors.

    Examples:
      >>> config = ModelConfig(9, 16, 2, 2, 2, 8, 24, max_length=16)
      >>> apply(init(jax.random.key(0), config), jnp.zeros((1, 5), jnp.int32), config).shape
      (1, 5, 9)
    """
    hidden = encode(params, tokens, config, valid, layout)
    return project(hidden, head(params), layout)


def project(hidden: jax.Array, head: jax.Array | Weight, layout: Layout | None = None) -> jax.Array:
    """Multiplies hidden states by the head.

    Args:
      hidden: [B, L, D].
      head: [D, V], cast to the dtype of `hidden`; or quantised.
      layout: Mesh and rules; None = leave it to the compiler.

    Returns:
      float32 [B, L, V].
    """
    if isinstance(head, Weight):
        logits = head.multiply(hidden)
    else:
        logits = jnp.einsum(
            "bld,dv->blv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
    return constrain(layout, logits, "batch", "length", "vocab")


def _draw(row: ParamRow, number: int, config: ModelConfig, key: jax.Array) -> jax.Array:
    """One parameter, of one layer where it has them; `number` is that of its row."""
    sizes = table.axis_sizes(config)
    shape = tuple(sizes[axis] for axis in row.axes if axis != "layers")
    dtype = jnp.dtype(config.param_dtype)
    if len(shape) == 1:
        return jnp.ones(shape, dtype)
    std = _standard_deviation(row, shape, config)
    return (std * jax.random.normal(jax.random.fold_in(key, number), shape)).astype(dtype)


def _standard_deviation(row: ParamRow, shape: tuple[int, ...], config: ModelConfig) -> float:
    if row.num_inputs == 0:
        return shape[-1] ** -0.5
    std = math.prod(shape[: row.num_inputs]) ** -0.5
    writes_to_stream = row.axes[-1] == "embed"
    return std * (2 * config.layers) ** -0.5 if writes_to_stream else std


def _cast_in_layer(weight: jax.Array, number: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """A layer's weight, whose cast to another dtype cannot leave the loop over the layers.

    Free, the TPU compiler casts the weights of all layers before the loop and keeps them beside the
    masters: 0.9 GB a chip of LLaDA-8B on 16. It does so through an optimization barrier too, but
    not through a value that differs from layer to layer (nor does it drop a product with 0.0, which
    may be NaN). Quantised values are widened by their product.
    """
    if weight.dtype == dtype or not jnp.issubdtype(weight.dtype, jnp.floating):
        return weight
    return weight + (0.0 * number).astype(weight.dtype)
