"""Samples: prompts in, text out. `python -m jax_mdlm.sample --help`."""

from jax_mdlm.sample.arguments import main

__all__ = ["main"]
