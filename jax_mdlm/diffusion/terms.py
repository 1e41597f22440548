"""Terms of the objective: each a sum over rows, the rows that it is averaged over, and a weight.

Enters: what the head says of every slot (`Seen`). Leaves: per term a total that is differentiated,
and its metrics. A new term is a function here and an entry of `TERMS`; the training log, the
validation and the console take its metrics from there, in the order in which terms name them (`jit`
sorts what it returns); a term that gives other metrics than it names is refused.

Cross-entropy needs four numbers per slot (`logits`), CTC the `1 + U` columns of the head that the
row's labels name (`lattice`).
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from jax_mdlm.config import Config, ObjectiveConfig
from jax_mdlm.containers import Corruption, Mean, SpecialIds
from jax_mdlm.diffusion.ctc import clamp_observed, ctc_feasible, ctc_loss
from jax_mdlm.diffusion.logits import Constrain, SlotLogits


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a term is computed from.

    Attributes:
      hidden: float [B, L, D]; what the head multiplies.
      head: float [D, V].
      slots: Logits of interest and the normaliser of every slot, [B, L] each.
      corruption: Corrupted rows, [B, L] and [B, U].
      ids: Special token ids.
      config: Objective; static.
      constrain: `constrain(array, *logical_axes) -> array`.
    """

    hidden: jax.Array
    head: jax.Array
    slots: SlotLogits
    corruption: Corruption
    ids: SpecialIds
    config: ObjectiveConfig
    constrain: Constrain


@dataclasses.dataclass(frozen=True)
class TermWeight:
    """What a term is multiplied by: constant, or linear from `start` over `steps`, then constant.

    Attributes:
      end: The weight, or where it ends.
      start: At step 0; below 0 = constant.
      steps: Updates over which it moves; 0 = constant.
    """

    end: float
    start: float = -1.0
    steps: int = 0

    @property
    def used(self) -> bool:
        """Whether it is ever above 0; a term whose weight never is stays out of the program."""
        return self.end > 0 or self.start > 0

    def at(self, step: jax.Array | int) -> jax.Array:
        """The weight after `step` (int []) updates, float32 []."""
        end = jnp.asarray(self.end, jnp.float32)
        if self.start < 0 or self.steps == 0:
            return end
        share = jnp.minimum(jnp.asarray(step, jnp.float32) / self.steps, 1.0)
        return self.start + share * (end - self.start)


def rows_with_response(
    corruption: Corruption, ids: SpecialIds, config: ObjectiveConfig
) -> jax.Array:
    """Rows with a response, float32 []."""
    return jnp.sum(jnp.any(corruption.response, axis=1), dtype=jnp.float32)


@dataclasses.dataclass(frozen=True)
class Term:
    """A term of the objective: `weight * total / rows`.

    Attributes:
      name: Of the term, and of the metric that is its mean; `<name>_weight` is that of its weight.
      value: Gives the total over rows (float [], differentiated) and the metrics, `name` among
        them: its count is the number of rows that the total is divided by.
      rows: Counts these rows without the model, float32 [], for gradient accumulation.
      weight: Its settings; None = 1, always.
      shown: Its other metrics that the console shows, and that validation measures.
      validated: Those that validation measures first; of training the file has them.
      written: Those that only the file has, of training.
      warning: What is to be said of a window's values, "" = nothing.
    """

    name: str
    value: Callable[[Seen], tuple[jax.Array, dict[str, Mean]]]
    rows: Callable[[Corruption, SpecialIds, ObjectiveConfig], jax.Array] = rows_with_response
    weight: Callable[[ObjectiveConfig], TermWeight] | None = None
    shown: tuple[str, ...] = ()
    validated: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    warning: Callable[[Mapping[str, float], Config], str] = lambda values, config: ""

    @property
    def metrics(self) -> frozenset[str]:
        """Names of all its metrics."""
        return frozenset((self.name, *self.shown, *self.validated, *self.written))


def _cross_entropy(seen: Seen) -> tuple[jax.Array, dict[str, Mean]]:
    """Masked cross-entropy (LLaDA's fine-tuning loss, arXiv 2502.09992).

    Per row `sum over masked slots of -log p(target) / p_mask`, divided by the supervised response
    slots; averaged over rows with a response.
    """
    slots, corruption = seen.slots, seen.corruption
    weighted = (slots.log_normaliser - slots.target) * corruption.weight[:, None]
    total = jnp.sum(jnp.where(corruption.masked, weighted, 0.0), axis=1)
    ce = total / jnp.maximum(jnp.sum(corruption.response, axis=1), 1)
    masked_frames = corruption.masked & corruption.frames
    metrics = {
        "ce": Mean.of(ce, jnp.any(corruption.response, axis=1)),
        "accuracy": Mean.of(slots.target >= slots.largest, corruption.masked),
        "slack_target": Mean.of(corruption.targets == seen.ids.slack, masked_frames),
        "slack_predicted": Mean.of(slots.slack >= slots.largest, masked_frames),
        "padding": Mean.of(~corruption.frames, corruption.response),
        "nll_bound": _bound(slots, corruption),
    }
    return jnp.sum(ce), metrics


def _bound(slots: SlotLogits, corruption: Corruption) -> Mean:
    """Negative ELBO per label: `sum over masked frames of -log p(target) / p_mask` / label count.

    An upper bound on the negative log-likelihood of the text, in expectation over the noise (Eq. 4
    of arXiv 2502.09992, t = p): the text is at least as likely as one canvas that collapses to it.
    """
    weighted = (slots.log_normaliser - slots.target) * corruption.weight[:, None]
    total = jnp.sum(jnp.where(corruption.masked & corruption.frames, weighted, 0.0))
    total = jax.lax.stop_gradient(total).astype(jnp.float32)
    return Mean(total, jnp.sum(corruption.label_count, dtype=jnp.float32))


def _ctc(seen: Seen) -> tuple[jax.Array, dict[str, Mean]]:
    """CTC (arXiv 2601.22947): the labels' negative log-likelihood over all alignments.

    Divided by the label count of each row; averaged over rows with labels that some alignment fits.
    """
    corruption, config = seen.corruption, seen.config
    classes = _classes(corruption, seen.ids)
    log_probs = _class_log_probs(seen, classes)
    if config.observed == "clamp":
        log_probs = clamp_observed(log_probs, corruption.targets, ~corruption.masked, classes)
    nll, feasible = ctc_loss(
        log_probs,
        corruption.frames,
        corruption.labels,
        corruption.label_count,
        collapse=config.collapse,
    )
    has_labels = corruption.label_count > 0
    ctc = jnp.where(has_labels, nll / jnp.maximum(corruption.label_count, 1), 0.0)
    metrics = {
        "ctc": Mean.of(ctc, has_labels & feasible),
        "infeasible": Mean.of(~feasible, has_labels),
    }
    return jnp.sum(ctc), metrics


def _rows_with_alignment(
    corruption: Corruption, ids: SpecialIds, config: ObjectiveConfig
) -> jax.Array:
    """Rows with labels that some alignment fits: frames, labels and observed slots decide it."""
    feasible = ctc_feasible(
        corruption.targets,
        ~corruption.masked & (config.observed == "clamp"),
        corruption.frames,
        corruption.labels,
        corruption.label_count,
        _classes(corruption, ids),
        collapse=config.collapse,
    )
    return jnp.sum(feasible & (corruption.label_count > 0), dtype=jnp.float32)


def _classes(corruption: Corruption, ids: SpecialIds) -> jax.Array:
    """Token ids of the compact alphabet: slack, then the labels, int32 [B, 1 + U]."""
    return jnp.pad(corruption.labels, ((0, 0), (1, 0)), constant_values=ids.slack)


def _class_log_probs(seen: Seen, classes: jax.Array) -> jax.Array:
    """Log-probabilities of each row's own classes, [B, L, 1 + U], from those columns only."""
    hidden, log_normaliser = seen.hidden, seen.slots.log_normaliser
    # Every device takes its rows of the head (D is cut) at the labels of all rows; then rows of the
    # batch change places with rows of the head. Gathering the head instead moves V / U as much.
    columns = jnp.take(seen.head, classes, axis=1, mode="clip")  # [D, B, 1 + U]
    columns = seen.constrain(columns.astype(hidden.dtype), "embed", None, None)
    columns = seen.constrain(columns, None, "batch", None)
    logits = jnp.einsum(
        "bld,dbu->blu", hidden, columns, preferred_element_type=log_normaliser.dtype
    )
    # The lattice walks along the slots: every device needs the whole length of its rows.
    return seen.constrain(logits - log_normaliser[..., None], "batch", None, None)


def _without_alignment(values: Mapping[str, float], config: Config) -> str:
    """Warns where rows without an alignment are common; says what gives them one."""
    if values["infeasible"] <= 0.01:
        return ""
    # Slack between equal neighbours, which needs room.
    objective = config.objective
    if objective.collapse == "merge" and not objective.slack_max:
        remedy = "set objective.slack_max above 0: without slack equal neighbours merge"
    elif objective.collapse == "merge" and not objective.separate_repeats:
        remedy = "set objective.separate_repeats=true, which is false here"
    else:
        remedy = f"raise data.length={config.data.length}, which leaves their slack no room"
    share = f"{values['infeasible']:.1%} of the rows have no alignment"
    return f"{share} and are left out of CTC; {remedy}"


CE = Term(
    "ce",
    _cross_entropy,
    shown=("accuracy", "slack_predicted"),
    validated=("nll_bound",),
    written=("slack_target", "padding"),
)
CTC = Term(
    "ctc",
    _ctc,
    rows=_rows_with_alignment,
    weight=lambda config: TermWeight(
        config.ctc_weight, config.ctc_weight_start, config.ctc_weight_steps
    ),
    shown=("infeasible",),
    warning=_without_alignment,
)
TERMS = (CE, CTC)
