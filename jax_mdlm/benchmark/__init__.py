"""Measures parts of the package against the plain way of writing them."""

from jax_mdlm.benchmark.flags import main

__all__ = ["main"]
