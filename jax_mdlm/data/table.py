"""All token rows of a split, from which `batches` puts batches together by index alone.

Encoded rows enter, a `Table` leaves. A row has one or more pairs of a prompt and a response: a
dialogue of n answers gives n pairs, of which a draw per epoch picks one. All pairs of a dialogue
share its tokens. The arrays of a table are in memory, 4 bytes a token, or those of `prepare`, which
are mapped.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data.chat import training_template
from jax_mdlm.data.counts import RowCounts
from jax_mdlm.data.cut import Cut, Margins, Tally, cut_chat, pack_texts
from jax_mdlm.data.encode import encode_rows
from jax_mdlm.data.examples import Part, SplitRows
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.data.tokens import HeldTokens, Tokens

PAD, EOS, TERMINATOR, START = range(4)  # where these stand in `Margins.head`


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
class Table:
    """Token rows; spans are indices into `tokens`.

    A prompt is the template's start, the history and the template's opening.

    Attributes:
      tokens: Of all texts.
      margins: What the template takes.
      history: int64 [pairs, 2]; start and end.
      response: int64 [pairs, 2]; start and end, without the terminator.
      terminated: bool [pairs]; False where the response was cut, and for pre-training.
      repeats: int64 [pairs]; equal neighbours among the labels, at most.
      first_pair: int64 [rows + 1]; row r has the pairs first_pair[r] to first_pair[r + 1] - 1.
      counts: What became of the rows.
      parts: The sources, in the order of their rows.
    """

    tokens: Tokens
    margins: Margins
    history: np.ndarray
    response: np.ndarray
    terminated: np.ndarray
    repeats: np.ndarray
    first_pair: np.ndarray
    counts: RowCounts
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        """Rows of an epoch."""
        return sum(part.drawn for part in self.parts)

    def spans(self, pairs: np.ndarray, lengths: np.ndarray | None = None) -> Spans:
        """Where pairs stand on a canvas of any length; of a response `lengths` tokens at most."""
        history, response = self.history[pairs], self.response[pairs]
        learned = response[:, 1] - response[:, 0]
        learned = learned if lengths is None else np.minimum(learned, lengths)
        past = self.margins.start + history[:, 1] - history[:, 0]
        opening = np.maximum(past, self.margins.filled)
        begin = opening + self.margins.opening
        return Spans(past, opening, begin, learned + self.terminated[pairs])


def make_table(
    rows: SplitRows, config: DataConfig, tokenizer: Tokenizer, *, slack_max: float = 0.0
) -> Table:
    """Encodes every row and cuts, drops or refuses what does not fit (`cut_chat`, `pack_texts`).

    Pre-training joins the contents of a conversation by newlines.

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
    margins = Margins.of(config, tokenizer)
    template = training_template(config, tokenizer)
    encoded, skipped = encode_rows(rows, config, tokenizer, template)
    tokens, tally = HeldTokens(encoded.tokens), Tally()
    cuts, end = [], 0
    parts = rows.parts or (Part(rows.name, len(rows)),)
    for part in parts:
        begin, end = end, end + part.rows
        own = encoded.of_rows(begin, end)
        if config.pretraining:
            first, stop = (own.response[0, 0], own.response[-1, 1]) if len(own.row) else (0, 0)
            cut = pack_texts(tokens, first, stop - first, config, slack_max, tally)
            cut = cut._replace(response=cut.response + first)
        else:
            cut = cut_chat(own.history, own.response, own.repeats, own.row, config, margins, tally)
        if cut.misfit and config.too_long == "error":
            row = int(own.row[cut.misfit[0]])
            raise ConfigError(too_long(f"row {row} ({rows.origin(row)})", cut, config))
        cuts.append(cut)
    cut = Cut.join(cuts)
    if not len(cut.response):
        raise ConfigError(
            f"no row of {rows.name} fits data.length={config.length} and "
            f"data.max_labels={config.max_labels}; raise them or set data.too_long=truncate"
        )
    return Table(
        tokens=tokens,
        margins=margins,
        history=cut.history,
        response=cut.response,
        terminated=cut.terminated,
        repeats=cut.repeats,
        first_pair=np.append(cut.first, len(cut.response)),
        counts=tally.counts(rows.bad.total + skipped),
        parts=tuple(
            part._replace(rows=len(own.first)) for part, own in zip(parts, cuts, strict=True)
        ),
    )


def too_long(subject: str, cut: Cut, config: DataConfig) -> str:
    """What to say of the row whose pair is `cut.misfit`."""
    assert cut.misfit is not None
    _, needed, room = cut.misfit
    if needed > room:
        return (
            f"response of {subject} needs {needed} slots, the canvas leaves {max(room, 0)}; raise "
            "data.length or set data.too_long=truncate"
        )
    return (
        f"response of {subject} needs {needed} labels, data.max_labels is {config.max_labels}; "
        "raise data.max_labels or set data.too_long=truncate"
    )
