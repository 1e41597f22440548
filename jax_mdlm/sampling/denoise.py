"""The model as the loop's denoiser: as few slots and columns of the head as the result allows.

Enters: parameters and which slots exist. Leaves: logits of one block. Columns are traced and sizes
must be static, so a window's width is chosen among a few, each twice the one before: a generation
stays one program, and no window is more than twice too wide.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_mdlm import model
from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import Params, Region
from jax_mdlm.sampling.loop import Denoise
from jax_mdlm.sampling.options import SampleOptions
from jax_mdlm.sharding import Layout, constrain


@dataclasses.dataclass(frozen=True)
class ModelDenoise:
    """A `loop.Denoise`.

    Attributes:
      params: In the compute dtype.
      config: The network.
      valid: bool [B, L]; slots that are not padding.
      options: The decoding.
      region: What is decoded.
      layout: Mesh and rules; None = one device.
    """

    params: Params
    config: ModelConfig
    valid: jax.Array
    options: SampleOptions
    region: Region
    layout: Layout | None

    def full(self, canvas: jax.Array, start: jax.Array, end: jax.Array) -> tuple[jax.Array, Any]:
        """A run on the whole canvas, up to `end` where blocks may be appended."""
        keep = self.options.settings.cache != "none"
        total = canvas.shape[1]

        def run(width: int) -> tuple[jax.Array, model.Cache | None]:
            tokens = constrain(self.layout, canvas[:, :width], "batch", "length")
            window = model.Window(start, self.options.settings.block_length)
            hidden, cache = model.encode_window(
                self.params,
                tokens,
                self.config,
                window,
                self._visible(end)[:, :width],
                self.layout,
                keep=keep,
            )
            return self._project(hidden), _pad_slots(cache, total)

        region = self.region
        return _by_width(
            [region.start + width for width in _doublings(region.length, region.limit)], end, run
        )

    def cached(self, cache: Any, canvas: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
        """A run on the block (`dual`) or on all slots from its start (`prefix`)."""
        block, total = self.options.settings.block_length, canvas.shape[1]
        visible = self._visible(end)

        def run(width: int) -> jax.Array:
            first = (
                start
                if self.options.settings.cache == "dual"
                else jnp.clip(end - width, 0, total - width)
            )
            tokens = jax.lax.dynamic_slice_in_dim(canvas, first, width, axis=1)
            hidden, _ = model.encode_window(
                self.params,
                tokens,
                self.config,
                model.Window(start, block, first),
                visible,
                self.layout,
                past=cache,
            )
            return self._project(hidden)

        if self.options.settings.cache == "dual":
            return run(block)
        return _by_width(_doublings(block, self.region.limit), end - start, run)

    def _visible(self, end: jax.Array) -> jax.Array:
        if self.region.limit == self.region.length:
            return self.valid
        return self.valid & (jnp.arange(self.valid.shape[1]) < end)

    def _project(self, hidden: jax.Array) -> jax.Array:
        return model.project(hidden, model.head(self.params), self.layout)


@dataclasses.dataclass(frozen=True)
class Guided:
    """Guidance without a classifier: `uncond + (scale + 1) (cond - uncond)`, LLaDA's form.

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
        return guide(logits, self.scale), cache

    def cached(self, cache: Any, canvas: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
        """Runs the windows of 2 B rows."""
        return guide(self.denoise.cached(cache, self._both(canvas), start, end), self.scale)

    def _both(self, canvas: jax.Array) -> jax.Array:
        return jnp.concatenate([canvas, jnp.where(self.given, self.mask_id, canvas)])


def guide(both: jax.Array, scale: float) -> jax.Array:
    """Guided values [B, ...] of 2 B rows: logits, or states before a linear head."""
    with_prompt, without = jnp.split(both, 2)
    return without + (scale + 1) * (with_prompt - without)


def _doublings(least: int, most: int) -> list[int]:
    """`least`, twice that, and so on; the last is `most`."""
    sizes = [least]
    while sizes[-1] < most:
        sizes.append(min(2 * sizes[-1], most))
    return sizes


def _by_width(widths: Sequence[int], needed: jax.Array, run: Callable[[int], Any]) -> Any:
    """`run(width)` with the first of the rising `widths` that is at least `needed` []."""
    if len(widths) == 1:
        return run(widths[0])
    index = jnp.searchsorted(jnp.asarray(widths), needed)
    return jax.lax.switch(index, [lambda width=width: run(width) for width in widths])


def _pad_slots(cache: model.Cache | None, total: int) -> model.Cache | None:
    """Keys and values [..., S, K, H] with room for `total` slots."""

    def pad(slots: jax.Array) -> jax.Array:
        widths = [(0, 0)] * slots.ndim
        widths[-3] = (0, total - slots.shape[-3])
        return jnp.pad(slots, widths)

    return jax.tree.map(pad, cache)
