"""lm-evaluation-harness over our own sampler and likelihood (extra `eval`).

`responder` answers texts, `language_model` plugs it into lm-eval, `tasks` finds, loads and runs
tasks, `presets` has LLaDA's published settings. Importing this imports nothing of lm-eval.
"""

from jax_mdlm.evaluation.harness.language_model import language_model
from jax_mdlm.evaluation.harness.presets import PRESETS, Preset
from jax_mdlm.evaluation.harness.responder import Asked, Responder, Scored

__all__ = ["PRESETS", "Asked", "Preset", "Responder", "Scored", "language_model"]
