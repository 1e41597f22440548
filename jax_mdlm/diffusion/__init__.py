"""The mathematics of masked diffusion with slack, in pure jnp: noise, slack, CTC, the objective."""

from jax_mdlm.diffusion.corrupt import corrupt, mask_probability, sample_levels
from jax_mdlm.diffusion.ctc import ctc_loss
from jax_mdlm.diffusion.objectives import (
    count_rows,
    objective,
    training_metrics,
    validation_metrics,
    weights_at,
)
from jax_mdlm.diffusion.slack import Augmented, collapse_tokens, insert_slack
from jax_mdlm.diffusion.terms import TERMS, Seen, Term, TermWeight

__all__ = [
    "TERMS",
    "Augmented",
    "Seen",
    "Term",
    "TermWeight",
    "collapse_tokens",
    "corrupt",
    "count_rows",
    "ctc_loss",
    "insert_slack",
    "mask_probability",
    "objective",
    "sample_levels",
    "training_metrics",
    "validation_metrics",
    "weights_at",
]
