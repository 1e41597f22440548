"""The network: parameter table, layers, denoiser, windows of it for sampling, int8 weights."""

from jax_mdlm.model.denoiser import apply, encode, head, init, project
from jax_mdlm.model.weights import abstract_prepared, cast, prepare, quantize, unstack
from jax_mdlm.model.window import Cache, Window, encode_window

__all__ = [
    "Cache",
    "Window",
    "abstract_prepared",
    "apply",
    "cast",
    "encode",
    "encode_window",
    "head",
    "init",
    "prepare",
    "project",
    "quantize",
    "unstack",
]
