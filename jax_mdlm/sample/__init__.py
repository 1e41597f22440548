"""Samples: prompts in, text out. `python -m jax_mdlm.sample --help`."""

from jax_mdlm.sample.flags import main

__all__ = ["main"]
