"""Classifier-free guidance: a denoiser that runs every row twice, with and without its prompt."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_mdlm.sampling.loop import Denoise


@dataclasses.dataclass(frozen=True)
class Guided:
    """`uncond + (scale + 1) (cond - uncond)`, as in LLaDA's `generate.py`.

    The unconditional row is the same canvas with everything that the caller gave masked: the
    prompt, and in infilling the text around the gaps. Padding stays padding in both.

    Attributes:
      denoise: Takes 2 B rows: the canvases, then their unconditional twins.
      given: bool [B, L].
      scale: Above 0.
      mask_id: Id of the mask.
    """

    denoise: Denoise
    given: jax.Array
    scale: float
    mask_id: int

    def full(self, canvas: jax.Array, start: jax.Array, end: jax.Array) -> tuple[jax.Array, Any]:
        """Runs the 2 B rows; the cache holds so many."""
        logits, cache = self.denoise.full(self._both(canvas), start, end)
        return self._guide(logits), cache

    def cached(self, cache: Any, canvas: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
        """Runs the windows of 2 B rows."""
        return self._guide(self.denoise.cached(cache, self._both(canvas), start, end))

    def _both(self, canvas: jax.Array) -> jax.Array:
        return jnp.concatenate([canvas, jnp.where(self.given, self.mask_id, canvas)])

    def _guide(self, logits: jax.Array) -> jax.Array:
        with_prompt, without = jnp.split(logits, 2)
        return without + (self.scale + 1) * (with_prompt - without)
