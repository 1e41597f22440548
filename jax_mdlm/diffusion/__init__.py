"""The mathematics of masked diffusion with slack, in pure jnp: noise, slack, CTC, the objective."""

from jax_mdlm.diffusion.corrupt import corrupt
from jax_mdlm.diffusion.ctc import ctc_loss
from jax_mdlm.diffusion.objectives import RowCounts, count_rows, ctc_weight_at, objective
from jax_mdlm.diffusion.schedule import mask_probability, sample_levels
from jax_mdlm.diffusion.slack import Augmented, collapse_tokens, insert_slack

__all__ = [
    "Augmented",
    "RowCounts",
    "collapse_tokens",
    "corrupt",
    "count_rows",
    "ctc_loss",
    "ctc_weight_at",
    "insert_slack",
    "mask_probability",
    "objective",
    "sample_levels",
]
