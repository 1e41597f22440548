"""Converts checkpoints to and from PyTorch. `python -m jax_mdlm.convert --help`."""

from jax_mdlm.convert.flags import main

__all__ = ["main"]
