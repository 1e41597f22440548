"""What one model call does to one row of the sampler, slot by slot: offer, select, merge, stop.

Everything a row knows stands in a `Row` and is changed in place. `sampler` goes over blocks, calls
and rows and asks the denoiser.
"""

import dataclasses

import numpy as np

LAST = -1e30  # the score of a deferred EOS: behind every other


@dataclasses.dataclass
class Settings:
    first: int  # column in which the region starts
    length: int  # slots of the region that are there from the beginning
    limit: int  # slots of the region at most
    block_length: int
    steps: int  # for the first `steps_blocks` blocks together
    steps_blocks: int
    collapse: str
    rule: str  # confidence, entropy, margin, random
    threshold: float  # 0: no threshold
    factor: float  # 0: no factor; neither of the two: LLaDA's quota
    temperature: float
    top_k: int  # 0: off
    top_p: float  # 1: off
    guidance: float  # 0: off
    suppress_eos: bool
    defer_eos: bool
    remask: bool
    cache: str  # none, prefix, dual
    refresh: int
    early_stop: bool
    mask: int
    slack: int
    eos: int
    terminator: int
    special: frozenset[int]


@dataclasses.dataclass
class Row:
    canvas: np.ndarray  # [L]
    given: np.ndarray  # [L]; not a mask before the first call
    committed_at: np.ndarray  # [L]; -1: given, hidden or masked
    score: np.ndarray  # [L]; at the commit

    def closed(self, settings: Settings) -> bool:
        """A terminator or EOS was committed somewhere."""
        ends = (settings.terminator, settings.eos)
        return any(token in ends for token in self.canvas[self.committed_at >= 0])

    def masks(self, slots: range, settings: Settings) -> int:
        return sum(self.canvas[slot] == settings.mask for slot in slots)

    def commits(self, slots: range) -> int:
        return sum(self.committed_at[slot] >= 0 for slot in slots)

    def due(self, share: float, settings: Settings) -> bool:
        """Whether its boundary may be shifted: so much is committed, not all, and no text given."""
        region = slice(settings.first, settings.first + settings.limit)
        committed = (self.committed_at[region] >= 0).sum()
        unfinished = settings.mask in self.canvas[region]
        return committed >= share * settings.length and unfinished and not self.given[region].any()


@dataclasses.dataclass
class Offer:
    token: int
    confidence: float
    score: float


def step(
    row: Row,
    logits: np.ndarray,  # [W, V]
    slots: range,
    keep: int,  # by count: commits in the block after this call
    number: int,
    settings: Settings,
    gumbel: np.ndarray | None,  # [W, V]
    uniform: np.ndarray | None,  # [W]
    slips: dict[int, int] | None = None,  # slots whose token wants to go 1 or -1 slots away
) -> dict[int, Offer]:
    """Commits, merges and stops; returns what was offered at each masked slot."""
    offers = {
        slot: make_offer(
            logits[place],
            settings,
            None if gumbel is None else gumbel[place],
            None if uniform is None else uniform[place],
        )
        for place, slot in enumerate(slots)
        if row.canvas[slot] == settings.mask
    }
    if settings.remask:
        chosen = revise(row, offers, slots, keep, settings)
    else:
        chosen = select(offers, keep - row.commits(slots), settings)
    lands = displace(chosen, set(offers), slips or {})
    for slot in chosen:
        row.canvas[lands[slot]] = offers[slot].token
        row.committed_at[lands[slot]] = number
        row.score[lands[slot]] = offers[slot].score
    if settings.collapse == "merge":
        merge(row, settings)
    if settings.early_stop:
        stop(row, number, settings)
    return offers


def displace(chosen: list[int], masked: set[int], slips: dict[int, int]) -> dict[int, int]:
    """Where the tokens of a call land: `masked` are the masked slots of the block.

    One token after the other, first those that go to the right, from the right, then those that go
    to the left, from the left.
    """
    lands = {slot: slot for slot in chosen}
    for way in (1, -1):
        for slot in sorted(chosen, key=lambda slot: -way * slot):
            target = slot + way
            if slips.get(slot) == way and target in masked and target not in lands.values():
                lands[slot] = target
    return lands


def shift_boundary(row: Row, at: int, end: int, mask: int) -> None:
    """Everything from slot `at` on moves by one; what stood on the last slot is lost."""
    row.canvas[at + 1 : end] = row.canvas[at : end - 1].copy()
    row.committed_at[at + 1 : end] = row.committed_at[at : end - 1].copy()
    row.canvas[at], row.committed_at[at] = mask, -1


def make_offer(
    logits: np.ndarray, settings: Settings, gumbel: np.ndarray | None, uniform: float | None
) -> Offer:
    """Token, confidence and score of one slot; `logits` [V]."""
    logits = logits.astype(np.float32)
    if settings.suppress_eos:
        logits[settings.eos] = -np.inf
    allowed = logits.copy()
    allowed[settings.mask] = -np.inf
    if settings.temperature > 0:
        assert gumbel is not None
        allowed = allowed / np.float32(settings.temperature)
        allowed = filtered(allowed, settings.top_k, settings.top_p) + gumbel
    token = int(np.argmax(allowed))

    scored = logits.copy()
    if settings.defer_eos:
        scored[[settings.eos, settings.terminator]] = -np.inf
    p = softmax(scored)
    if settings.rule == "confidence":
        score = p[token]
    elif settings.rule == "entropy":
        score = sum(q * np.log(q) for q in p if q > 0)
    elif settings.rule == "margin":
        best = sorted((q for v, q in enumerate(p) if v != settings.mask), reverse=True)
        score = best[0] - best[1]
    else:
        assert uniform is not None
        score = uniform
    if settings.defer_eos and token in (settings.eos, settings.terminator):
        score = LAST
    return Offer(token, float(p[token]), float(score))


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits.astype(np.float64) - logits.max())
    return p / p.sum()


def filtered(logits: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """`logits` [V] with -inf at the tokens that top-k and then top-p leave out; ties stay."""
    logits = logits.copy()
    if top_k:
        last = sorted(logits, reverse=True)[min(top_k, len(logits)) - 1]
        logits[logits < last] = -np.inf
    if top_p < 1:
        p = softmax(logits)
        mass = 0.0
        for token in sorted(range(len(p)), key=lambda token: -p[token]):
            mass += p[token]
            if mass >= top_p:
                logits[logits < logits[token]] = -np.inf
                break
    return logits


def select(offers: dict[int, Offer], count: int, settings: Settings) -> list[int]:
    """The masked slots that this call commits, nothing being taken back."""
    by_score = sorted(offers, key=lambda slot: (-offers[slot].score, slot))
    if settings.threshold:
        sure = [slot for slot in offers if offers[slot].confidence >= settings.threshold]
        return sorted({*by_score[:1], *sure})
    if settings.factor:
        by_confidence = sorted(offers, key=lambda slot: (-offers[slot].confidence, slot))
        run = []
        for n, slot in enumerate(by_confidence, start=1):
            if offers[slot].confidence < 1 - settings.factor / (n + 1):
                break
            run.append(slot)
        return sorted({*by_score[:1], *run})
    return by_score[:count]


def revise(
    row: Row, offers: dict[int, Offer], slots: range, keep: int, settings: Settings
) -> list[int]:
    """The `keep` best of the block, by the score now or at the commit; the others are masks."""
    if settings.mask not in row.canvas:
        return []  # the row is finished
    candidates = [slot for slot in slots if slot in offers or row.committed_at[slot] >= 0]

    def score(slot: int) -> float:
        return offers[slot].score if slot in offers else row.score[slot]

    ranking = sorted(candidates, key=lambda slot: (-score(slot), slot))
    for slot in ranking[keep:]:
        row.canvas[slot], row.committed_at[slot], row.score[slot] = settings.mask, -1, 0
    return [slot for slot in ranking[:keep] if slot in offers]


def merge(row: Row, settings: Settings) -> None:
    before = row.canvas.copy()
    for slot in range(1, len(before)):
        if row.given[slot] or row.given[slot - 1]:
            continue
        if before[slot] == before[slot - 1] and before[slot] not in settings.special:
            row.canvas[slot] = settings.slack


def stop(row: Row, number: int, settings: Settings) -> None:
    for slot in range(len(row.canvas)):
        if row.canvas[slot] == settings.mask:
            return
        closes = row.canvas[slot] in (settings.terminator, settings.eos)
        # Text of the caller that is still to come: the row does not end here.
        if closes and row.committed_at[slot] >= 0 and not row.given[slot:].any():
            break
    else:
        return
    for later in range(slot, len(row.canvas)):
        if row.canvas[later] == settings.mask:
            row.canvas[later], row.committed_at[later] = settings.eos, number
