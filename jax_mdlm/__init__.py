"""jax_mdlm: masked-diffusion language models in JAX, trained so that a token may slip by a slot."""

__version__ = "0.1.0"
