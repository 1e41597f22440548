"""Decoding with the model: one compiled call per batch, and lists longer than a batch.

Enters: parameters and prompts as token ids. Leaves: the final `SampleState`, or text tokens. The
host sends a canvas and reads the result; between the two nothing leaves the device. `stream` is
for people who watch: it comes back every few calls.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jax_mdlm.config import ConfigError, ModelConfig
from jax_mdlm.containers import Params, Region, SampleState, Trace
from jax_mdlm.sampling.canvas import batches, check_prompts, make_canvas, response_tokens
from jax_mdlm.sampling.options import SampleOptions
from jax_mdlm.sampling.program import continue_batch, decode_batch, first_state
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
    prompts: Sequence[Sequence[int] | None],
    options: SampleOptions,
    key: jax.Array,
    *,
    rows: int | None = None,
    first_row: int = 0,
    strength: float = 0.0,
    layout: Layout | None = None,
) -> SampleState:
    """Decodes one batch of prompts.

    Row `i` draws from `fold_in(key, first_row + i)` and `loop`'s schedule: what a prompt gets
    does not depend on the size of its batch.

    Args:
      params: As from `model.init` or `model.prepare`; cast to `config.compute_dtype` once, before
        the loop, where they are wider.
      config: The network; static.
      prompts: Token ids of each prompt, of any lengths; all with masks to fill in, or none. None: a
        row that is not decoded.
      options: Static; another value compiles another program.
      key: Typed PRNG key [].
      rows: B, the batch is filled up to it; None = one row per prompt. Rounded up to the parts
        into which `layout` cuts a batch.
      first_row: Number of the first prompt in a longer list.
      strength: For a strategy that takes one (`interventions`), in [0, 1]; traced.
      layout: Mesh and rules; None = one device.

    Returns:
      The final state, on device; the prompts are its first `len(prompts)` rows.

    Raises:
      ConfigError: no prompts, or one that does not fit (see `make_canvas`); a strength that is no
        probability, or that the strategy does not take.

    Examples:
      >>> import jax
      >>> from jax_mdlm import model
      >>> from jax_mdlm.config import ModelConfig, SampleConfig
      >>> from jax_mdlm.containers import SpecialIds
      >>> from jax_mdlm.sampling import options_from, read_answers
      >>> network = ModelConfig(9, 16, 2, 2, 2, 8, 24, max_length=16, compute_dtype="float32")
      >>> params = model.init(jax.random.key(0), network)
      >>> ids = SpecialIds(mask=1, slack=2, pad=0, eos=0, terminator=3)
      >>> options = options_from(SampleConfig(length=8, block_length=8, steps=4), "merge", ids)
      >>> state = sample(params, network, [[5, 6], [7]], options, jax.random.key(1))
      >>> [len(answer.response) for answer in read_answers(state, 2, options)]
      [8, 8]
    """
    inputs, region = _place(config, prompts, options, key, rows, first_row, strength, layout)
    return decode_batch(params, *inputs, config, options, region, layout)


def stream(
    params: Params,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    options: SampleOptions,
    key: jax.Array,
    *,
    every: int | Callable[[], int] = 1,
    strength: float = 0.0,
    layout: Layout | None = None,
) -> Iterator[SampleState]:
    """Decodes one batch of prompts like `sample`, with its arguments, and shows them on the way.

    Args:
      every: Model calls between two states, at least 1; a function is asked before each part.

    Yields:
      The state after every `every` calls and the final one; before the next is asked for, read
      what is needed of it: its buffers are used again.
    """
    inputs, region = _place(config, prompts, options, key, None, 0, strength, layout)
    state = first_state(params, *inputs, config, options, region, layout)
    calls = 0
    while True:
        calls += every if isinstance(every, int) else every()
        until = _copy(np.int32(calls), layout)
        state = continue_batch(params, state, inputs[1], until, config, options, layout)
        finished = int(state.step) < calls or bool(np.all(state.done))
        yield state
        if finished:
            return


def generate(
    params: Params,
    config: ModelConfig,
    prompts: Sequence[Sequence[int] | None],
    options: SampleOptions,
    key: jax.Array,
    *,
    batch_size: int,
    first_row: int = 0,
    strength: float = 0.0,
    layout: Layout | None = None,
) -> Iterator[Answer]:
    """Decodes any number of prompts like `sample`, whose arguments it takes, batch after batch.

    Args:
      prompts: Prompts with masks and prompts without may stand in one list. None keeps a place: its
        answer is empty, and what the others get does not change.
      batch_size: Prompts per compiled call; batches are filled up with empty rows.

    Returns:
      An iterator over the answers, one per prompt, in order.

    Raises:
      ConfigError: as `sample`, for all prompts and before the first call.
    """
    check_prompts(prompts, options, config.max_length)

    def answers() -> Iterator[Answer]:
        for part in batches(prompts, options, config.max_length, batch_size):
            batch = [prompts[number] for number in part]
            if all(prompt is None for prompt in batch):
                yield from [_nothing()] * len(batch)
                continue
            state = sample(
                params,
                config,
                batch,
                options,
                key,
                rows=batch_size,
                first_row=first_row + part.start,
                strength=strength,
                layout=layout,
            )
            for prompt, answer in zip(batch, read_answers(state, len(batch), options), strict=True):
                yield _nothing() if prompt is None else answer

    return answers()


def read_answers(state: SampleState, count: int, options: SampleOptions) -> list[Answer]:
    """The answers of a decoded batch, on the host.

    Args:
      state: From `sample` or `stream`; may be unfinished.
      count: Prompts in the batch; the rows after them fill it up.
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


def _nothing() -> Answer:
    """The answer to no prompt."""
    none = np.zeros(0, np.int32)
    return Answer([], none, none, none.astype(bool), calls=0)


def _place(
    config: ModelConfig,
    prompts: Sequence[Sequence[int] | None],
    options: SampleOptions,
    key: jax.Array,
    rows: int | None,
    first_row: int,
    strength: float,
    layout: Layout | None,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], Region]:
    """Canvas, valid, key, first row and strength on the device; the same on every process."""
    if not 0 <= strength <= options.strategy.takes_strength:
        raise ConfigError(
            f"strength must lie in [0, 1], and at 0 without an intervention, got {strength} with "
            f"{options.strategy}"
        )
    shards = 1 if layout is None else layout.batch_shards
    rows = -(-(rows or len(prompts)) // shards) * shards
    canvas = make_canvas(prompts, options, max_length=config.max_length, rows=rows)
    tokens = _copy(canvas.tokens, layout, rows=True)
    valid = _copy(canvas.valid, layout, rows=True)
    scalars = _copy(np.int32(first_row), layout), _copy(np.float32(strength), layout)
    return (tokens, valid, key, *scalars), canvas.region


def _copy(array: Any, layout: Layout | None, *, rows: bool = False) -> jax.Array:
    """An explicit copy, so that a caller may run this under jax.transfer_guard("disallow")."""
    if layout is None:
        return jax.device_put(array)
    # Not device_put: over several processes it compares the array on all of them first.
    place = layout.rows if rows else layout.replicated
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, place, lambda index: array[index])
