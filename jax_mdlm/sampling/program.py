"""The compiled programs of the sampler: a whole generation, or a generation in parts.

Enters: parameters and a canvas on the device. Leaves: a `SampleState`. Everything static is in
`config`, `options`, `region` and `layout`: another value of one of them is another program.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jax_mdlm import model
from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import Params, Region, SampleState
from jax_mdlm.sampling.denoise import Guided, ModelDenoise
from jax_mdlm.sampling.loop import Denoise, decode, init_state
from jax_mdlm.sampling.options import SampleOptions
from jax_mdlm.sharding import Layout

_STATIC = ("config", "options", "region", "layout")


@functools.partial(jax.jit, static_argnames=_STATIC)
def decode_batch(
    params: Params,
    canvas: jax.Array,
    valid: jax.Array,
    key: jax.Array,
    first_row: jax.Array,
    strength: jax.Array,
    config: ModelConfig,
    options: SampleOptions,
    region: Region,
    layout: Layout | None,
) -> SampleState:
    """A whole generation.

    Args:
      params: Any float dtype, or `Quantized`.
      canvas: int32 [B, L].
      valid: bool [B, L].
      key: Typed PRNG key []; row `i` gets `fold_in(key, first_row + i)`.
      first_row: int32 [].
      strength: float32 []; for `options.strategy`, which may not read it.
      config: The network.
      options: The decoding.
      region: What is decoded.
      layout: Mesh and rules; None = one device.

    Returns:
      The final state, without its cache; what the host reads is whole on every device.
    """
    state = first_state(
        params, canvas, valid, key, first_row, strength, config, options, region, layout
    )
    denoise = _make_denoise(params, valid, state.given, config, options, region, layout)
    state = decode(denoise, state, options)
    return _readable(dataclasses.replace(state, cache=None), layout)


@functools.partial(jax.jit, static_argnames=_STATIC)
def first_state(
    params: Params,
    canvas: jax.Array,
    valid: jax.Array,
    key: jax.Array,
    first_row: jax.Array,
    strength: jax.Array,
    config: ModelConfig,
    options: SampleOptions,
    region: Region,
    layout: Layout | None,
) -> SampleState:
    """The state before the first call of `decode_batch`, whose arguments it takes."""
    there = jnp.arange(canvas.shape[1]) < region.start + region.length
    given = valid & there & (canvas != options.ids.mask)
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(
        first_row + jnp.arange(canvas.shape[0])
    )
    cache = None
    if options.settings.cache != "none":
        denoise = _make_denoise(params, valid, given, config, options, region, layout)
        column = jnp.zeros((), jnp.int32)
        form = jax.eval_shape(lambda: denoise.full(canvas, column, column)[1])
        cache = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), form)
    state = init_state(canvas, given, keys, options, region, cache, strength)
    return _readable(state, layout)


@functools.partial(jax.jit, static_argnames=("config", "options", "layout"), donate_argnums=1)
def continue_batch(
    params: Params,
    state: SampleState,
    valid: jax.Array,
    until: jax.Array,
    config: ModelConfig,
    options: SampleOptions,
    layout: Layout | None,
) -> SampleState:
    """Goes on until call `until` [] at the latest; `state` is donated."""
    denoise = _make_denoise(params, valid, state.given, config, options, state.region, layout)
    return _readable(decode(denoise, state, options, until), layout)


def lower(
    config: ModelConfig,
    options: SampleOptions,
    layout: Layout,
    *,
    form: model.Form,
    prompt_slots: int,
    rows: int = 1,
) -> jax.stages.Lowered:
    """The program of `sample` without parameters or devices: to compile it for a machine elsewhere.

    Args:
      config: The network.
      options: The decoding.
      layout: Mesh, perhaps of devices that are only described.
      form: Of the parameters.
      prompt_slots: Columns before the region.
      rows: B.

    Returns:
      The lowered program; `.compile().memory_analysis()` has its memory in bytes per device.
    """
    params, inputs, region = _abstract(config, options, layout, form, prompt_slots, rows)
    return decode_batch.lower(
        params, *inputs, config=config, options=options, region=region, layout=layout
    )


def _abstract(
    config: ModelConfig,
    options: SampleOptions,
    layout: Layout,
    form: model.Form,
    prompt_slots: int,
    rows: int,
) -> tuple[Params, tuple[Any, ...], Region]:
    """Parameters, the other inputs of `decode_batch`, and the region, as shapes."""
    region = options.region(prompt_slots)
    shape = (rows, region.start + region.limit)
    whole = layout.replicated
    inputs = (
        jax.ShapeDtypeStruct(shape, jnp.int32, sharding=layout.rows),
        jax.ShapeDtypeStruct(shape, jnp.bool_, sharding=layout.rows),
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.ShapeDtypeStruct((), jnp.int32, sharding=whole),
        jax.ShapeDtypeStruct((), jnp.float32, sharding=whole),
    )
    return model.abstract_prepared(config, form, layout), inputs, region


def _make_denoise(
    params: Params,
    valid: jax.Array,
    given: jax.Array,
    config: ModelConfig,
    options: SampleOptions,
    region: Region,
    layout: Layout | None,
) -> Denoise:
    # Master weights are float32: cast in the loop, every call would read them at twice the size.
    params = model.cast(params, config)
    if options.settings.guidance == 0:
        return ModelDenoise(params, config, valid, options, region, layout)
    twice = jnp.concatenate([valid, valid])
    denoise = ModelDenoise(params, config, twice, options, region, layout)
    return Guided(denoise, given, options.settings.guidance, options.ids.mask)


def _readable(state: SampleState, layout: Layout | None) -> SampleState:
    """What the host reads whole on every device: a process sees only what its own hold.

    The cache stays as the model makes it. Where every leaf is comes from here and not from the
    compiler: a state in other places would have `continue_batch` compiled once more.
    """
    if layout is None:
        return state
    names = ("canvas", "committed_at", "given", "step", "done", "score", "trace", "own")
    whole = jax.tree.map(
        lambda x: layout.constrain(x, *[None] * x.ndim), [getattr(state, name) for name in names]
    )
    cache = jax.tree.map(
        lambda x: layout.constrain(x, *[None] * (x.ndim - 4), "batch", None, "kv_heads", None),
        state.cache,
    )
    return dataclasses.replace(state, cache=cache, **dict(zip(names, whole, strict=True)))
