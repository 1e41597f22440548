"""The sampler as plain Python loops over NumPy rows: slow, obvious, written from the papers.

LLaDA's `generate.py` (arXiv 2502.09992), Fast-dLLM's threshold (arXiv 2505.22618) and the merge
rule of arXiv 2601.22947. One row after the other, one slot after the other; shares no code with
`jax_mdlm.sampling`. Random numbers come in as functions of (row, block, call within the block).
"""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass
class Settings:
    length: int
    block_length: int
    steps: int
    collapse: str
    rule: str  # confidence, entropy, margin, random
    threshold: float  # 0: LLaDA's quota
    temperature: float
    early_stop: bool
    mask: int
    slack: int
    eos: int
    terminator: int
    special: frozenset[int]


@dataclasses.dataclass
class Result:
    canvas: np.ndarray  # [B, L]
    committed_at: np.ndarray  # [B, L]
    calls: int
    trajectory: list[np.ndarray]  # canvas before each call, then the final one


def quota_schedule(masked: int, steps: int) -> list[int]:
    """LLaDA's get_num_transfer_tokens: masked // steps each, the remainder in the first steps."""
    base, remainder = divmod(masked, steps)
    return [base + 1 if step < remainder else base for step in range(steps)]


def run(
    denoise: Callable[[np.ndarray], np.ndarray],  # canvas [B, L] -> logits [B, L, V]
    canvas: np.ndarray,
    settings: Settings,
    gumbel: Callable[[int, int, int], np.ndarray],  # -> [W, V]
    uniform: Callable[[int, int, int], np.ndarray],  # -> [W]
) -> Result:
    canvas = canvas.copy()
    rows, total = canvas.shape
    prompt = total - settings.length
    num_blocks = settings.length // settings.block_length
    committed_at = np.full(canvas.shape, -1)
    trajectory, calls = [canvas.copy()], 0

    for block in range(num_blocks):
        start = prompt + block * settings.block_length
        slots = range(start, start + settings.block_length)
        block_steps = settings.steps // num_blocks
        if block < settings.steps % num_blocks:
            block_steps += 1
        # A step without a commit changes nothing: leave such steps out.
        block_steps = min(block_steps, settings.block_length)
        plans = [
            quota_schedule(sum(canvas[row, slot] == settings.mask for slot in slots), block_steps)
            for row in range(rows)
        ]
        call = 0
        while any(canvas[row, slot] == settings.mask for row in range(rows) for slot in slots):
            logits = denoise(canvas)
            for row in range(rows):
                count = 0 if settings.threshold else plans[row][call]
                step_row(
                    canvas[row],
                    committed_at[row],
                    logits[row],
                    slots,
                    count,
                    calls,
                    settings,
                    lambda row=row, call=call: gumbel(row, block, call),
                    lambda row=row, call=call: uniform(row, block, call),
                )
            call, calls = call + 1, calls + 1
            trajectory.append(canvas.copy())
    return Result(canvas, committed_at, calls, trajectory)


def step_row(
    row: np.ndarray,
    committed_at: np.ndarray,
    logits: np.ndarray,
    slots: range,
    count: int,
    number: int,
    settings: Settings,
    gumbel: Callable[[], np.ndarray],
    uniform: Callable[[], np.ndarray],
) -> None:
    """One call's commits, merges and stop on one row, in place."""
    given = [committed_at[slot] < 0 and row[slot] != settings.mask for slot in range(len(row))]
    noise = gumbel() if settings.temperature > 0 else None
    order = uniform() if settings.rule == "random" else None
    candidates = []  # (minus score, slot, token, confidence)
    for place, slot in enumerate(slots):
        if row[slot] != settings.mask:
            continue
        scores = logits[slot].astype(np.float32)
        p = np.exp(scores.astype(np.float64) - scores.max())
        p /= p.sum()
        allowed = scores.copy()
        allowed[settings.mask] = -np.inf
        if noise is not None:
            allowed = allowed / np.float32(settings.temperature) + noise[place]
        token = int(np.argmax(allowed))
        if settings.rule == "confidence":
            score = p[token]
        elif settings.rule == "entropy":
            score = sum(q * np.log(q) for q in p if q > 0)
        elif settings.rule == "margin":
            best = sorted((q for v, q in enumerate(p) if v != settings.mask), reverse=True)
            score = best[0] - best[1]
        else:
            assert order is not None
            score = order[place]
        candidates.append((-score, slot, token, p[token]))
    candidates.sort(key=lambda candidate: candidate[:2])  # the lower slot on a tie

    for place, (_, slot, token, confidence) in enumerate(candidates):
        if settings.threshold:
            chosen = place == 0 or confidence >= settings.threshold
        else:
            chosen = place < count
        if chosen:
            row[slot], committed_at[slot] = token, number

    if settings.collapse == "merge":
        before = row.copy()
        for slot in range(1, len(row)):
            if given[slot] or given[slot - 1]:
                continue
            if before[slot] == before[slot - 1] and before[slot] not in settings.special:
                row[slot] = settings.slack

    if settings.early_stop:
        for slot in range(len(row)):
            if row[slot] == settings.mask:
                break
            if not given[slot] and row[slot] in (settings.terminator, settings.eos):
                for later in range(slot, len(row)):
                    if row[later] == settings.mask:
                        row[later], committed_at[later] = settings.eos, number
                break
