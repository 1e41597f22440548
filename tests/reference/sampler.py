"""The sampler as plain Python loops over NumPy rows: slow, obvious, written from the papers.

LLaDA's `generate.py` with guidance (arXiv 2502.09992), Fast-dLLM's threshold, factor and caches
(arXiv 2505.22618), running-confidence remasking (arXiv 2508.13148) and the merge rule of
arXiv 2601.22947. One row after the other, one slot after the other; shares no code with
`jax_mdlm.sampling`. Random numbers come in as functions of (row, block, call within the block).
Here: blocks, calls, growth, guidance and caches; what a call does to a row is in `sampler_row`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from tests.reference.sampler_row import Row, Settings, shift_boundary, step


class Denoiser(Protocol):
    """Columns from `end` on do not exist for it."""

    def full(self, canvas: np.ndarray, end: int) -> tuple[np.ndarray, Any]:
        """Logits [B, L, V] and what later calls need of the slots they do not run on."""
        ...

    def cached(self, memory: Any, canvas: np.ndarray, window: range, end: int) -> np.ndarray:
        """Logits [B, L, V]; only the columns of `window` are run on."""
        ...


@dataclasses.dataclass
class Result:
    canvas: np.ndarray  # [B, L]
    committed_at: np.ndarray  # [B, L]
    calls: int
    trajectory: list[np.ndarray]  # canvas before each call, then the final one
    confidence: list[np.ndarray]  # [B, L] of each call; 0 where nothing was offered


def quota_schedule(masked: int, steps: int) -> list[int]:
    """LLaDA's get_num_transfer_tokens: masked // steps each, the remainder in the first steps."""
    base, remainder = divmod(masked, steps)
    return [base + 1 if step < remainder else base for step in range(steps)]


def run(
    denoiser: Denoiser,
    canvas: np.ndarray,  # [B, L]
    given: np.ndarray,  # [B, L]
    settings: Settings,
    gumbel: Callable[[int, int, int], np.ndarray],  # -> [W, V]
    uniform: Callable[[int, int, int], np.ndarray],  # -> [W]
    slips: Callable[[int, int, int], dict[int, int]] | None = None,  # place in the block -> 1, -1
    boundary: Callable[[int, int, int], int] | None = None,  # -> place in the block; -1: no shift
    share: float = 0.0,  # of a row's slots that are committed before its boundary is shifted
) -> Result:
    canvas = canvas.copy()
    start, end = settings.first, settings.first + settings.length
    rows = [
        Row(line, fixed, np.full(len(line), -1), np.zeros(len(line)))
        for line, fixed in zip(canvas, given)
    ]
    empty = [settings.mask not in row.canvas for row in rows]  # they only fill up the batch
    views = [Asked(denoiser, settings, lambda: canvas)]
    if settings.guidance:
        views.append(Asked(denoiser, settings, lambda: np.where(given, settings.mask, canvas)))
    by_confidence = bool(settings.threshold or settings.factor)
    trajectory, confidence, block = [canvas.copy()], [], 0
    disturbed: set[int] = set()

    while True:
        if start == end < settings.first + settings.limit:
            for row, no in zip(rows, empty):
                if not no and not row.closed(settings):
                    row.canvas[end : end + settings.block_length] = settings.mask
            end += settings.block_length
        if not (canvas == settings.mask).any():
            break
        slots = range(start, start + settings.block_length)
        if not (canvas[:, slots] == settings.mask).any():  # given as a whole, in every row
            start, block = start + settings.block_length, block + 1
            continue
        to_fill = settings.block_length + (boundary is not None)
        calls = block_calls(block, settings, to_fill)
        # Commits after each call; a shifted boundary may have brought one in.
        plans = [
            [row.commits(slots) + first, *later]
            for row in rows
            for first, *later in [quota_schedule(row.masks(slots, settings), calls)]
        ]
        # Fast-dLLM looks for masks only after the second call of a block, the first on a window.
        sure = 1 + (settings.cache != "none" and by_confidence and not settings.early_stop)
        for call in range(to_fill):
            if call >= sure and not any(row.masks(slots, settings) for row in rows):
                break
            logits = guide([view.logits(call, slots, end) for view in views], settings)
            confidence.append(np.zeros(canvas.shape))
            for number, row in enumerate(rows):
                offers = step(
                    row,
                    logits[number, start : start + settings.block_length],
                    slots,
                    sum(plans[number][: call + 1]),
                    len(trajectory) - 1,
                    settings,
                    gumbel(number, block, call) if settings.temperature > 0 else None,
                    uniform(number, block, call) if settings.rule == "random" else None,
                    {start + at: way for at, way in slips(number, block, call).items()}
                    if slips
                    else None,
                )
                left = (to_fill if by_confidence else calls) - call
                if boundary and left > 1 and number not in disturbed and row.due(share, settings):
                    disturbed.add(number)
                    place = boundary(number, block, call)
                    if place >= 0:
                        shift_boundary(row, start + place, end, settings.mask)
                        rest = quota_schedule(row.masks(slots, settings), left - 1)
                        plans[number] = [row.commits(slots), *[0] * call, *rest]
                for slot, offer in offers.items():
                    confidence[-1][number, slot] = offer.confidence
            trajectory.append(canvas.copy())
        start, block = start + settings.block_length, block + 1

    return Result(
        canvas,
        np.stack([row.committed_at for row in rows]),
        len(trajectory) - 1,
        trajectory,
        confidence,
    )


def block_calls(block: int, settings: Settings, to_fill: int) -> int:
    """Calls over which a block's commits are spread."""
    calls = settings.steps // settings.steps_blocks
    if block < settings.steps % settings.steps_blocks:
        calls += 1
    # A call without a commit changes nothing: leave such calls out.
    return max(1, min(calls, to_fill))


def guide(logits: list[np.ndarray], settings: Settings) -> np.ndarray:
    if not settings.guidance:
        return logits[0]
    conditional, unconditional = logits
    scale = np.float32(settings.guidance + 1)
    return unconditional + scale * (conditional - unconditional)


@dataclasses.dataclass
class Asked:
    """The denoiser with its cache, looking at one view of the canvas."""

    denoiser: Denoiser
    settings: Settings
    view: Callable[[], np.ndarray]
    memory: Any = None

    def logits(self, call: int, slots: range, end: int) -> np.ndarray:
        """Call number `call` of the block with these `slots`; [B, L, V]."""
        canvas, refresh = self.view(), self.settings.refresh
        if self.settings.cache == "none" or call == 0 or (refresh and call % refresh == 0):
            logits, self.memory = self.denoiser.full(canvas, end)
            return logits
        window = slots if self.settings.cache == "dual" else range(slots.start, end)
        return self.denoiser.cached(self.memory, canvas, window, end)
