"""What fits the canvas: pairs are cut, dropped or refused, texts of pre-training packed.

Spans of encoded rows enter, spans of a table leave; no token is read, so that the same encoding
serves every `data.length`. A part of the rows may come at a time: `Tally` adds up what became of
them.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data.chat import encode_written, make_template
from jax_mdlm.data.counts import Extent, RowCounts
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.data.tokens import Tokens

_ROWS = 4096  # packed rows whose tokens are looked at in one go


@dataclasses.dataclass(frozen=True)
class Margins:
    """What the template takes of every canvas.

    Attributes:
      head: int32 [n]; pad, eos, terminator, start, opening.
      start: Tokens of the start.
      opening: Tokens of the opening.
      filled: Slots before the opening that a shorter prompt is filled up to with pad.
    """

    head: np.ndarray
    start: int = 0
    opening: int = 0
    filled: int = 0

    @classmethod
    def of(cls, config: DataConfig, tokenizer: Tokenizer) -> "Margins":
        """That of a run; pre-training has none.

        Raises:
          ConfigError: the canvas has no room for it.
        """
        special = tokenizer.ids
        head = [special.pad, special.eos, special.terminator]
        if config.pretraining:
            return cls(np.array(head, np.int32))
        template = make_template(config.template, tokenizer, config.prompt_slots)
        start, opening = encode_written(tokenizer, [template.start, template.opening])
        least = max(len(start), template.slots) + len(opening) + 2
        if least > config.length:
            raise ConfigError(
                f"data.length must be at least {least} for data.template={config.template}, "
                f"got {config.length}"
            )
        head += [*start, *opening]
        filled = max(template.slots, len(start))
        return cls(np.array(head, np.int32), len(start), len(opening), filled)


class Cut(NamedTuple):
    """Pairs as a table has them.

    Attributes:
      history: int64 [pairs, 2]; start and end.
      response: int64 [pairs, 2]; start and end, without the terminator.
      terminated: bool [pairs]; False where the response was cut, and for pre-training.
      repeats: int64 [pairs]; see `Encoded`, of which it is the upper limit where one was cut.
      first: int64 [rows]; the first pair of each row.
      misfit: The first pair that does not fit, with the labels that it needs and the slots that
        there are; None where all fit.
    """

    history: np.ndarray
    response: np.ndarray
    terminated: np.ndarray
    repeats: np.ndarray
    first: np.ndarray
    misfit: tuple[int, int, int] | None = None

    @classmethod
    def join(cls, parts: "Sequence[Cut]") -> "Cut":
        """The pairs of all parts, whose spans are of the same tokens."""
        before = np.cumsum([0, *(len(part.response) for part in parts)])
        first = [part.first + count for part, count in zip(parts, before, strict=False)]
        return cls(
            np.concatenate([part.history for part in parts]),
            np.concatenate([part.response for part in parts]),
            np.concatenate([part.terminated for part in parts]),
            np.concatenate([part.repeats for part in parts]),
            np.concatenate(first),
        )

    @classmethod
    def none(cls) -> "Cut":
        """No pair."""
        spans, flags = np.empty((0, 2), np.int64), np.empty(0, bool)
        return cls(spans, spans, flags, np.empty(0, np.int64), np.empty(0, np.int64))


class Tally:
    """What became of the pairs so far, for `RowCounts`."""

    def __init__(self) -> None:
        self._counts = RowCounts(0, 0, 0)
        self._sizes = [np.zeros(1, np.int64) for _ in range(3)]  # how many pairs take how much

    def add(self, counts: RowCounts, *sizes: np.ndarray) -> None:
        """Adds counts, and what pairs take: labels, slots, prompt, int64 [pairs] each."""
        fields = ("rows", "responses", "dropped", "truncated", "by_labels", "shortened")
        added = {name: getattr(self._counts, name) + getattr(counts, name) for name in fields}
        self._counts = dataclasses.replace(self._counts, **added)
        self._sizes = [
            _add(np.bincount(own), all_) for own, all_ in zip(sizes, self._sizes, strict=True)
        ]

    def counts(self, skipped: int) -> RowCounts:
        """The sum."""
        labels, slots, prompt = map(Extent.of, self._sizes)
        return dataclasses.replace(
            self._counts, skipped=skipped, labels=labels, slots=slots, prompt=prompt
        )


def cut_chat(
    history: np.ndarray,
    response: np.ndarray,
    repeats: np.ndarray,
    row: np.ndarray,
    config: DataConfig,
    margins: Margins,
    tally: Tally,
) -> Cut:
    """Cuts or drops pairs that do not fit.

    `data.too_long=truncate` cuts the response at the canvas and at `max_labels`; it then ends
    without a terminator, since the text goes on. A history is cut only where it would leave the
    response less than a quarter of the canvas (or less than it needs), and then from the left: the
    end of a conversation matters most. Slack needs no room of its own: it takes what is left.

    Args:
      history: int64 [pairs, 2]; as `Encoded`.
      response: int64 [pairs, 2].
      repeats: int64 [pairs].
      row: int64 [pairs]; ascending.
      config: Sizes and policy.
      margins: What the template takes.
      tally: What became of the pairs is added to it.
    """
    sizes = _Sizes.of(history, response, config, margins)
    fits = sizes.labels <= np.minimum(sizes.room, config.max_labels)
    kept = fits | (config.too_long != "drop")
    first_misfit = None
    if not fits.all():
        at = int(np.argmin(fits))
        first_misfit = (at, int(sizes.labels[at]), int(sizes.room[at]))
    # --- histories from the left, responses at the end ---
    quarter = min(config.max_labels, max(config.length // 4, 1))
    surplus = np.clip(np.minimum(sizes.labels, quarter) - sizes.room, 0, sizes.spare)
    room = np.minimum(sizes.room + surplus, config.max_labels)
    begin = history[:, 0] + surplus
    end = np.minimum(response[:, 1], response[:, 0] + room)
    terminated = sizes.labels <= room
    # --- what is left, counted ---
    misfit = ~(kept & terminated)
    _, first = np.unique(row[kept], return_index=True)
    counts = RowCounts(
        rows=len(first),
        responses=int(kept.sum()),
        skipped=0,
        dropped=int((~kept).sum()),
        truncated=int((kept & misfit).sum()),
        by_labels=int((misfit & (np.where(kept, room, sizes.room) >= config.max_labels)).sum()),
        shortened=int((kept & (surplus > 0)).sum()),
    )
    slots = config.length - sizes.room + sizes.labels
    tally.add(counts, sizes.labels, slots, sizes.past + margins.start)
    return Cut(
        np.stack([begin, history[:, 1]], axis=1)[kept],
        np.stack([response[:, 0], end], axis=1)[kept],
        terminated[kept],
        repeats[kept],
        first.astype(np.int64),
        first_misfit,
    )


def pack_texts(
    tokens: Tokens, first: int, count: int, config: DataConfig, slack_max: float, tally: Tally
) -> Cut:
    """Rows of pre-training: texts, each with its EOS, one after the other, cut evenly.

    A row has `floor(length / (1 + slack_max))` tokens, so that slack has room; the last may be
    shorter. It may begin and end inside a text.

    Args:
      tokens: All texts; read only where there are buckets, which ask for equal neighbours.
      first: The first token.
      count: How many there are; spans are counted from the first.
      config: Sizes.
      slack_max: `objective.slack_max`.
      tally: The rows are added to it.
    """
    size = max(1, min(math.floor(config.length / (1 + slack_max)), config.max_labels))
    begin = np.arange(0, count, size)
    response = np.stack([begin, np.minimum(begin + size, count)], axis=1)
    repeats = np.zeros(len(begin), np.int64)
    for at in range(0, len(begin) if config.buckets else 0, _ROWS):
        own = response[at : at + _ROWS]
        ids = tokens.take(first + own[:1, 0], own[-1:, 1] - own[:1, 0])
        equal = np.append(ids[1:] == ids[:-1], False)
        equal[own[:, 1] - own[0, 0] - 1] = False  # neighbours in two rows are none
        repeats[at : at + _ROWS] = np.add.reduceat(equal, own[:, 0] - own[0, 0], dtype=np.int64)
    tally.add(RowCounts(len(begin), len(begin), 0), *[np.zeros_like(begin)] * 3)
    terminated = np.zeros(len(begin), bool)
    return Cut(np.zeros_like(response), response, terminated, repeats, np.arange(len(begin)))


class _Sizes(NamedTuple):
    """What each pair takes before anything is cut, int64 [pairs] each.

    Attributes:
      past: Slots of the history.
      spare: Of these, what may be cut: where prompts are filled up to a width, all beyond it.
      labels: Labels of the response, with the terminator.
      room: Slots that the canvas leaves to the response; negative where the history alone is
        too long.
    """

    past: np.ndarray
    spare: np.ndarray
    labels: np.ndarray
    room: np.ndarray

    @classmethod
    def of(
        cls, history: np.ndarray, response: np.ndarray, config: DataConfig, margins: Margins
    ) -> "_Sizes":
        past = history[:, 1] - history[:, 0]
        labels = response[:, 1] - response[:, 0] + 1
        filled = margins.filled - margins.start  # slots that a history takes at least
        taken = np.maximum(past, filled)
        room = config.length - margins.start - margins.opening - taken
        return cls(past, taken - filled, labels, room)


def _add(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    short, long = sorted((first, second), key=len)
    total = long.copy()
    total[: len(short)] += short
    return total
