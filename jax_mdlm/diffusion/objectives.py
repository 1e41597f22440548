"""The training objective: the weighted sum of its terms, on slack-augmented rows.

Enters: the denoiser's last hidden states, its head, and a `Corruption`. Leaves: the loss that
`training` differentiates, and its metrics. What the terms are is said in `terms`.

With gradient accumulation the parts of a batch must be divided by counts of the whole batch. How
many rows have an alignment is known before the model runs (frames, labels and observed slots decide
it), so `count_rows` asks first, and the sum of the parts is the gradient of the batch exactly.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from jax_mdlm.config import ObjectiveConfig
from jax_mdlm.containers import Corruption, Mean, SpecialIds
from jax_mdlm.diffusion.logits import Constrain, Parts, slot_logits
from jax_mdlm.diffusion.terms import TERMS, Seen, Term

Scalars = Mapping[str, jax.Array | float]  # one per term, by name


def objective(
    hidden: jax.Array,
    head: jax.Array,
    corruption: Corruption,
    ids: SpecialIds,
    config: ObjectiveConfig,
    *,
    weights: Scalars | None = None,
    rows: Scalars | None = None,
    constrain: Constrain | None = None,
    shards: tuple[int, int] = (1, 1),
    terms: Sequence[Term] = TERMS,
) -> tuple[jax.Array, dict[str, Mean]]:
    """The sum of the terms; with the usual ones `ce + ctc_weight * ctc` (arXiv 2601.22947).

    `ce`: per row `sum over masked slots of -log p(target) / p_mask`, divided by the supervised
    response slots; averaged over rows with a response (LLaDA's fine-tuning loss, arXiv 2502.09992).
    `ctc`: per row the negative log-likelihood of the labels over all alignments, divided by the
    label count; averaged over rows with labels that some alignment fits.

    Args:
      hidden: float [B, L, D]; what the head multiplies (after the last norm).
      head: float [D, V].
      corruption: Corrupted rows, [B, L] and [B, U].
      ids: Special token ids.
      config: Objective; static. A term is left out of the program where its weight is always 0.
      weights: float [] of each term that has one, at this step, from `weights_at`. Default: where
        they end.
      rows: Denominators of the whole batch, from `count_rows`, where `corruption` is one of its
        microbatches: the losses and gradients of the microbatches then add up to those of the
        batch. Default: the counts of these rows.
      constrain: `constrain(array, *logical_axes) -> array`; default: no constraints.
      shards: Parts into which a mesh cuts the slots of all rows, and the vocabulary.
      terms: What is added up; static.

    Returns:
      The loss, float [], in nats (per slot for ce, per label for ctc), and metrics to be added over
      microbatches: `ce`, `ctc` (nats), `accuracy` (share of masked slots), `slack_target`,
      `slack_predicted` (shares of masked frames), `padding` (share of supervised slots),
      `infeasible` (share of rows with labels), `nll_bound` (nats per label). `ctc` and
      `infeasible` only where CTC is computed.

    Raises:
      ValueError: a term gives other metrics than it names.
    """
    fix = constrain or _unconstrained
    cut, vocab_cut = shards
    slots = slot_logits(
        hidden,
        head,
        corruption.targets,
        ids.slack,
        parts=Parts.of(head.shape[1], corruption.targets.size // cut, config.loss_tile, vocab_cut),
        constrain=fix,
    )
    seen = Seen(hidden, head, slots, corruption, ids, config, fix)
    loss, metrics = None, {}
    for term in used_terms(config, terms):
        total, named = term.value(seen)
        if set(named) != term.metrics or metrics.keys() & named.keys():
            raise ValueError(
                f"term {term.name} must give the metrics that it alone names, "
                f"{sorted(term.metrics)}, got {sorted(named)}"
            )
        metrics |= named
        if term.weight is not None:
            weight = term.weight(config).end if weights is None else weights[term.name]
            total = weight * total
        count = named[term.name].count if rows is None else rows[term.name]
        part = total / jnp.maximum(count, 1.0)
        loss = part if loss is None else loss + part
    if loss is None:
        raise ValueError("an objective must have a term, got none")
    return loss, metrics


def used_terms(config: ObjectiveConfig, terms: Sequence[Term] = TERMS) -> list[Term]:
    """Those whose weight is ever above 0: the others are not computed."""
    return [term for term in terms if term.weight is None or term.weight(config).used]


def count_rows(
    corruption: Corruption,
    ids: SpecialIds,
    config: ObjectiveConfig,
    terms: Sequence[Term] = TERMS,
) -> dict[str, jax.Array]:
    """Counts the rows of each term without the model, for gradient accumulation.

    Args:
      corruption: The whole batch, [B, L] and [B, U].
      ids: Special token ids.
      config: Objective; static.
      terms: Those of the objective; static.

    Returns:
      float32 [] of every term that is computed, by name.
    """
    return {term.name: term.rows(corruption, ids, config) for term in used_terms(config, terms)}


def weights_at(
    config: ObjectiveConfig, step: jax.Array | int, terms: Sequence[Term] = TERMS
) -> dict[str, jax.Array]:
    """Weights at an update, float32 [] of every term that has one, by name.

    Args:
      config: Objective; static.
      step: int []; updates made so far.
      terms: Those of the objective; static.
    """
    return {term.name: term.weight(config).at(step) for term in terms if term.weight is not None}


def training_metrics(terms: Sequence[Term] = TERMS) -> list[str]:
    """Metrics that the console shows of training, in order: terms, then what is beside them."""
    return [*(term.name for term in terms), *(name for term in terms for name in term.shown)]


def validation_metrics(terms: Sequence[Term] = TERMS) -> list[str]:
    """Metrics that are measured on held-out rows, in order."""
    return [*(name for term in terms for name in term.validated), *training_metrics(terms)]


def _unconstrained(x: jax.Array, *axes: str | None) -> jax.Array:
    return x
