"""All token rows of a split: encoded, cut to the canvas and held in flat arrays.

Rows enter, a `Table` leaves, from which `batches` puts batches together by index alone. A row has
one or more pairs of a prompt and a response: a dialogue of n answers gives n pairs, of which a draw
per epoch picks one. All pairs of a dialogue share its tokens. A table takes 4 bytes per token,
about as much as the text, on every process.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data.chat import Template, Written, encode_written, make_template
from jax_mdlm.data.counts import Extent, RowCounts
from jax_mdlm.data.examples import Example, SplitRows, answers
from jax_mdlm.data.tokenizer import Tokenizer

PAD, EOS, TERMINATOR, START = range(4)  # where these stand in `Table.tokens`
_CHUNK = 8192  # rows that are encoded in one call


class Spans(NamedTuple):
    """Where the parts of rows stand on their canvas, int64 [b] each.

    Attributes:
      past: Slots of start and history.
      opening: The opening's first slot; between the two pad fills a prompt of fixed width.
      begin: The first response slot.
      labels: Response tokens, terminator included.
    """

    past: np.ndarray
    opening: np.ndarray
    begin: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class EncodedRows:
    """Ids of all rows, before anything is cut; spans are indices into `tokens`.

    Attributes:
      tokens: int32 [tokens].
      history: int64 [pairs, 2]; start and end.
      response: int64 [pairs, 2]; start and end, no terminator.
      row: int64 [pairs]; number of the pair's row, ascending.
      skipped: Rows left out (`data.on_bad_row=skip`).
    """

    tokens: np.ndarray
    history: np.ndarray
    response: np.ndarray
    row: np.ndarray
    skipped: int


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
    counts: RowCounts

    def __len__(self) -> int:
        return len(self.first_pair) - 1

    def spans(self, pairs: np.ndarray, lengths: np.ndarray | None = None) -> Spans:
        """Where pairs stand on a canvas of any length; of a response `lengths` tokens at most."""
        history, response = self.history[pairs], self.response[pairs]
        learned = response[:, 1] - response[:, 0]
        learned = learned if lengths is None else np.minimum(learned, lengths)
        past = self.start + history[:, 1] - history[:, 0]
        opening = np.maximum(past, self.filled)
        return Spans(past, opening, opening + self.opening, learned + self.terminated[pairs])


def make_table(
    rows: SplitRows, config: DataConfig, tokenizer: Tokenizer, *, slack_max: float = 0.0
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
        return _pack(encode_rows(rows, config, tokenizer, None), config, head, slack_max)
    # What the template takes of every canvas.
    template = make_template(config.template, tokenizer, config.prompt_slots)
    start, opening = encode_written(tokenizer, [template.start, template.opening])
    fixed = len(start) + len(opening)
    least = max(fixed, template.slots + len(opening)) + 2
    if least > config.length:
        raise ConfigError(
            f"data.length must be at least {least} for data.template={config.template}, "
            f"got {config.length}"
        )
    # Which pairs fit, and which are kept.
    head += [*start, *opening]
    encoded = encode_rows(rows, config, tokenizer, template)
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
    # They are cut, and counted.
    history, response, room = _cut(encoded, config, sizes)
    terminated = sizes.labels <= room
    misfit = ~(kept & terminated)
    _, first = np.unique(encoded.row[kept], return_index=True)
    counts = RowCounts(
        rows=len(first),
        responses=int(kept.sum()),
        skipped=encoded.skipped,
        dropped=int((~kept).sum()),
        truncated=int((kept & misfit).sum()),
        by_labels=int((misfit & (np.where(kept, room, sizes.room) >= config.max_labels)).sum()),
        shortened=int((kept & (history[:, 0] > encoded.history[:, 0])).sum()),
        labels=Extent.of(sizes.labels),
        slots=Extent.of(config.length - sizes.room + sizes.labels),
        prompt=Extent.of(sizes.past + len(start)),
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
    def of(cls, encoded: EncodedRows, config: DataConfig, fixed: int, filled: int) -> "_Sizes":
        """Of all pairs; `fixed` slots are the template's, a history takes at least `filled`."""
        past = encoded.history[:, 1] - encoded.history[:, 0]
        labels = encoded.response[:, 1] - encoded.response[:, 0] + 1
        taken = np.maximum(past, filled)
        return cls(past, taken - filled, labels, config.length - fixed - taken)


def _cut(
    encoded: EncodedRows, config: DataConfig, sizes: _Sizes
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


def _too_long(
    at: int, encoded: EncodedRows, rows: SplitRows, config: DataConfig, sizes: _Sizes
) -> str:
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


def _pack(encoded: EncodedRows, config: DataConfig, head: list[int], slack_max: float) -> Table:
    """Pre-training rows: every text and an EOS after it, one after the other, cut evenly."""
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
        counts=RowCounts(count, count, encoded.skipped),
    )


def encode_rows(
    rows: SplitRows, config: DataConfig, tokenizer: Tokenizer, template: Template | None
) -> EncodedRows:
    """Encodes all rows, chunk by chunk, so that `encode_batch` can use all cores.

    Args:
      rows: What is encoded.
      config: What to do with a bad row.
      tokenizer: Encodes.
      template: How messages are written; None = pre-training, where the whole text is the response.

    Raises:
      ConfigError: a response is empty, a row holds a symbol that the tokenizer does not know, or
        all rows were skipped.
    """
    parts: list[EncodedRows] = []
    offset = skipped = 0
    for begin in range(0, len(rows), _CHUNK):
        numbers = range(begin, min(begin + _CHUNK, len(rows)))
        layouts = [_layout(rows[number], template) for number in numbers]
        ids = _encode_layouts(tokenizer, layouts)
        bad: set[int] = set()
        for at, reason in _find_bad(tokenizer, layouts, ids):
            if config.on_bad_row == "error":
                raise ConfigError(
                    f"row {numbers[at]} ({rows.origin(numbers[at])}): {reason} or set "
                    "data.on_bad_row=skip"
                )
            bad.add(at)
        if bad:
            numbers = [number for at, number in enumerate(numbers) if at not in bad]
            layouts = [layout for at, layout in enumerate(layouts) if at not in bad]
            ids = _encode_layouts(tokenizer, layouts)
        assert ids is not None  # every row that could not be encoded is gone
        skipped += len(bad)
        parts.append(_spans(numbers, layouts, ids, offset))
        offset += len(parts[-1].tokens)

    if not any(len(part.row) for part in parts):
        raise ConfigError(
            f"all {skipped} rows of {rows.name} were skipped; set data.on_bad_row=error to see why"
        )

    def join(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    skipped += rows.skipped
    return EncodedRows(join("tokens"), join("history"), join("response"), join("row"), skipped)


class _Layout(NamedTuple):
    """What to encode of a row: the messages of the history, then every response once more.

    A response is encoded alone, as it stands after the template's opening; in the history it may
    merge with the line before it.
    """

    texts: tuple[Written, ...]  # history, then responses
    cuts: tuple[int, ...]  # for each response, how many texts of the history come before it

    @property
    def responses(self) -> tuple[Written, ...]:
        return self.texts[len(self.texts) - len(self.cuts) :]


def _layout(example: Example, template: Template | None) -> _Layout:
    if template is None:
        return _Layout((_plain("\n".join(message.content for message in example)),), (0,))
    cuts = answers(example)
    past = [template.past(message) for message in example[: cuts[-1]]]
    return _Layout((*past, *[_plain(example[cut].content.strip()) for cut in cuts]), tuple(cuts))


def _plain(text: str) -> Written:
    return (text,) if text else ()


def _encode_layouts(tokenizer: Tokenizer, layouts: Sequence[_Layout]) -> list[list[int]] | None:
    """Ids of all texts, or None where one of them cannot be encoded."""
    try:
        return encode_written(tokenizer, [text for layout in layouts for text in layout.texts])
    except ConfigError:
        return None


def _find_bad(
    tokenizer: Tokenizer, layouts: Sequence[_Layout], ids: list[list[int]] | None
) -> list[tuple[int, str]]:
    """Rows of a chunk that cannot be used, with the reason; all at once where there is none."""
    if ids is not None and all(all(layout.responses) for layout in layouts):
        return []
    found = []
    for at, layout in enumerate(layouts):
        if not all(layout.responses):
            found.append((at, "the response is empty; there is nothing to learn, fill it"))
            continue
        try:
            encode_written(tokenizer, layout.texts)
        except ConfigError as error:
            found.append((at, str(error)))
    return found


def _spans(
    numbers: Sequence[int], layouts: Sequence[_Layout], ids: list[list[int]], offset: int
) -> EncodedRows:
    """Spans of all pairs of a chunk whose tokens start at `offset`."""
    sizes = np.fromiter(map(len, ids), np.int64, len(ids))
    border = offset + np.concatenate([[0], np.cumsum(sizes)])  # where each text begins
    first, cut, own, row = [], [], [], []  # per pair: indices into `border`, and the row
    text = 0
    for number, layout in zip(numbers, layouts, strict=True):
        answered = text + len(layout.texts) - len(layout.cuts)
        for at, before in enumerate(layout.cuts):
            first.append(text)
            cut.append(text + before)
            own.append(answered + at)
            row.append(number)
        text += len(layout.texts)
    index = np.array([first, cut, own], np.int64).reshape(3, -1)
    return EncodedRows(
        np.fromiter(itertools.chain.from_iterable(ids), np.int32, int(sizes.sum())),
        np.stack([border[index[0]], border[index[1]]], axis=1),
        np.stack([border[index[2]], border[index[2] + 1]], axis=1),
        np.array(row, np.int64),
        0,
    )
