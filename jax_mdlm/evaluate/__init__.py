"""Evaluates trained runs. `python -m jax_mdlm.evaluate --help`."""

from jax_mdlm.evaluate.flags import main

__all__ = ["main"]
