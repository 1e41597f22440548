"""All token rows of a split: cut to the canvas and held in flat arrays.

Rows enter, a `Table` leaves, from which `pipeline` assembles batches by index alone. A row has one
or more pairs of a prompt and a response: a dialogue of n answers gives n pairs, of which a draw per
epoch picks one. All pairs of a dialogue share its tokens. A table takes 4 bytes per token, about as
much as the text, on every process.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data.chat import Template, make_template
from jax_mdlm.data.counts import Counts, Need
from jax_mdlm.data.encode import Encoded, encode
from jax_mdlm.data.rows import Rows
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.data.written import encode_written

PAD, EOS, TERMINATOR, START = range(4)  # where these stand in `Table.tokens`


@dataclasses.dataclass(frozen=True)
class Table:
    """Token rows; spans are indices into `tokens`.

    A prompt is the template's start, the history and the template's opening.

    Attributes:
      tokens: int32 [tokens]; pad, eos, terminator, start, opening, then all texts.
      start: Tokens of the start.
      opening: Tokens of the opening.
      filled: Slots before the opening that a shorter prompt is filled up to with pad.
      history: int64 [pairs, 2]; start and end.
      response: int64 [pairs, 2]; start and end, without the terminator.
      terminated: bool [pairs]; False where the response was cut, and for pre-training.
      first_pair: int64 [rows + 1]; row r has the pairs first_pair[r] to first_pair[r + 1] - 1.
      counts: What became of the rows.
    """

    tokens: np.ndarray
    start: int
    opening: int
    filled: int
    history: np.ndarray
    response: np.ndarray
    terminated: np.ndarray
    first_pair: np.ndarray
    counts: Counts

    def __len__(self) -> int:
        return len(self.first_pair) - 1


def make_table(
    rows: Rows, config: DataConfig, tokenizer: Tokenizer, *, slack_max: float = 0.0
) -> Table:
    """Encodes every row and cuts, drops or refuses what does not fit.

    `data.too_long=truncate` cuts the response at the canvas and at `max_labels`; it then ends
    without a terminator, since the text goes on. A history is cut only where it would leave the
    response less than a quarter of the canvas (or less than it needs), and then from the left: the
    end of a conversation matters most. Slack needs no room of its own: it takes what is left.

    Pre-training: all texts (of a conversation: its contents, joined by newlines) are joined by EOS
    and cut into rows of `floor(length / (1 + slack_max))` tokens, so that slack has room; the last
    row may be shorter. A row may begin and end inside a text.

    Args:
      rows: What is encoded.
      config: Template, sizes and policies.
      tokenizer: Encodes.
      slack_max: `objective.slack_max`; used by pre-training.

    Raises:
      ConfigError: a row does not fit under `too_long=error`, cannot be encoded, or no row is left.
    """
    if not len(rows):
        raise ConfigError(
            f"{rows.name} holds no rows; give more data or change data.validation_percent"
        )
    special = tokenizer.ids
    head = [special.pad, special.eos, special.terminator]
    if config.pretraining:
        encoded = _encode(rows, config, tokenizer, None)
        return _pack(encoded, config, head, slack_max)
    template = make_template(config.template, tokenizer, config.prompt_slots)
    start, opening = encode_written(tokenizer, [template.start, template.opening])
    fixed = len(start) + len(opening)
    least = max(fixed, template.slots + len(opening)) + 2
    if least > config.length:
        raise ConfigError(
            f"data.length must be at least {least} for data.template={config.template}, "
            f"got {config.length}"
        )
    head += [*start, *opening]
    encoded = _encode(rows, config, tokenizer, template)
    filled = max(template.slots, len(start))  # slots before the opening, at least
    sizes = _Sizes.of(encoded, config, fixed, filled - len(start))
    fits = sizes.labels <= np.minimum(sizes.room, config.max_labels)
    if config.too_long == "error" and not fits.all():
        raise ConfigError(_too_long(int(np.argmin(fits)), encoded, rows, config, sizes))
    kept = fits | (config.too_long == "truncate")
    if not kept.any():
        raise ConfigError(
            f"no row of {rows.name} fits data.length={config.length} and "
            f"data.max_labels={config.max_labels}; raise them or set data.too_long=truncate"
        )
    history, response, room = _cut(encoded, config, sizes)
    terminated = sizes.labels <= room
    misfit = ~(kept & terminated)
    _, first = np.unique(encoded.row[kept], return_index=True)
    counts = Counts(
        rows=len(first),
        responses=int(kept.sum()),
        skipped=encoded.skipped,
        dropped=int((~kept).sum()),
        truncated=int((kept & misfit).sum()),
        by_labels=int((misfit & (np.where(kept, room, sizes.room) >= config.max_labels)).sum()),
        shortened=int((kept & (history[:, 0] > encoded.history[:, 0])).sum()),
        labels=Need.of(sizes.labels),
        slots=Need.of(config.length - sizes.room + sizes.labels),
        prompt=Need.of(sizes.past + len(start)),
    )
    return Table(
        tokens=np.concatenate([np.array(head, np.int32), encoded.tokens]),
        start=len(start),
        opening=len(opening),
        filled=filled,
        history=history[kept] + len(head),
        response=response[kept] + len(head),
        terminated=terminated[kept],
        first_pair=np.append(first, kept.sum()).astype(np.int64),
        counts=counts,
    )


def _encode(
    rows: Rows, config: DataConfig, tokenizer: Tokenizer, template: Template | None
) -> Encoded:
    """`encode`, with the rows counted that were skipped before; not empty."""
    encoded = encode(rows, config, tokenizer, template)
    if not len(encoded.row):
        raise ConfigError(
            f"all {encoded.skipped} rows of {rows.name} were skipped; set data.on_bad_row=error to "
            "see why"
        )
    return dataclasses.replace(encoded, skipped=rows.skipped + encoded.skipped)


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
    def of(cls, encoded: Encoded, config: DataConfig, fixed: int, filled: int) -> "_Sizes":
        """Of all pairs; `fixed` slots are the template's, a history takes at least `filled`."""
        past = encoded.history[:, 1] - encoded.history[:, 0]
        labels = encoded.response[:, 1] - encoded.response[:, 0] + 1
        taken = np.maximum(past, filled)
        return cls(past, taken - filled, labels, config.length - fixed - taken)


def _cut(
    encoded: Encoded, config: DataConfig, sizes: _Sizes
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts histories from the left and responses at the end, as `make_table` says.

    Returns:
      history [pairs, 2], response [pairs, 2], and the labels [pairs] that a response may have.
    """
    history, response = encoded.history.copy(), encoded.response.copy()
    quarter = min(config.max_labels, max(config.length // 4, 1))
    surplus = np.clip(np.minimum(sizes.labels, quarter) - sizes.room, 0, sizes.spare)
    history[:, 0] += surplus
    room = np.minimum(sizes.room + surplus, config.max_labels)
    response[:, 1] = np.minimum(response[:, 1], response[:, 0] + room)
    return history, response, room


def _too_long(at: int, encoded: Encoded, rows: Rows, config: DataConfig, sizes: _Sizes) -> str:
    """What to say of pair `at`, which does not fit."""
    row, needed, room = int(encoded.row[at]), sizes.labels[at], sizes.room[at]
    subject = f"response of row {row} ({rows.origin(row)}) needs {needed}"
    if needed > room:
        return (
            f"{subject} slots, the canvas leaves {max(room, 0)}; raise data.length or set "
            "data.too_long=truncate"
        )
    return (
        f"{subject} labels, data.max_labels is {config.max_labels}; raise data.max_labels or "
        "set data.too_long=truncate"
    )


def _pack(encoded: Encoded, config: DataConfig, head: list[int], slack_max: float) -> Table:
    """Pre-training rows: every text and an EOS behind it, one after the other, cut evenly."""
    eos = np.array(head[EOS], np.int32)
    stream = np.insert(encoded.tokens, encoded.response[:, 1], eos)
    size = max(1, min(math.floor(config.length / (1 + slack_max)), config.max_labels))
    begin = np.arange(0, len(stream), size)
    response = np.stack([begin, np.minimum(begin + size, len(stream))], axis=1) + len(head)
    count = len(begin)
    return Table(
        tokens=np.concatenate([np.array(head, np.int32), stream]),
        start=0,
        opening=0,
        filled=0,
        history=np.full_like(response, len(head)),
        response=response,
        terminated=np.zeros(count, bool),
        first_pair=np.arange(count + 1),
        counts=Counts(count, count, encoded.skipped),
    )
