"""Trains: `python -m jax_mdlm.train --help`."""

from jax_mdlm.train.arguments import main

__all__ = ["main"]
