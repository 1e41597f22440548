"""Decoding with the model: one compiled call per batch, and lists longer than a batch.

Enters: parameters and prompts as token ids. Leaves: the final `SampleState`, or text tokens. The
host sends a canvas and reads the result; between the two nothing leaves the device. `stream` is
for people who watch: it comes back every few calls.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jax_mdlm import model
from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import Params, Region, SampleState, Trace
from jax_mdlm.sampling.canvas import batches, check_prompts, make_canvas, response_tokens
from jax_mdlm.sampling.denoise import ModelDenoise
from jax_mdlm.sampling.guidance import Guided
from jax_mdlm.sampling.loop import Denoise, decode, init_state
from jax_mdlm.sampling.options import SampleOptions
from jax_mdlm.sharding import Layout


@dataclasses.dataclass(frozen=True)
class Answer:
    """One decoded response, on the host.

    Attributes:
      tokens: Text tokens (see `response_tokens`); in infilling from the first gap on.
      response: int32 [G]; the region as decoded, slack and terminator included.
      committed_at: int32 [G]; the model call that fixed each slot; -1 where the text was given.
      given: bool [G]; slots that the caller gave; all false but in infilling.
      calls: Model calls of the batch that the row was in.
      trace: The row's frames [calls + 1, G] and confidence [calls, G]; None if not asked for.
    """

    tokens: list[int]
    response: np.ndarray
    committed_at: np.ndarray
    given: np.ndarray
    calls: int
    trace: Trace | None = None

    @property
    def own_calls(self) -> int:
        """Calls that fixed a slot of this row: what the prompt takes alone (without remasking)."""
        return len(np.unique(self.committed_at[self.committed_at >= 0]))


def sample(
    params: Params,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    options: SampleOptions,
    key: jax.Array,
    *,
    rows: int | None = None,
    first_row: int = 0,
    layout: Layout | None = None,
) -> SampleState:
    """Decodes one batch of prompts.

    Row `i` draws from `fold_in(key, first_row + i)` and `loop`'s schedule: what a prompt gets
    does not depend on the size of its batch.

    Args:
      params: As from `model.init` or `model.prepare`; cast to `config.compute_dtype` once, before
        the loop, where they are wider.
      config: The network; static.
      prompts: Token ids of each prompt, of any lengths; all with masks to fill in, or none.
      options: Static; another value compiles another program.
      key: Typed PRNG key [].
      rows: B, the batch is filled up to it; None = one row per prompt. Rounded up to the parts
        into which `layout` cuts a batch.
      first_row: Number of the first prompt in a longer list.
      layout: Mesh and rules; None = one device.

    Returns:
      The final state, on device; the prompts are its first `len(prompts)` rows.

    Raises:
      ConfigError: no prompts, or one that does not fit (see `make_canvas`).
    """
    inputs, region = _place(config, prompts, options, key, rows, first_row, layout)
    return _decode(params, *inputs, config, options, region, layout)


def stream(
    params: Params,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    options: SampleOptions,
    key: jax.Array,
    *,
    every: int | Callable[[], int] = 1,
    layout: Layout | None = None,
) -> Iterator[SampleState]:
    """Decodes one batch of prompts like `sample`, and shows it on the way.

    Args:
      params: As in `sample`.
      config: As in `sample`.
      prompts: As in `sample`.
      options: As in `sample`.
      key: As in `sample`.
      every: Model calls between two states, at least 1; a function is asked before each part.
      layout: As in `sample`.

    Yields:
      The state after every `every` calls and the final one; before the next is asked for, read
      what is needed of it: its buffers are used again.
    """
    inputs, region = _place(config, prompts, options, key, None, 0, layout)
    state = _start(params, *inputs, config, options, region, layout)
    calls = 0
    while True:
        calls += every if isinstance(every, int) else every()
        until = _copy(np.int32(calls), layout)
        state = _continue(params, state, inputs[1], until, config, options, layout)
        finished = int(state.step) < calls or bool(np.all(state.done))
        yield state
        if finished:
            return


def generate(
    params: Params,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    options: SampleOptions,
    key: jax.Array,
    *,
    batch_size: int,
    first_row: int = 0,
    layout: Layout | None = None,
) -> Iterator[Answer]:
    """Decodes any number of prompts, batch after batch, in order.

    Args:
      params: As in `sample`.
      config: As in `sample`.
      prompts: As in `sample`; prompts with masks and prompts without may stand in one list.
      options: As in `sample`.
      key: As in `sample`.
      batch_size: Prompts per compiled call; batches are filled up with empty rows.
      first_row: As in `sample`.
      layout: As in `sample`.

    Returns:
      An iterator over the answers, one per prompt.

    Raises:
      ConfigError: as `sample`, for all prompts and before the first call.
    """
    check_prompts(prompts, options, config.max_length)

    def answers() -> Iterator[Answer]:
        for part in batches(prompts, options, config.max_length, batch_size):
            batch = [prompts[number] for number in part]
            state = sample(
                params,
                config,
                batch,
                options,
                key,
                rows=batch_size,
                first_row=first_row + part.start,
                layout=layout,
            )
            yield from read_answers(state, len(batch), options)

    return answers()


def lower(
    config: ModelConfig,
    options: SampleOptions,
    layout: Layout,
    *,
    weights: Literal["full", "int8"] = "full",
    prompt_slots: int,
    rows: int = 1,
) -> jax.stages.Lowered:
    """The program of `sample` without parameters or devices: to compile it for a machine elsewhere.

    Args:
      config: As in `sample`.
      options: As in `sample`.
      layout: Mesh, perhaps of devices that are only described.
      weights: As in `model.prepare`.
      prompt_slots: Columns before the region.
      rows: B.

    Returns:
      The lowered program; `.compile().memory_analysis()` has its memory in bytes per device.
    """
    region = options.region(prompt_slots)
    shape = (rows, region.start + region.limit)
    whole = layout.replicated
    return _decode.lower(
        model.abstract_prepared(config, weights, layout),
        jax.ShapeDtypeStruct(shape, jnp.int32, sharding=layout.rows),
        jax.ShapeDtypeStruct(shape, jnp.bool_, sharding=layout.rows),
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.ShapeDtypeStruct((), jnp.int32, sharding=whole),
        config=config,
        options=options,
        region=region,
        layout=layout,
    )


def read_answers(state: SampleState, count: int, options: SampleOptions) -> list[Answer]:
    """The answers of a decoded batch, on the host.

    Args:
      state: From `sample` or `stream`; may be unfinished.
      count: Prompts in the batch; the rows behind them fill it up.
      options: As used for decoding.

    Returns:
      One answer per prompt.
    """
    read = (state.canvas, state.committed_at, state.given, state.step, state.trace)
    canvas, committed_at, given, calls, trace = jax.device_get(read)
    answers = []
    for row in range(count):
        region = np.s_[row, state.region.start :]
        own = None
        if trace is not None:
            own = Trace(trace.frames[: calls + 1, row], trace.confidence[:calls, row])
        answers.append(
            Answer(
                tokens=response_tokens(canvas[region], options, given[region]),
                response=canvas[region],
                committed_at=committed_at[region],
                given=given[region],
                calls=int(calls),
                trace=own,
            )
        )
    return answers


def _place(
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    options: SampleOptions,
    key: jax.Array,
    rows: int | None,
    first_row: int,
    layout: Layout | None,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array, jax.Array], Region]:
    """Canvas, valid, key and first row on the device; the same on every process."""
    shards = 1 if layout is None else layout.batch_shards
    rows = -(-(rows or len(prompts)) // shards) * shards
    canvas = make_canvas(prompts, options, max_length=config.max_length, rows=rows)
    tokens = _copy(canvas.tokens, layout, rows=True)
    valid = _copy(canvas.valid, layout, rows=True)
    return (tokens, valid, key, _copy(np.int32(first_row), layout)), canvas.region


def _copy(array: Any, layout: Layout | None, *, rows: bool = False) -> jax.Array:
    """An explicit copy, so that a caller may run this under jax.transfer_guard("disallow")."""
    if layout is None:
        return jax.device_put(array)
    # Not device_put: over several processes it compares the array on all of them first.
    place = layout.rows if rows else layout.replicated
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, place, lambda index: array[index])


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
    if options.guidance == 0:
        return ModelDenoise(params, config, valid, options, region, layout)
    twice = jnp.concatenate([valid, valid])
    denoise = ModelDenoise(params, config, twice, options, region, layout)
    return Guided(denoise, given, options.guidance, options.ids.mask)


def _first_state(
    params: Params,
    canvas: jax.Array,
    valid: jax.Array,
    key: jax.Array,
    first_row: jax.Array,
    config: ModelConfig,
    options: SampleOptions,
    region: Region,
    layout: Layout | None,
) -> SampleState:
    there = jnp.arange(canvas.shape[1]) < region.start + region.length
    given = valid & there & (canvas != options.ids.mask)
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(
        first_row + jnp.arange(canvas.shape[0])
    )
    cache = None
    if options.cache != "none":
        denoise = _make_denoise(params, valid, given, config, options, region, layout)
        column = jnp.zeros((), jnp.int32)
        form = jax.eval_shape(lambda: denoise.full(canvas, column, column)[1])
        cache = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), form)
    return init_state(canvas, given, keys, options, region, cache)


def _readable(state: SampleState, layout: Layout | None) -> SampleState:
    """What the host reads whole on every device: a process sees only what its own hold.

    The cache stays as the model makes it. Where every leaf is comes from here and not from the
    compiler: a state in other places would have `_continue` compiled once more.
    """
    if layout is None:
        return state
    names = ("canvas", "committed_at", "given", "step", "done", "score", "trace")
    whole = jax.tree.map(
        lambda x: layout.constrain(x, *[None] * x.ndim), [getattr(state, name) for name in names]
    )
    cache = jax.tree.map(
        lambda x: layout.constrain(x, *[None] * (x.ndim - 4), "batch", None, "kv_heads", None),
        state.cache,
    )
    return dataclasses.replace(state, cache=cache, **dict(zip(names, whole, strict=True)))


_STATIC = ("config", "options", "region", "layout")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _decode(
    params: Params,
    canvas: jax.Array,
    valid: jax.Array,
    key: jax.Array,
    first_row: jax.Array,
    config: ModelConfig,
    options: SampleOptions,
    region: Region,
    layout: Layout | None,
) -> SampleState:
    state = _first_state(params, canvas, valid, key, first_row, config, options, region, layout)
    denoise = _make_denoise(params, valid, state.given, config, options, region, layout)
    state = decode(denoise, state, options)
    return _readable(dataclasses.replace(state, cache=None), layout)


@functools.partial(jax.jit, static_argnames=_STATIC)
def _start(
    params: Params,
    canvas: jax.Array,
    valid: jax.Array,
    key: jax.Array,
    first_row: jax.Array,
    config: ModelConfig,
    options: SampleOptions,
    region: Region,
    layout: Layout | None,
) -> SampleState:
    state = _first_state(params, canvas, valid, key, first_row, config, options, region, layout)
    return _readable(state, layout)


@functools.partial(jax.jit, static_argnames=("config", "options", "layout"), donate_argnums=1)
def _continue(
    params: Params,
    state: SampleState,
    valid: jax.Array,
    until: jax.Array,
    config: ModelConfig,
    options: SampleOptions,
    layout: Layout | None,
) -> SampleState:
    denoise = _make_denoise(params, valid, state.given, config, options, state.region, layout)
    return _readable(decode(denoise, state, options, until), layout)
