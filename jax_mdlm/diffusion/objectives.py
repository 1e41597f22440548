"""The training objective: masked cross-entropy on slack-augmented rows, and CTC.

Enters: the denoiser's last hidden states, its head, and a `Corruption`. Leaves: the loss that
`training` differentiates, and its metrics.

Cross-entropy needs four numbers per slot (`logits`), CTC the `1 + U` columns of the head that the
row's labels name (`lattice`).
"""

import flax.struct
import jax
import jax.numpy as jnp

from jax_mdlm.config import ObjectiveConfig
from jax_mdlm.containers import Corruption, Mean, SpecialIds
from jax_mdlm.diffusion.ctc import clamp_observed, ctc_feasible, ctc_loss
from jax_mdlm.diffusion.logits import Constrain, Parts, SlotLogits, slot_logits


@flax.struct.dataclass
class RowCounts:
    """Rows that each term is averaged over.

    Attributes:
      ce: float32 []; rows with a response.
      ctc: float32 []; rows with labels that some alignment fits.
    """

    ce: jax.Array
    ctc: jax.Array


def objective(
    hidden: jax.Array,
    head: jax.Array,
    corruption: Corruption,
    ids: SpecialIds,
    config: ObjectiveConfig,
    *,
    ctc_weight: jax.Array | float,
    rows: RowCounts | None = None,
    constrain: Constrain | None = None,
    shards: tuple[int, int] = (1, 1),
) -> tuple[jax.Array, dict[str, Mean]]:
    """`ce + ctc_weight * ctc` (arXiv 2601.22947).

    `ce`: per row `sum over masked slots of -log p(target) / p_mask`, divided by the supervised
    response slots; averaged over rows with a response (LLaDA's fine-tuning loss, arXiv 2502.09992).
    `ctc`: per row the negative log-likelihood of the labels over all alignments, divided by the
    label count; averaged over rows with labels that some alignment fits.

    Args:
      hidden: float [B, L, D]; what the head multiplies (after the last norm).
      head: float [D, V].
      corruption: Corrupted rows, [B, L] and [B, U].
      ids: Special token ids.
      config: Objective; static. CTC is left out of the program where its weight is always 0.
      ctc_weight: float []; lambda at this step, from `ctc_weight_at`.
      rows: Denominators of the whole batch, where `corruption` is one of its microbatches: the
        losses and gradients of the microbatches then add up to those of the batch. Default: the
        counts of these rows.
      constrain: `constrain(array, *logical_axes) -> array`; default: no constraints.
      shards: Parts into which a mesh cuts the slots of all rows, and the vocabulary.

    Returns:
      The loss, float [], in nats (per slot for ce, per label for ctc), and metrics to be added over
      microbatches: `ce`, `ctc` (nats), `accuracy` (share of masked slots), `slack_target`,
      `slack_predicted` (shares of masked frames), `padding` (share of supervised slots),
      `infeasible` (share of rows with labels), `nll_bound` (nats per label). `ctc` and
      `infeasible` only where CTC is computed.
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
    ce = _cross_entropy(slots, corruption)
    masked_frames = corruption.masked & corruption.frames
    metrics = {
        "ce": Mean.of(ce, jnp.any(corruption.response, axis=1)),
        "accuracy": Mean.of(slots.target >= slots.largest, corruption.masked),
        "slack_target": Mean.of(corruption.targets == ids.slack, masked_frames),
        "slack_predicted": Mean.of(slots.slack >= slots.largest, masked_frames),
        "padding": Mean.of(~corruption.frames, corruption.response),
        "nll_bound": _bound(slots, corruption),
    }
    ce_rows = metrics["ce"].count if rows is None else rows.ce
    loss = jnp.sum(ce) / jnp.maximum(ce_rows, 1.0)
    if not _uses_ctc(config):
        return loss, metrics

    classes = _classes(corruption, ids)
    log_probs = _class_log_probs(hidden, head, classes, slots.log_normaliser, fix)
    ctc, feasible = _ctc(log_probs, corruption, classes, config)
    has_labels = corruption.label_count > 0
    metrics["ctc"] = Mean.of(ctc, has_labels & feasible)
    metrics["infeasible"] = Mean.of(~feasible, has_labels)
    ctc_rows = metrics["ctc"].count if rows is None else rows.ctc
    return loss + ctc_weight * jnp.sum(ctc) / jnp.maximum(ctc_rows, 1.0), metrics


def count_rows(corruption: Corruption, ids: SpecialIds, config: ObjectiveConfig) -> RowCounts:
    """Counts the rows of each term without the model, for gradient accumulation.

    Whether an alignment fits depends on frames, labels and observed slots only.

    Args:
      corruption: The whole batch, [B, L] and [B, U].
      ids: Special token ids.
      config: Objective; static.

    Returns:
      The counts, float32 []; `ctc` is 0 where CTC is not computed.
    """
    ce = jnp.sum(jnp.any(corruption.response, axis=1), dtype=jnp.float32)
    if not _uses_ctc(config):
        return RowCounts(ce=ce, ctc=jnp.zeros((), jnp.float32))
    feasible = ctc_feasible(
        corruption.targets,
        ~corruption.masked & (config.observed == "clamp"),
        corruption.frames,
        corruption.labels,
        corruption.label_count,
        _classes(corruption, ids),
        collapse=config.collapse,
    )
    ctc = jnp.sum(feasible & (corruption.label_count > 0), dtype=jnp.float32)
    return RowCounts(ce=ce, ctc=ctc)


def ctc_weight_at(config: ObjectiveConfig, step: jax.Array | int) -> jax.Array:
    """lambda at an update: constant, or linear from `ctc_weight_start`, then constant.

    Args:
      config: Objective; `ctc_weight_start < 0` means constant.
      step: int []; updates made so far.

    Returns:
      float32 [].
    """
    end = jnp.asarray(config.ctc_weight, jnp.float32)
    if config.ctc_weight_start < 0 or config.ctc_weight_steps == 0:
        return end
    share = jnp.minimum(jnp.asarray(step, jnp.float32) / config.ctc_weight_steps, 1.0)
    return config.ctc_weight_start + share * (end - config.ctc_weight_start)


def _uses_ctc(config: ObjectiveConfig) -> bool:
    return config.ctc_weight > 0 or config.ctc_weight_start > 0


def _unconstrained(x: jax.Array, *axes: str | None) -> jax.Array:
    return x


def _cross_entropy(slots: SlotLogits, corruption: Corruption) -> jax.Array:
    """Weighted cross-entropy per supervised slot of each row, [B]; 0 without a response."""
    weighted = (slots.log_normaliser - slots.target) * corruption.weight[:, None]
    total = jnp.sum(jnp.where(corruption.masked, weighted, 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(corruption.response, axis=1), 1)


def _bound(slots: SlotLogits, corruption: Corruption) -> Mean:
    """Negative ELBO per label: `sum over masked frames of -log p(target) / p_mask` / label count.

    An upper bound on the negative log-likelihood of the text, in expectation over the noise (Eq. 4
    of arXiv 2502.09992, t = p): the text is at least as likely as one canvas that collapses to it.
    """
    weighted = (slots.log_normaliser - slots.target) * corruption.weight[:, None]
    total = jnp.sum(jnp.where(corruption.masked & corruption.frames, weighted, 0.0))
    total = jax.lax.stop_gradient(total).astype(jnp.float32)
    return Mean(total, jnp.sum(corruption.label_count, dtype=jnp.float32))


def _classes(corruption: Corruption, ids: SpecialIds) -> jax.Array:
    """Token ids of the compact alphabet: slack, then the labels, int32 [B, 1 + U]."""
    return jnp.pad(corruption.labels, ((0, 0), (1, 0)), constant_values=ids.slack)


def _class_log_probs(
    hidden: jax.Array,
    head: jax.Array,
    classes: jax.Array,
    log_normaliser: jax.Array,
    constrain: Constrain,
) -> jax.Array:
    """Log-probabilities of each row's own classes, [B, L, 1 + U], from those columns only."""
    # Every device takes its rows of the head (D is cut) at the labels of all rows; then rows of the
    # batch change places with rows of the head. Gathering the head instead moves V / U as much.
    columns = jnp.take(head, classes, axis=1, mode="clip").astype(hidden.dtype)  # [D, B, 1 + U]
    columns = constrain(columns, "embed", None, None)
    columns = constrain(columns, None, "batch", None)
    logits = jnp.einsum(
        "bld,dbu->blu", hidden, columns, preferred_element_type=log_normaliser.dtype
    )
    # The lattice walks along the slots: every device needs the whole length of its rows.
    return constrain(logits - log_normaliser[..., None], "batch", None, None)


def _ctc(
    log_probs: jax.Array, corruption: Corruption, classes: jax.Array, config: ObjectiveConfig
) -> tuple[jax.Array, jax.Array]:
    """CTC per label of each row, [B], 0 where nothing fits or no labels are; feasibility [B]."""
    if config.observed == "clamp":
        log_probs = clamp_observed(log_probs, corruption.targets, ~corruption.masked, classes)
    nll, feasible = ctc_loss(
        log_probs,
        corruption.frames,
        corruption.labels,
        corruption.label_count,
        collapse=config.collapse,
        through=config.ctc_through,
    )
    has_labels = corruption.label_count > 0
    return jnp.where(has_labels, nll / jnp.maximum(corruption.label_count, 1), 0.0), feasible
