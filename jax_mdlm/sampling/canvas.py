"""Prompts to canvases, and canvases back to text tokens, on the host.

Enters: lists of token ids. Leaves: the arrays that `loop` fills, and afterwards the token ids of
the answers. `generate` is the neighbour on both sides.

A prompt without masks is followed by `length` of them. One with masks is filled in: what stands
before its first mask is the prompt, everything from there on the region that is decoded. Padding
goes to both sides: rotary positions see distances only, so rows of any shape share a batch exactly.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from jax_mdlm.config import ConfigError
from jax_mdlm.containers import Region, SpecialIds
from jax_mdlm.diffusion import collapse_tokens
from jax_mdlm.sampling.options import SampleOptions


@dataclasses.dataclass(frozen=True)
class Canvas:
    """A batch before its first call.

    Attributes:
      tokens: int32 [B, L]; every row's first mask stands in the first column of the region.
      valid: bool [B, L]; false at padding.
      region: What is decoded.
    """

    tokens: np.ndarray
    valid: np.ndarray
    region: Region


def bucket_length(length: int) -> int:
    """Rounds a prompt length up, so that mixed lengths compile a handful of programs.

    Multiples of 8 to 64 slots, powers of two above: 15 sizes up to 8,192, at most half padding.
    """
    if length <= 64:
        return -(-length // 8) * 8
    return 1 << (length - 1).bit_length()


def why_too_long(prompt: Sequence[int], options: SampleOptions, max_length: int) -> str:
    """Why a prompt cannot be decoded, to be put after what it is called; "" where it fits.

    Args:
      prompt: Token ids.
      options: `length`, `block_length` and the mask's id.
      max_length: Slots that the model can take.
    """
    size = _size(prompt, options)
    if size.left + size.right <= max_length:
        return ""
    if options.ids.mask in prompt:
        return (
            f"with {len(prompt)} tokens, rounded up to {size.left + size.right} by "
            f"sample.block_length={options.settings.block_length} behind its first mask, must fit "
            f"model.max_length={max_length}; shorten it or lower sample.block_length"
        )
    return (
        f"with {len(prompt)} tokens and sample.length={options.settings.length} new slots must fit "
        f"model.max_length={max_length}; shorten the prompt or lower sample.length"
    )


def check_prompts(
    prompts: Sequence[Sequence[int] | None], options: SampleOptions, max_length: int
) -> None:
    """Refuses prompts that cannot be decoded, before anything is compiled.

    Args:
      prompts: Token ids of each prompt; None = is not decoded.
      options: Lengths, and the mask's id.
      max_length: Slots that the model can take.

    Raises:
      ConfigError: no prompts, or a prompt that is too long; it is counted from 0.
    """
    if not prompts:
        raise ConfigError("prompts must hold at least one prompt, got an empty list")
    for number, prompt in enumerate(prompts):
        if prompt is not None and (reason := why_too_long(prompt, options, max_length)):
            raise ConfigError(f"prompt {number} {reason}")


def batches(
    prompts: Sequence[Sequence[int] | None],
    options: SampleOptions,
    max_length: int,
    batch_size: int,
) -> list[range]:
    """Cuts a list of prompts into batches, in order.

    A batch holds prompts of one kind, with masks or without, whose widest left and right parts fit
    the model together. The rows of each batch are filled up, so that cuts compile nothing.

    Args:
      prompts: What `check_prompts` accepts.
      options: Lengths, and the mask's id.
      max_length: Slots that the model can take.
      batch_size: Prompts per batch, at most.

    Returns:
      Ranges of positions in `prompts`.
    """
    cuts, first = [], 0
    left = right = 0
    infill = None  # whether the batch's prompts have masks; None as long as it has none at all
    for number, prompt in enumerate(prompts):
        size = _size(prompt, options)
        own = None if prompt is None else options.ids.mask in prompt
        alike = own == infill or None in (own, infill)
        wide = max(left, size.left) + max(right, size.right) > max_length
        if number > first and (wide or not alike or number - first == batch_size):
            cuts.append(range(first, number))
            first, left, right, infill = number, 0, 0, None
        left, right = max(left, size.left), max(right, size.right)
        infill = own if infill is None else infill
    return [*cuts, range(first, len(prompts))]


def make_canvas(
    prompts: Sequence[Sequence[int] | None],
    options: SampleOptions,
    *,
    max_length: int,
    rows: int | None = None,
    bucket: Callable[[int], int] = bucket_length,
) -> Canvas:
    """Lays prompts and masks out, padded at the left and, where gaps are filled in, at the right.

    Positions count padding. At the left it shifts a whole row, which rotary positions do not
    notice; between prompt and response it would move them apart.

    Args:
      prompts: Token ids of each prompt; an empty prompt is allowed. All with masks, or none. None:
        a row as those beyond the prompts.
      options: `length` masks follow each prompt that has none.
      max_length: Slots that the model can take.
      rows: B, at least the number of prompts; rows beyond them hold no mask, so that the loop
        never waits for them. None = one per prompt.
      bucket: Rounds the length of the longest prompt up; cut to what `max_length` leaves.

    Returns:
      The canvas, with as many slots to append (`sample.limit`) as the model leaves.

    Raises:
      ConfigError: as `check_prompts`; more prompts than rows; prompts with masks and without.
    """
    # --- what is refused ---
    ids, rows = options.ids, len(prompts) if rows is None else rows
    check_prompts(prompts, options, max_length)
    if len(prompts) > rows:
        raise ConfigError(
            f"a batch of {rows} rows must hold all prompts, got {len(prompts)}; "
            "raise sample.batch_size or use generate"
        )
    if len(batches(prompts, options, max_length, len(prompts))) > 1:
        raise ConfigError(
            "prompts of one batch must all have masks or none, and fit model.max_length="
            f"{max_length} when they are aligned at their first mask; use generate, which cuts "
            "batches"
        )

    # --- how wide it is ---
    sizes = [_size(prompt, options) for prompt in prompts]
    left, right = max(size.left for size in sizes), max(size.right for size in sizes)
    infill = any(ids.mask in prompt for prompt in prompts if prompt is not None)
    limit = (
        _round_up_region(right, options.settings.block_length)
        if infill
        else options.region(0).limit
    )
    start = min(bucket(left), max_length - right)
    limit = min(
        limit, (max_length - start) // options.settings.block_length * options.settings.block_length
    )
    region = Region(start, limit if infill else options.settings.length, limit)

    # --- what stands on it ---
    tokens = np.full((rows, start + limit), ids.pad, np.int32)
    valid = np.zeros(tokens.shape, bool)
    # Rows that fill up the batch keep their response valid: a row without keys would make NaN.
    valid[len(prompts) :, start:] = True
    for row, (prompt, size) in enumerate(zip(prompts, sizes, strict=True)):
        if prompt is None:
            valid[row, start:] = True
            continue
        tokens[row, start - size.left : start] = prompt[: size.left]
        if infill:
            tokens[row, start : start + len(prompt) - size.left] = prompt[size.left :]
            valid[row, start - size.left : start + len(prompt) - size.left] = True
        else:
            tokens[row, start : start + options.settings.length] = ids.mask
            # Hidden until they are appended: the text ends here as long as they are not.
            tokens[row, start + options.settings.length :] = ids.eos
            valid[row, start - size.left :] = True
    return Canvas(tokens, valid, region)


def response_end(
    response: Sequence[int] | np.ndarray, ids: SpecialIds, given: np.ndarray | None = None
) -> int:
    """The slot of the first terminator or EOS after all given text; G if there is none.

    Args:
      response: int [G]; a decoded region.
      ids: Special tokens.
      given: bool [G]; slots that the caller gave. None = none of them.
    """
    first = 0 if given is None or not given.any() else int(np.flatnonzero(given)[-1])
    closing = (ids.terminator, ids.eos)
    return next((i for i in range(first, len(response)) if response[i] in closing), len(response))


def response_tokens(
    response: Sequence[int] | np.ndarray,
    options: SampleOptions,
    given: np.ndarray | None = None,
) -> list[int]:
    """Reads the text tokens of one decoded region.

    Args:
      response: int [G]; its slots.
      options: As used for decoding.
      given: bool [G]; slots that the caller gave: kept as they are. None = none of them.

    Returns:
      The response up to its terminator or EOS, collapsed, without special tokens.
    """
    ids = options.ids
    end = response_end(response, ids, given)
    kept = np.zeros(end, bool) if given is None else given[:end]
    tokens: list[int] = []
    for is_given, run in itertools.groupby(range(end), key=lambda slot: bool(kept[slot])):
        slots = [int(response[slot]) for slot in run]
        tokens += slots if is_given else collapse_tokens(slots, ids, options.collapse)
    special = frozenset(ids.special)
    return [token for token in tokens if token not in special]


@dataclasses.dataclass(frozen=True)
class _Size:
    left: int  # slots before the region
    right: int  # slots of the region, whole blocks


def _size(prompt: Sequence[int] | None, options: SampleOptions) -> _Size:
    if prompt is None:
        return _Size(0, 0)
    if options.ids.mask not in prompt:
        return _Size(len(prompt), options.settings.length)
    left = list(prompt).index(options.ids.mask)
    width = options.settings.block_length
    return _Size(left, -(-(len(prompt) - left) // width) * width)


def _round_up_region(slots: int, block_length: int) -> int:
    """Blocks in powers of two, for the same reason as `bucket_length`."""
    return block_length << (slots // block_length - 1).bit_length()
