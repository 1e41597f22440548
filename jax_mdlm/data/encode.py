"""Rows to flat ids, chunk by chunk, so that `encode_batch` can use all cores."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data.chat import Template
from jax_mdlm.data.examples import Example, answers
from jax_mdlm.data.rows import Rows
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.data.written import Written, encode_written

_CHUNK = 8192  # rows that are encoded in one call


@dataclasses.dataclass(frozen=True)
class Encoded:
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


def encode(
    rows: Rows, config: DataConfig, tokenizer: Tokenizer, template: Template | None
) -> Encoded:
    """Encodes every row.

    Args:
      rows: What is encoded.
      config: What to do with a bad row.
      tokenizer: Encodes.
      template: How messages are written; None = pre-training, where the whole text is the response.

    Raises:
      ConfigError: a response is empty, or a row holds a symbol that the tokenizer does not know.
    """
    parts: list[Encoded] = []
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

    def join(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    return Encoded(join("tokens"), join("history"), join("response"), join("row"), skipped)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """What to encode of a row: the messages of the history, then every response once more.

    A response is encoded alone, as it stands after the template's opening; in the history it may
    merge with the line before it.

    Attributes:
      texts: History, then responses.
      cuts: For each response, how many texts of the history come before it.
    """

    texts: tuple[Written, ...]
    cuts: tuple[int, ...]

    @property
    def responses(self) -> tuple[Written, ...]:
        """The texts that are learned."""
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
) -> Encoded:
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
    return Encoded(
        np.fromiter(itertools.chain.from_iterable(ids), np.int32, int(sizes.sum())),
        np.stack([border[index[0]], border[index[1]]], axis=1),
        np.stack([border[index[2]], border[index[2] + 1]], axis=1),
        np.array(row, np.int64),
        0,
    )
