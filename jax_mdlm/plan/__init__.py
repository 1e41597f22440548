"""Plans a run for a TPU slice that is not there. `python -m jax_mdlm.plan --help`."""

from jax_mdlm.plan.flags import main

__all__ = ["main"]
