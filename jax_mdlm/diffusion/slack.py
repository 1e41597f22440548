"""Slack: put `<SLACK>` between response tokens, and take it out again.

Enters: a clean `Batch`. Leaves: the augmented row that `corrupt` masks. `collapse_tokens` is the
way back, from a canvas to text tokens; sampling and evaluation call it on the host.
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp

from jax_mdlm.config import Collapse
from jax_mdlm.containers import Batch, SpecialIds


@flax.struct.dataclass
class Augmented:
    """A batch whose responses hold slack; the labels stay those of the `Batch`.

    Attributes:
      tokens: int32 [B, L]; before the response as in the batch.
      response: bool [B, L]; slots to learn, end padding included.
      valid: bool [B, L]; slots that exist.
      frames: bool [B, L]; labels and slack, without the end padding; contiguous.
    """

    tokens: jax.Array
    response: jax.Array
    valid: jax.Array
    frames: jax.Array


def insert_slack(
    key: jax.Array,
    batch: Batch,
    ids: SpecialIds,
    *,
    slack_max: float,
    separate_repeats: bool,
) -> Augmented:
    """Inserts a random number of slack tokens at random places of each response.

    With U = `label_count`: `s ~ Uniform(0, slack_max)`, `n = stochastic_round(s * U)`, at most
    the slots between the last label and the end of the canvas. All `binomial(U - 1 + n, n)`
    placements among the first `U - 1 + n` slots are equally likely; the last label (the
    terminator) stays last. arXiv 2601.22947 fixes `slack_max` and "random", uniform is our reading.

    With `separate_repeats`, equal neighbours first receive one slack between them (`n` is at least
    their number) and the rest is placed uniformly: uniform over all placements of `n` in which no
    two labels merge. Rows whose separators do not fit the canvas are placed at random instead.

    The end padding keeps its length as far as the canvas has room for it.

    Args:
      key: PRNG key.
      batch: Clean rows, [B, L] and [B, U].
      ids: Special token ids.
      slack_max: Largest slack share, slack tokens per label. 0 inserts nothing, no separators
        either: plain masked diffusion.
      separate_repeats: Whether equal neighbours are separated.

    Returns:
      The augmented rows, [B, L]. A row without response is unchanged and has no frames.
    """
    length = batch.tokens.shape[1]
    has_response = jnp.any(batch.response, axis=1)
    start = jnp.argmax(batch.response, axis=1)  # [B]
    num_padding = jnp.sum(batch.response, axis=1) - batch.label_count
    labels = batch.labels[:, :length]  # label_count never exceeds the canvas

    if slack_max > 0:
        room = jnp.maximum(length - start - batch.label_count, 0)
        share_key, place_key = jax.random.split(key)
        num_slack = _draw_counts(share_key, batch.label_count, slack_max)
        separators = jnp.zeros_like(labels)
        if separate_repeats:
            separators = _separators(labels, batch.label_count)
            separators = jnp.where(
                jnp.sum(separators, 1, keepdims=True) <= room[:, None], separators, 0
            )
        num_separators = jnp.sum(separators, axis=1)
        num_slack = jnp.minimum(jnp.maximum(num_slack, num_separators), room)
        places = _place(place_key, labels, batch.label_count, num_slack - num_separators, length)
        places = places + jnp.cumsum(separators, axis=1)  # [B, U], counted from the response start
    else:
        num_slack = jnp.zeros_like(batch.label_count)
        places = jnp.broadcast_to(jnp.arange(labels.shape[1]), labels.shape)

    offset = jnp.arange(length) - start[:, None]  # [B, L], slots from the response start
    num_frames = batch.label_count + num_slack
    inside = has_response[:, None] & (offset >= 0)
    frames = inside & (offset < num_frames[:, None])
    response = inside & (offset < (num_frames + num_padding)[:, None])

    rows = jnp.arange(labels.shape[0])[:, None]
    exists = jnp.arange(labels.shape[1]) < batch.label_count[:, None]
    # Labels that do not exist go to slot L, which is out of bounds and dropped.
    slots = jnp.where(exists, start[:, None] + places, length)
    rest = jnp.where(frames, ids.slack, jnp.where(response, ids.eos, ids.pad))
    tokens = jnp.where(inside, rest, batch.tokens).astype(batch.tokens.dtype)
    tokens = tokens.at[rows, slots].set(labels, mode="drop")
    valid = jnp.where(inside, response, batch.valid)
    return Augmented(tokens=tokens, response=response, valid=valid, frames=frames)


def collapse_tokens(tokens: Sequence[int], ids: SpecialIds, collapse: Collapse) -> list[int]:
    """Reads text tokens off a finished canvas: the map that CTC sums over.

    `merge` merges equal neighbours, then drops slack ("a a _ a" becomes "a a"); `slack_only`
    drops slack and keeps repeats ("a a _ a" becomes "a a a"). Tokens in `ids.never_merged` are
    kept, however often they stand side by side.

    Args:
      tokens: Token ids of the response slots.
      ids: Special token ids.
      collapse: The map.

    Returns:
      Token ids without slack.

    Examples:
      >>> ids = SpecialIds(mask=1, slack=2, pad=0, eos=0, terminator=3)
      >>> collapse_tokens([7, 7, 2, 7, 8], ids, "merge")
      [7, 7, 8]
      >>> collapse_tokens([7, 7, 2, 7, 8], ids, "slack_only")
      [7, 7, 7, 8]
    """
    kept = []
    previous = None
    for token in map(int, tokens):
        merges = collapse == "merge" and token == previous and token not in ids.never_merged
        if token != ids.slack and not merges:
            kept.append(token)
        previous = token
    return kept


def _draw_counts(key: jax.Array, label_count: jax.Array, slack_max: float) -> jax.Array:
    """Slack per row before the canvas limits it: `stochastic_round(s * U)`, int32 [B]."""
    share_key, round_key = jax.random.split(key)
    share = jax.random.uniform(share_key, label_count.shape, jnp.float32, maxval=slack_max)
    ticket = jax.random.uniform(round_key, label_count.shape, jnp.float32)
    return jnp.floor(share * label_count + ticket).astype(label_count.dtype)


def _separators(labels: jax.Array, label_count: jax.Array) -> jax.Array:
    """1 at each label that equals the one before it, int32 [B, U]."""
    before = jnp.pad(labels[:, :-1], ((0, 0), (1, 0)))
    index = jnp.arange(labels.shape[1])
    repeats = (labels == before) & (index > 0) & (index < label_count[:, None])
    return repeats.astype(labels.dtype)


def _place(
    key: jax.Array, labels: jax.Array, label_count: jax.Array, num_slack: jax.Array, length: int
) -> jax.Array:
    """Slots of the labels among `U + num_slack`, all choices equally likely, int32 [B, U].

    The last label has the last slot; the others take a random subset of the slots before it, in
    order. Ranks, not a threshold, choose the subset: float32 scores can tie, and a tie at a
    threshold would change the number of slacks.
    """
    num_rows, max_labels = labels.shape
    last = (label_count - 1 + num_slack)[:, None]  # [B, 1]
    slot = jnp.arange(length)
    score = jax.random.uniform(key, (num_rows, length), jnp.float32)
    order = jnp.argsort(jnp.where(slot < last, score, 2.0), axis=1)[:, :max_labels]
    index = jnp.arange(max_labels)
    chosen = jnp.sort(jnp.where(index < label_count[:, None] - 1, order, length), axis=1)
    return jnp.where(index == label_count[:, None] - 1, last, chosen)
