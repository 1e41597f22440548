"""The compiled half of the estimator: canvases enter, a sum of log-probabilities each leaves.

Masks are drawn here, on the device. No logits [B, L, V] exist: a slot needs the log-sum-exp and the
logit of its own token (`diffusion.logits`), and the last layer runs on the response's slots only
(`model.encode_window`).
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jax_mdlm import model
from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import Params, Region, SpecialIds
from jax_mdlm.diffusion.logits import Parts, SlotLogits, slot_logits
from jax_mdlm.model.weights import is_weight
from jax_mdlm.sampling.denoise import guide
from jax_mdlm.sharding import Layout, constrain

_TILE = 2**24  # logits that a device holds at a time


@dataclasses.dataclass(frozen=True)
class ScoringSetting:
    """What is the same for all calls on canvases of one shape; static under `jit`.

    Attributes:
      config: The network.
      ids: Special tokens.
      region: Where the response is; its `limit` is not used.
      guidance: Scale of classifier-free guidance; 0 = none.
      layout: Mesh and rules; None = one device.
    """

    config: ModelConfig
    ids: SpecialIds
    region: Region
    guidance: float
    layout: Layout | None


@flax.struct.dataclass
class Canvases:
    """Rows with nothing masked.

    Attributes:
      tokens: int32 [B, L]; left padding, prompt, then from `Region.start` on the response.
      valid: bool [B, L]; false at padding, at the right too.
      count: int32 [B]; U, response tokens.
    """

    tokens: jax.Array
    valid: jax.Array
    count: jax.Array


@flax.struct.dataclass
class Draws:
    """Which masks each canvas gets; a row has many canvases.

    Attributes:
      row: int32 [B]; the row's number in the caller's list: names its stream of draws.
      sample: int32 [B]; stratum among `samples`, or number of the subset, from 0.
      every: bool [B]; whether the row's canvases go through all its subsets instead of draws.
    """

    row: jax.Array
    sample: jax.Array
    every: jax.Array


@functools.partial(jax.jit, static_argnames="setting")
def score(
    params: Params,
    canvases: Canvases,
    draws: Draws,
    key: jax.Array,
    samples: jax.Array,
    setting: ScoringSetting,
) -> tuple[jax.Array, jax.Array]:
    """`sum over masked slots of log p(token | what is not masked)`, a mask a canvas.

    Args:
      params: Any float dtype, or `Quantized`; as from `model.init` or `model.prepare`.
      canvases: What is masked; static widths.
      draws: With which masks.
      key: Typed PRNG key [].
      samples: int32 []; strata of each row.
      setting: Static.

    Returns:
      The sums, float32 [B], in nats, and the number of masked slots, int32 [B]; both whole on
      every device.
    """
    ids, layout = setting.ids, setting.layout
    start, width = setting.region.start, setting.region.length
    drawn = jax.vmap(functools.partial(draw_mask, width=width), in_axes=(None, 0, 0, 0, None))(
        key, draws.row, draws.sample, canvases.count, samples
    )
    subset = jax.vmap(functools.partial(numbered_mask, width=width))(draws.sample, canvases.count)
    masked = jnp.where(draws.every[:, None], subset, drawn)
    targets = canvases.tokens[:, start:]
    noisy = jnp.where(masked, ids.mask, targets)
    slots = _predict(params, noisy, canvases, setting)
    log_probs = jnp.where(masked, slots.target - slots.log_normaliser, 0.0)
    total, number = jnp.sum(log_probs, axis=1), jnp.sum(masked, axis=1, dtype=jnp.int32)
    return constrain(layout, total, None), constrain(layout, number, None)


@functools.partial(jax.jit, static_argnames="setting")
def is_greedy(params: Params, canvases: Canvases, setting: ScoringSetting) -> jax.Array:
    """Whether the response is what greedy decoding fills its masks with, one slot a call.

    LLaDA's `suffix_greedy_prediction`: from a fully masked response of U slots, each call commits
    the argmax of the slot where its probability is largest (the first of equals). A row is left at
    its first wrong commit, so what is committed is always the response's own token, and no argmax
    over the vocabulary is needed: is the token's logit the largest?

    Returns:
      bool [B], whole on every device.
    """
    region = setting.region
    targets = canvases.tokens[:, region.start :]
    response = jnp.arange(region.length) < canvases.count[:, None]

    def unfinished(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        masked, right = state
        return jnp.any(masked & right[:, None])

    def commit(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        masked, right = state
        noisy = jnp.where(masked, setting.ids.mask, targets)
        slots = _predict(params, noisy, canvases, setting)
        confidence = jnp.where(masked, slots.largest - slots.log_normaliser, -jnp.inf)
        chosen = masked & (jnp.arange(region.length) == jnp.argmax(confidence, axis=1)[:, None])
        right &= jnp.all((slots.target >= slots.largest) | ~chosen, axis=1)
        return masked & ~chosen, right

    _, right = jax.lax.while_loop(unfinished, commit, (response, response[:, 0]))
    return constrain(setting.layout, right, None)


def draw_mask(
    key: jax.Array,
    row: jax.Array,
    sample: jax.Array,
    count: jax.Array,
    samples: jax.Array,
    *,
    width: int,
) -> jax.Array:
    """Draws one mask of exact count: `l` of `count` slots, `l` from the sample's stratum.

    Cut {1..U} into `samples` strata of equal weight: of `samples * U` cells, U for each sample and
    `samples` for each value of l, in order. A sample takes one of its cells. So `l` is uniform over
    1..U on the average of the samples, exactly, for any numbers of the two; where U divides
    `samples`, every value comes `samples / U` times. In whole numbers: float32 would not be exact.

    Args:
      key: Typed PRNG key [].
      row: int32 []; folded into the key.
      sample: int32 []; i, from 0; folded into the key.
      count: int32 []; U, at least 1.
      samples: int32 []; n. n U must fit int32.
      width: Slots, at least U; the first U may be masked.

    Returns:
      bool [width]; all sets of l slots are equally likely.
    """
    key = jax.random.fold_in(jax.random.fold_in(key, row), sample)
    level_key, order_key = jax.random.split(key)
    level = level_of(sample, jax.random.randint(level_key, (), 0, count), count, samples)
    # Ranks, not a threshold, choose the slots: scores can tie, and the count must be exact.
    scores = jax.random.bits(order_key, (width,), jnp.uint32) >> 1
    exists = jnp.arange(width) < count
    order = jnp.argsort(jnp.where(exists, scores, jnp.uint32(2**32 - 1)))
    return jnp.argsort(order) < level


def level_of(
    sample: jax.Array, ticket: jax.Array, count: jax.Array, samples: jax.Array
) -> jax.Array:
    """How many slots a sample masks, 1..count, for a ticket in 0..count - 1; see `draw_mask`."""
    return 1 + (sample * count + ticket) // samples


def numbered_mask(number: jax.Array, count: jax.Array, *, width: int) -> jax.Array:
    """The subset whose members are the binary digits of `number + 1`, bool [width]."""
    slots = jnp.arange(width)
    digits = (number + 1) >> jnp.minimum(slots, 30)
    return (digits & 1 == 1) & (slots < count)


def logits_of_masks(params: Params, canvases: Canvases, setting: ScoringSetting) -> jax.Array:
    """Logits of the response's slots when all of them are masked, float32 [B, R, V]."""
    noisy = jnp.full((len(canvases.tokens), setting.region.length), setting.ids.mask)
    params = model.cast(params, setting.config)
    hidden = _encode(params, noisy, canvases, setting)
    return model.project(hidden, model.head(params), setting.layout)


def _predict(
    params: Params, noisy: jax.Array, canvases: Canvases, setting: ScoringSetting
) -> SlotLogits:
    """What the model says of the response's tokens, [B, R], given the response `noisy` [B, R]."""
    layout, start = setting.layout, setting.region.start
    params = model.cast(params, setting.config)  # master weights: once, not where each is used
    hidden = _encode(params, noisy, canvases, setting)
    head: Any = model.head(params)
    if is_weight(head):
        head = head.merged(hidden.dtype)
    cut, vocab_cut = (1, 1) if layout is None else (layout.parts("batch"), layout.parts("vocab"))
    return slot_logits(
        hidden,
        head,
        canvases.tokens[:, start:],
        setting.ids.slack,
        parts=Parts.of(head.shape[1], noisy.size // cut, _TILE, vocab_cut),
        # The response is a small part of the canvas, and need not divide into the context axis.
        constrain=lambda x, *axes: constrain(
            layout, x, *(None if axis == "length" else axis for axis in axes)
        ),
    )


def _encode(
    params: Params, noisy: jax.Array, canvases: Canvases, setting: ScoringSetting
) -> jax.Array:
    """States [B, R, D] of the response's slots, guided where that is wanted."""
    region, layout, valid = setting.region, setting.layout, canvases.valid
    prompt = canvases.tokens[:, : region.start]
    tokens = jnp.concatenate([prompt, noisy], axis=1)
    if setting.guidance:
        blind = jnp.concatenate([jnp.full_like(prompt, setting.ids.mask), noisy], axis=1)
        tokens, valid = jnp.concatenate([tokens, blind]), jnp.concatenate([valid, valid])
    hidden, _ = model.encode_window(
        params,
        constrain(layout, tokens, "batch", "length"),
        setting.config,
        model.Window(region.start, region.length),
        valid,
        layout,
    )
    if not setting.guidance:
        return hidden
    # The head is linear: guided logits are those of guided states.
    return guide(hidden.astype(jnp.float32), setting.guidance)
