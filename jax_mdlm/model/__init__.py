"""The network: parameter table, layers, denoiser."""

from jax_mdlm.model.denoiser import apply, encode, head, init, project

__all__ = ["apply", "encode", "head", "init", "project"]
