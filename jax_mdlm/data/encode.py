"""Conversations to ids: what a row's texts are, and where each stands among the tokens.

Examples enter, `Encoded` leaves: nothing is cut here, so that one encoding serves every length. A
response is encoded alone, as it stands after the template's opening, and once more within the
history of later ones, where it may merge with the line before it.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data.chat import Template, Written, encode_written
from jax_mdlm.data.examples import BadRowError, Example, SplitRows, answers
from jax_mdlm.data.spelled import IN_TEXT
from jax_mdlm.data.tokenizer import Tokenizer

_CHUNK = 8192  # rows that are encoded in one call


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Ids of rows, before anything is cut; spans are indices into `tokens`.

    Attributes:
      tokens: int32 [tokens].
      history: int64 [pairs, 2]; start and end.
      response: int64 [pairs, 2]; start and end, no terminator; of a text of pre-training all of it,
        with the EOS after it.
      repeats: int64 [pairs]; equal neighbours among a response's labels, terminator included.
      row: int64 [pairs]; number of the pair's row, ascending.
    """

    tokens: np.ndarray
    history: np.ndarray
    response: np.ndarray
    repeats: np.ndarray
    row: np.ndarray

    @classmethod
    def join(cls, parts: Sequence["Encoded"]) -> "Encoded":
        """All parts, whose rows are numbered through already, one after the other."""
        offsets = np.cumsum([0, *(len(part.tokens) for part in parts)])
        moved = list(zip(offsets, parts, strict=False))
        return cls(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.history + offset for offset, part in moved]),
            np.concatenate([part.response + offset for offset, part in moved]),
            np.concatenate([part.repeats for part in parts]),
            np.concatenate([part.row for part in parts]),
        )

    def of_rows(self, begin: int, end: int) -> "Encoded":
        """The pairs of the rows `begin` to `end`, with the tokens of all."""
        own = slice(*np.searchsorted(self.row, [begin, end]))
        return dataclasses.replace(
            self,
            history=self.history[own],
            response=self.response[own],
            repeats=self.repeats[own],
            row=self.row[own],
        )


def encode_rows(
    rows: SplitRows, config: DataConfig, tokenizer: Tokenizer, template: Template | None
) -> tuple[Encoded, int]:
    """Encodes all rows of a split, chunk by chunk, so that `encode_batch` can use all cores.

    Args:
      rows: What is encoded.
      config: What to do with a bad row.
      tokenizer: Encodes.
      template: How messages are written; None = pre-training, where the whole text is the response.

    Returns:
      The ids, and how many rows were skipped.

    Raises:
      ConfigError: a response is empty, a row holds a symbol that the tokenizer does not know or a
        special token where none may be, or all rows were skipped.
    """
    parts, skipped = [], 0
    for begin in range(0, len(rows), _CHUNK):
        numbers = range(begin, min(begin + _CHUNK, len(rows)))
        encoded, bad = encode_examples([rows[number] for number in numbers], tokenizer, template)
        for at, reason in bad:
            if config.on_bad_row == "error":
                raise ConfigError(
                    f"row {begin + at} ({rows.origin(begin + at)}): {reason} or set "
                    "data.on_bad_row=skip"
                )
        skipped += len(bad)
        parts.append(dataclasses.replace(encoded, row=encoded.row + begin))
    if not any(len(part.row) for part in parts):
        raise ConfigError(
            f"all {skipped} rows of {rows.name} were skipped; set data.on_bad_row=error to see why"
        )
    return Encoded.join(parts), skipped


def encode_examples(
    examples: Sequence[Example], tokenizer: Tokenizer, template: Template | None
) -> tuple[Encoded, list[tuple[int, BadRowError]]]:
    """Encodes some rows.

    Returns:
      The ids of those that can be encoded, and of each other one its number and the reason.
    """
    special = tokenizer.ids
    roles = {special.slack: "slack", special.pad: "pad"}  # no text gives the mask
    if template is None:
        roles.pop(special.eos, None)  # ends every text of pre-training
    layouts = [_layout(example, template, tokenizer.ids.eos) for example in examples]
    numbers: Sequence[int] = range(len(examples))
    ids = _encode_layouts(tokenizer, layouts)
    bad = _find_bad(tokenizer, layouts, ids, roles)
    if bad:
        left_out = dict(bad)
        numbers = [number for number in numbers if number not in left_out]
        layouts = [layouts[number] for number in numbers]
        ids = _encode_layouts(tokenizer, layouts)
    assert ids is not None  # every row that could not be encoded is gone
    return _spans(numbers, layouts, ids, tokenizer.ids.terminator), bad


class _Layout(NamedTuple):
    """What to encode of a row: the messages of the history, then every response once more."""

    texts: tuple[Written, ...]  # history, then responses
    cuts: tuple[int, ...]  # for each response, how many texts of the history come before it

    @property
    def responses(self) -> tuple[Written, ...]:
        return self.texts[len(self.texts) - len(self.cuts) :]


def _layout(example: Example, template: Template | None, eos: int) -> _Layout:
    if template is None:
        text = "\n".join(message.content for message in example)
        return _Layout(((text, eos) if text else (),), (0,))
    cuts = answers(example)
    past = [template.past(message) for message in example[: cuts[-1]]]
    texts = [example[cut].content.strip() for cut in cuts]
    return _Layout((*past, *[(text,) if text else () for text in texts]), tuple(cuts))


def _encode_layouts(tokenizer: Tokenizer, layouts: Sequence[_Layout]) -> list[list[int]] | None:
    """Ids of all texts, or None where one of them cannot be encoded."""
    try:
        return encode_written(tokenizer, [text for layout in layouts for text in layout.texts])
    except ConfigError:
        return None


def _find_bad(
    tokenizer: Tokenizer,
    layouts: Sequence[_Layout],
    ids: list[list[int]] | None,
    roles: Mapping[int, str],
) -> list[tuple[int, BadRowError]]:
    """Rows of a chunk that cannot be used, with the reason; all at once where there is none.

    Args:
      tokenizer: Encodes.
      layouts: Of the rows.
      ids: Of all their texts, None where one of them cannot be encoded.
      roles: Id -> role of the tokens that no response may hold: as labels they would teach the
        model to write what is no text.
    """
    if ids is not None and all(all(layout.responses) for layout in layouts):
        responses, end = [], 0
        for layout in layouts:
            end += len(layout.texts)
            responses += ids[end - len(layout.cuts) : end]
        if roles.keys().isdisjoint(itertools.chain.from_iterable(responses)):
            return []
    found = []
    for at, layout in enumerate(layouts):
        try:
            _check_row(tokenizer, layout, roles)
        except BadRowError as error:
            found.append((at, error))
        except ConfigError as error:
            found.append((at, BadRowError(str(error), "not encoded")))
    return found


def _check_row(tokenizer: Tokenizer, layout: _Layout, roles: Mapping[int, str]) -> None:
    """Raises ConfigError for a row that cannot be used."""
    if not all(layout.responses):
        raise ConfigError("the response is empty; there is nothing to learn, fill it")
    texts = encode_written(tokenizer, layout.texts)
    for index in itertools.chain.from_iterable(texts[len(texts) - len(layout.cuts) :]):
        if index in roles:
            raise BadRowError(
                f"the response must not hold {tokenizer.token(index)!r} (id {index}), the "
                f"{roles[index]} token, which no answer has; take it out or train with "
                "data.special_in_text=text",
                IN_TEXT,
            )


def _spans(
    numbers: Sequence[int], layouts: Sequence[_Layout], ids: list[list[int]], terminator: int
) -> Encoded:
    """Where everything of a chunk stands."""
    sizes = np.fromiter(map(len, ids), np.int64, len(ids))
    border = np.concatenate([[0], np.cumsum(sizes)])  # where each text begins
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
    tokens = np.fromiter(itertools.chain.from_iterable(ids), np.int32, int(sizes.sum()))
    response = np.stack([border[index[2]], border[index[2] + 1]], axis=1)
    return Encoded(
        tokens=tokens,
        history=np.stack([border[index[0]], border[index[1]]], axis=1),
        response=response,
        repeats=_repeats(tokens, response, terminator),
        row=np.array(row, np.int64),
    )


def _repeats(tokens: np.ndarray, response: np.ndarray, terminator: int) -> np.ndarray:
    """Equal neighbours in each span, the terminator after it included; int64 [pairs]."""
    if not len(response):
        return np.zeros(0, np.int64)
    repeated = np.append(tokens[1:] == tokens[:-1], False)  # by the next token
    begin, last = response[:, 0], response[:, 1] - 1  # no response is empty
    before = np.concatenate([[0], np.cumsum(repeated, dtype=np.int64)])
    return before[last] - before[begin] + (tokens[last] == terminator)
