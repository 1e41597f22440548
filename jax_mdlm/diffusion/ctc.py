"""CTC over a response: the probability of its labels, summed over all slack placements.

Enters: log-probabilities of slack and of the row's own labels at each slot, from `objectives`.
Leaves: a negative log-likelihood per row, and whether any alignment exists at all.

A row needs only `1 + U` of the V classes, so nothing of size V (optax builds `one_hot [B, U, K]`)
appears. The sum over alignments is `lattice`'s; `optax.ctc_loss` gives the same numbers on the
same classes and stays selectable.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jax_mdlm.config import Collapse
from jax_mdlm.diffusion import lattice
from jax_mdlm.diffusion.lattice import IMPOSSIBLE


def ctc_loss(
    log_probs: jax.Array,
    frames: jax.Array,
    labels: jax.Array,
    label_count: jax.Array,
    *,
    collapse: Collapse,
    through: Literal["lattice", "optax"] = "lattice",
) -> tuple[jax.Array, jax.Array]:
    """Negative log-probability that the frames collapse to the labels.

    `-log sum_{a: collapse(a) = y} prod_l p_l(a_l)` over all alignments `a` of the frames to slack
    and labels (Graves et al. 2006; arXiv 2601.22947). With `merge`, equal neighbours are one
    label, as in speech. With `slack_only`, each label stands at exactly one frame.

    Rows that no alignment fits are read off the lattice (`nll > 1e29`): counting labels and frames
    would pass rows that observed slots make impossible.

    Args:
      log_probs: float [B, L, 1 + U]; log-probabilities (nats) of slack, then of each label of the
        row, repeated where a label repeats. They need not sum to one; -inf counts as impossible.
      frames: bool [B, L]; slots that are aligned. They may start anywhere, and are contiguous.
      labels: int [B, U]; only compared with each other.
      label_count: int [B]; labels of each row.
      collapse: The map from frames to labels.
      through: `lattice`, ours; `optax` sums in float32 without rescaling and keeps several copies
        of its input: a check, and a fallback.

    Returns:
      `nll`, float [B], in nats per row, in the dtype of `log_probs`; exactly 0 with a gradient of
      exactly 0 where no alignment fits. `feasible`, bool [B].
    """
    if through == "optax":
        nll = _through_optax(log_probs, frames, labels, label_count, collapse)
    else:
        rows = _rows(frames, labels, label_count)
        nll: Any = lattice.negative_log_likelihood(log_probs, rows, _RULES[collapse])
    feasible = nll < -0.1 * IMPOSSIBLE
    return jnp.where(feasible, nll, 0.0), feasible


def ctc_feasible(
    tokens: jax.Array,
    observed: jax.Array,
    frames: jax.Array,
    labels: jax.Array,
    label_count: jax.Array,
    classes: jax.Array,
    *,
    collapse: Collapse,
) -> jax.Array:
    """Whether any alignment fits, where observed slots are certain of their token; no scores.

    By the rule of the loss: the same lattice, with 0 for what may stand at a slot. Nothing of
    [B, L, U] is made.

    Args:
      tokens: int [B, L]; what stands at the slots.
      observed: bool [B, L]; slots that may hold only their token.
      frames: As in `ctc_loss`.
      labels: As in `ctc_loss`.
      label_count: As in `ctc_loss`.
      classes: int [B, 1 + U]; slack's id, then the labels.
      collapse: As in `ctc_loss`.

    Returns:
      bool [B].
    """

    def scores_at(slots: jax.Array) -> jax.Array:
        token = jnp.take_along_axis(tokens, slots[:, None], axis=1)
        certain = jnp.take_along_axis(observed, slots[:, None], axis=1)
        return jnp.where(certain & (token != classes), IMPOSSIBLE, 0.0).astype(jnp.float32)

    rows = _rows(frames, labels, label_count)
    num_rows, length = tokens.shape
    return lattice.fits(scores_at, (num_rows, length, classes.shape[1]), rows, _RULES[collapse])


def clamp_observed(
    log_probs: jax.Array, tokens: jax.Array, observed: jax.Array, classes: jax.Array
) -> jax.Array:
    """Makes observed slots certain of their own token: the absorbing-state view of a clean slot.

    Args:
      log_probs: float [B, L, 1 + U]; as in `ctc_loss`.
      tokens: int [B, L]; what stands at the slots.
      observed: bool [B, L]; slots that are not masked.
      classes: int [B, 1 + U]; slack's id, then the labels.

    Returns:
      float [B, L, 1 + U]; 0 for the observed token and `IMPOSSIBLE` for all others at observed
      slots (no gradient), `log_probs` elsewhere.
    """
    certain = jnp.where(tokens[:, :, None] == classes[:, None, :], 0.0, IMPOSSIBLE)
    return jnp.where(observed[:, :, None], certain.astype(log_probs.dtype), log_probs)


_RULES: dict[Collapse, lattice.Rule] = {"merge": lattice.Merge, "slack_only": lattice.SlackOnly}


def _rows(frames: jax.Array, labels: jax.Array, label_count: jax.Array) -> lattice.Rows:
    return lattice.Rows(
        first=jnp.argmax(frames, axis=1),
        frames=jnp.sum(frames, axis=1),
        labels=label_count,
        repeats=jnp.pad(labels[:, 1:] == labels[:, :-1], ((0, 0), (2, 0))),
    )


def _through_optax(
    log_probs: jax.Array,
    frames: jax.Array,
    labels: jax.Array,
    label_count: jax.Array,
    collapse: Collapse,
) -> jax.Array:
    """`optax.ctc_loss` on the row's own classes, slack as the blank.

    Every alignment emits exactly one class per frame, so the normaliser over these classes that
    optax's `log_softmax` subtracts is the same for all alignments and is added back:
    `nll = ctc_loss(c) - sum_frames logsumexp(c)`. This is exact, for any scores. (A class
    "everything else" with `log(1 - sum p)` gives the same value, but cancels at near-certain
    frames.) `slack_only` is the same call with a frame that is certainly slack behind every frame,
    so that nothing merges.

    In float32 the gradient loses accuracy with the length, because it is a difference of log-sums
    that grow with it: relative L2 error against float64, 1.25 frames per label, untrained model:
    0.03% at 512 frames and 1.4% at 2,048.
    """
    import optax  # the default lattice is our own

    exists = jnp.arange(labels.shape[1]) < label_count[:, None]  # [B, U]
    classes = jnp.pad(exists, ((0, 0), (1, 0)), constant_values=True)  # [B, 1 + U]
    possible = frames[:, :, None] & classes[:, None, :]
    scores = jnp.where(possible, jnp.maximum(log_probs, IMPOSSIBLE), IMPOSSIBLE)
    normaliser = jnp.sum(jnp.where(frames, jax.nn.logsumexp(scores, axis=-1), 0.0), axis=-1)
    paddings = 1.0 - frames.astype(scores.dtype)
    if collapse == "slack_only":
        scores, paddings = _interleave_slack(scores, paddings)
    # The lattice multiplies one-hot matrices with log-probabilities: a TPU's default of bfloat16
    # products would round every log-probability to 8 bits.
    with jax.default_matmul_precision("highest"):
        relative = optax.ctc_loss(
            scores,
            paddings,
            _class_indices(labels),
            1.0 - exists.astype(scores.dtype),
            blank_id=0,
            log_epsilon=IMPOSSIBLE,
        )
    return relative.astype(scores.dtype) - normaliser  # optax promotes to float64 under x64


def _class_indices(labels: jax.Array) -> jax.Array:
    """Column of each label, int32 [B, U]; equal neighbours share the first one's.

    The lattice only asks whether neighbours are equal, so equal labels farther apart may keep
    columns of their own (which hold the same numbers).
    """
    index = 1 + jnp.arange(labels.shape[1], dtype=jnp.int32)
    repeats = jnp.pad(labels[:, 1:] == labels[:, :-1], ((0, 0), (1, 0)), constant_values=False)
    return jax.lax.cummax(jnp.where(repeats, 0, index), axis=1)


def _interleave_slack(scores: jax.Array, paddings: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Puts a frame that is certainly slack behind every frame: [B, 2L, 1 + U] and [B, 2L]."""
    num_rows, length, num_classes = scores.shape
    slack = jnp.where(jnp.arange(num_classes) == 0, 0.0, IMPOSSIBLE).astype(scores.dtype)
    pairs = jnp.stack([scores, jnp.broadcast_to(slack, scores.shape)], axis=2)
    return pairs.reshape(num_rows, 2 * length, num_classes), jnp.repeat(paddings, 2, axis=1)
