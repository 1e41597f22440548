"""Prompts to canvases, and canvases back to text tokens, on the host.

Enters: lists of token ids. Leaves: the arrays that `loop` fills, and afterwards the token ids of
the answers. `generate` is the neighbour on both sides.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jax_mdlm.config import ConfigError
from jax_mdlm.containers import SpecialIds
from jax_mdlm.diffusion import collapse_tokens
from jax_mdlm.sampling.options import SampleOptions


def bucket_length(length: int) -> int:
    """Rounds a prompt length up, so that mixed lengths compile a handful of programs.

    Multiples of 8 to 64 slots, powers of two above: 15 sizes up to 8,192, at most half padding.
    """
    if length <= 64:
        return -(-length // 8) * 8
    return 1 << (length - 1).bit_length()


def check_prompts(
    prompts: Sequence[Sequence[int]], options: SampleOptions, max_length: int
) -> None:
    """Refuses prompts that cannot be decoded, before anything is compiled.

    Args:
      prompts: Token ids of each prompt.
      options: `length` and the mask's id.
      max_length: Slots that the model can take.

    Raises:
      ConfigError: no prompts, or a prompt that is too long or holds a mask; it is counted from 0.
    """
    if not prompts:
        raise ConfigError("prompts must hold at least one prompt, got an empty list")
    mask_id = options.ids.mask
    for number, prompt in enumerate(prompts):
        if len(prompt) + options.length > max_length:
            raise ConfigError(
                f"prompt {number} with {len(prompt)} tokens and sample.length={options.length} new "
                f"slots must fit model.max_length={max_length}; shorten the prompt or lower "
                "sample.length"
            )
        if mask_id in prompt:
            raise ConfigError(
                f"prompt {number} must not contain the mask token (id {mask_id}), found at "
                f"position {list(prompt).index(mask_id)}; remove it from the text"
            )


def make_canvas(
    prompts: Sequence[Sequence[int]],
    options: SampleOptions,
    *,
    max_length: int,
    rows: int | None = None,
    bucket: Callable[[int], int] = bucket_length,
) -> tuple[np.ndarray, np.ndarray]:
    """Lays prompts and masks out, padded at the left.

    Positions count padding. At the left it shifts prompt and response alike, which rotary
    positions do not notice; at the right it would move them apart.

    Args:
      prompts: Token ids of each prompt; an empty prompt is allowed.
      options: `length` masks follow each prompt.
      max_length: Slots that the model can take.
      rows: B, at least the number of prompts; rows beyond them hold no mask, so that the loop
        never waits for them. None = one per prompt.
      bucket: Rounds the length of the longest prompt up; cut to what `max_length` leaves.

    Returns:
      canvas int32 [B, P + G] and valid bool [B, P + G] (false at padding).

    Raises:
      ConfigError: as `check_prompts`, or more prompts than rows.
    """
    ids, rows = options.ids, len(prompts) if rows is None else rows
    check_prompts(prompts, options, max_length)
    if len(prompts) > rows:
        raise ConfigError(
            f"a batch of {rows} rows must hold all prompts, got {len(prompts)}; "
            "raise sample.batch_size or use generate"
        )
    width = min(bucket(max(len(prompt) for prompt in prompts)), max_length - options.length)
    canvas = np.full((rows, width + options.length), ids.pad, np.int32)
    valid = np.zeros(canvas.shape, bool)
    # Rows that fill up the batch keep their response valid: a row without keys would make NaN.
    valid[:, width:] = True
    for row, prompt in enumerate(prompts):
        canvas[row, width - len(prompt) : width] = prompt
        canvas[row, width:] = ids.mask
        valid[row, width - len(prompt) : width] = True
    return canvas, valid


def response_end(response: Sequence[int] | np.ndarray, ids: SpecialIds) -> int:
    """The slot of the first terminator or EOS in `response` [G]; G if there is none."""
    closing = (i for i, token in enumerate(response) if token in (ids.terminator, ids.eos))
    return next(closing, len(response))


def response_tokens(row: Sequence[int] | np.ndarray, options: SampleOptions) -> list[int]:
    """Reads the text tokens of one decoded row.

    Args:
      row: int [L]; a row of the final canvas; its last `options.length` slots are the response.
      options: As used for decoding.

    Returns:
      The response up to its first terminator or EOS, collapsed, without special tokens.
    """
    ids = options.ids
    response = [int(token) for token in row[len(row) - options.length :]]
    response = response[: response_end(response, ids)]
    special = frozenset(ids.special)
    collapsed = collapse_tokens(response, ids, options.collapse)
    return [token for token in collapsed if token not in special]
