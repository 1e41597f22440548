"""CTC over a response: the probability of its labels, summed over all slack placements.

Enters: log-probabilities of slack and of the row's own labels at each slot, from `objectives`.
Leaves: a negative log-likelihood per row, and whether any alignment exists at all.

A row needs only `1 + U` of the V classes, so nothing of size V (optax builds `one_hot [B, U, K]`)
appears. An alignment takes one class per frame: a column "everything else" would have no part in
it. The sum over alignments is `lattice`'s; tests hold it to `optax.ctc_loss` on the same
classes, which in float32 loses accuracy with the length and keeps several copies of its input.
"""

from typing import Any

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

    Returns:
      `nll`, float [B], in nats per row, in the dtype of `log_probs`; exactly 0 with a gradient of
      exactly 0 where no alignment fits. `feasible`, bool [B].

    Examples:
      Three slots, the label 7 once: it may stand at each of them, or at several side by side.

      >>> log_probs = jnp.log(jnp.full((1, 3, 2), 0.5))  # slack and the label are as likely
      >>> rows = jnp.ones((1, 3), bool), jnp.array([[7]]), jnp.array([1])
      >>> jnp.exp(-ctc_loss(log_probs, *rows, collapse="slack_only")[0]).round(4)  # 3 of 8
      Array([0.375], dtype=float32)
      >>> jnp.exp(-ctc_loss(log_probs, *rows, collapse="merge")[0]).round(4)  # and 3 more
      Array([0.75], dtype=float32)
    """
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
      frames: bool [B, L]; slots that are aligned.
      labels: int [B, U].
      label_count: int [B]; labels of each row.
      classes: int [B, 1 + U]; slack's id, then the labels.
      collapse: The map from frames to labels.

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
