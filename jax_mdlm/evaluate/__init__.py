"""Evaluates trained runs. `python -m jax_mdlm.evaluate --help`."""

from jax_mdlm.evaluate.arguments import main

__all__ = ["main"]
