"""Decoding with the model: one compiled call per batch, and lists longer than a batch.

Enters: parameters and prompts as token ids. Leaves: the final `SampleState`, or text tokens. The
host sends a canvas and reads the result; between the two nothing leaves the device.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jax_mdlm import model
from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import Params, SampleState
from jax_mdlm.sampling.canvas import check_prompts, make_canvas, response_tokens
from jax_mdlm.sampling.loop import decode, init_state
from jax_mdlm.sampling.options import SampleOptions
from jax_mdlm.sharding import Layout, constrain


@dataclasses.dataclass(frozen=True)
class Answer:
    """One decoded response, on the host.

    Attributes:
      tokens: Text tokens (see `response_tokens`).
      response: int32 [G]; the response slots as decoded, slack and terminator included.
      committed_at: int32 [G]; the model call that fixed each slot.
      calls: Model calls of the batch that the row was in.
    """

    tokens: list[int]
    response: np.ndarray
    committed_at: np.ndarray
    calls: int


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
      params: As from `model.init`; cast to `config.compute_dtype` once, before the loop.
      config: The network; static.
      prompts: Token ids of each prompt, of any lengths.
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
    shards = 1 if layout is None else layout.batch_shards
    rows = -(-(rows or len(prompts)) // shards) * shards
    canvas, valid = make_canvas(prompts, options, max_length=config.max_length, rows=rows)
    # Explicit copies, so that a caller may run this under jax.transfer_guard("disallow").
    canvas, valid = jax.device_put((canvas, valid), None if layout is None else layout.rows)
    number = jax.device_put(np.int32(first_row), None if layout is None else layout.replicated)
    return _decode(params, canvas, valid, key, number, config, options, layout)


def generate(
    params: Params,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    options: SampleOptions,
    key: jax.Array,
    *,
    batch_size: int,
    layout: Layout | None = None,
) -> Iterator[Answer]:
    """Decodes any number of prompts, batch after batch, in order.

    Args:
      params: As in `sample`.
      config: As in `sample`.
      prompts: As in `sample`.
      options: As in `sample`.
      key: As in `sample`.
      batch_size: Prompts per compiled call; the last batch is filled up with empty rows.
      layout: As in `sample`.

    Returns:
      An iterator over the answers, one per prompt.

    Raises:
      ConfigError: as `sample`, for all prompts and before the first call.
    """
    check_prompts(prompts, options, config.max_length)

    def answers() -> Iterator[Answer]:
        for first in range(0, len(prompts), batch_size):
            batch = prompts[first : first + batch_size]
            state = sample(
                params, config, batch, options, key, rows=batch_size, first_row=first, layout=layout
            )
            canvas, committed_at, calls = jax.device_get(
                (state.canvas, state.committed_at, state.step)
            )
            for row in range(len(batch)):
                yield Answer(
                    tokens=response_tokens(canvas[row], options),
                    response=canvas[row, -options.length :],
                    committed_at=committed_at[row, -options.length :],
                    calls=int(calls),
                )

    return answers()


@functools.partial(jax.jit, static_argnames=("config", "options", "layout"))
def _decode(
    params: Params,
    canvas: jax.Array,
    valid: jax.Array,
    key: jax.Array,
    first_row: jax.Array,
    config: ModelConfig,
    options: SampleOptions,
    layout: Layout | None,
) -> SampleState:
    # Master weights are float32: cast in the loop, every call would read them at twice the size.
    dtype = jnp.dtype(config.compute_dtype)
    params = jax.tree.map(lambda weight: weight.astype(dtype), params)
    head = model.head(params)

    def denoise(canvas: jax.Array, start: jax.Array) -> jax.Array:
        canvas = constrain(layout, canvas, "batch", "length")
        hidden = model.encode(params, canvas, config, valid, layout)
        # Only the block is multiplied by the head: V columns are most of a small model's work.
        block = jax.lax.dynamic_slice_in_dim(hidden, start, options.block_length, axis=1)
        return model.project(block, head, layout)

    rows = first_row + jnp.arange(canvas.shape[0])
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
    state = decode(denoise, init_state(canvas, keys, options), options)
    # Whole on every device: a process can read only what its own devices hold.
    return dataclasses.replace(
        state,
        canvas=constrain(layout, state.canvas, None, None),
        committed_at=constrain(layout, state.committed_at, None, None),
    )
