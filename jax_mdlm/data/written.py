"""What a template writes: control tokens as ids, and between them text that is only text.

A user may spell a control token (`<|eot_id|>`) in a message. In one string nobody could tell it
from the template's own, so templates never join the two: they yield pieces, which become ids here.
"""

from collections.abc import Iterable, Sequence

from jax_mdlm.data.tokenizer import Tokenizer

Piece = int | str  # a control token's id, or text
Written = Sequence[Piece]


def control(tokenizer: Tokenizer, token: str) -> Piece:
    """A control token as a piece; text where the tokenizer does not have it as one token."""
    index = tokenizer.find(token)
    return token if index is None else index


def encode_written(tokenizer: Tokenizer, texts: Iterable[Written]) -> list[list[int]]:
    """Ids of what was written.

    Text between two control tokens is one run, however many pieces it has: a tokenizer reads an
    empty line before a word otherwise than one at the end. Equal runs are encoded once.

    Args:
      tokenizer: Encodes the runs.
      texts: Encoded one by one.

    Raises:
      ConfigError: as `Tokenizer.encode_batch`.
    """
    runs: dict[str, int] = {}
    plans = []
    for pieces in texts:
        plan: list[int] = []  # an id, or the number of a run as -1 - number
        run = ""
        for piece in pieces:
            if isinstance(piece, str):
                run += piece
                continue
            if run:
                plan.append(~runs.setdefault(run, len(runs)))
                run = ""
            plan.append(piece)
        if run:
            plan.append(~runs.setdefault(run, len(runs)))
        plans.append(plan)
    encoded = tokenizer.encode_batch(list(runs))
    found = []
    for plan in plans:
        ids: list[int] = []
        for entry in plan:
            if entry < 0:
                ids.extend(encoded[~entry])
            else:
                ids.append(entry)
        found.append(ids)
    return found
