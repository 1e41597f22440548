"""The network: parameter table, layers, denoiser, windows of it for sampling, quantised weights."""

from jax_mdlm.model.denoiser import apply, encode, head, init, project
from jax_mdlm.model.form import Form, abstract_prepared, cast, prepare, unstack
from jax_mdlm.model.window import Cache, Window, encode_window

__all__ = [
    "Cache",
    "Form",
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
    "unstack",
]
