"""Trains: `python -m jax_mdlm.train --help`."""

from jax_mdlm.train.flags import main

__all__ = ["main"]
