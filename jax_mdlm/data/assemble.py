"""Rows of a batch, put together from a `Table` by index alone.

Enters: which pairs, and what was drawn for them (`choices`). Leaves: a `Batch` of NumPy arrays.
"""

from typing import Any, NamedTuple

import numpy as np

from jax_mdlm.config import DataConfig
from jax_mdlm.containers import Batch
from jax_mdlm.data.table import EOS, PAD, START, TERMINATOR, Table


class Places(NamedTuple):
    """Where the parts of rows stand, int64 [b] each.

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


def place(table: Table, pairs: np.ndarray, lengths: np.ndarray | None = None) -> Places:
    """The places of pairs on a canvas of any length; `pairs` and `lengths` as in `assemble`."""
    history, response = table.history[pairs], table.response[pairs]
    learned = response[:, 1] - response[:, 0]
    learned = learned if lengths is None else np.minimum(learned, lengths)
    past = table.start + history[:, 1] - history[:, 0]
    opening = np.maximum(past, table.filled)
    return Places(past, opening, opening + table.opening, learned + table.terminated[pairs])


def assemble(
    table: Table,
    pairs: np.ndarray,
    config: DataConfig,
    lengths: np.ndarray | None = None,
    end_padding: np.ndarray | None = None,
) -> Batch:
    """Rows of a batch from their pairs, with one gather.

    Args:
      table: Token rows.
      pairs: int [b]; which prompt and response; -1 = a row that only fills up the batch.
      config: Sizes.
      lengths: int [b]; tokens of the response to keep (pre-training); None = all.
      end_padding: int [b]; EOS slots behind the terminator; None = `config.end_padding`.

    Returns:
      A `Batch` of int32 and bool arrays, [b, L] and [b, U]. A filling row has one valid slot (a
      pad token), since attention over no keys is NaN.
    """
    filling = pairs < 0
    history, response = table.history[pairs], table.response[pairs]
    terminated = table.terminated[pairs]
    past, opening, begin, labels = place(table, pairs, lengths)
    labels = np.where(filling, 0, labels)
    begin = np.where(filling, 1, begin)
    learned = labels - (terminated & ~filling)
    close = begin + learned  # the terminator's slot
    stop = begin + labels  # behind the last label
    padding = config.end_padding if end_padding is None else end_padding
    padding = np.where(terminated & ~filling, padding, 0)
    end = np.minimum(stop + padding, config.length)  # behind the last valid slot

    def column(per_row: np.ndarray) -> np.ndarray:
        return per_row[:, None]

    slot = np.arange(config.length)
    index = np.select(  # the first condition that holds
        [
            column(filling),
            (slot < table.start)[None],
            slot < column(past),
            slot < column(opening),
            slot < column(begin),
            slot < column(close),
            slot < column(stop),
            slot < column(end),
        ],
        [
            np.asarray(PAD),
            START + slot,
            column(history[:, 0]) - table.start + slot,
            np.asarray(PAD),
            START + table.start - column(opening) + slot,
            column(response[:, 0] - begin) + slot,
            TERMINATOR,
            EOS,
        ],
        PAD,
    )
    number = np.arange(config.max_labels)
    label_index = np.select(
        [number < column(learned), number < column(labels)],
        [column(response[:, 0]) + number, TERMINATOR],
        PAD,
    )
    fields: dict[str, Any] = {
        "tokens": table.tokens[index],
        "response": (slot >= column(begin)) & (slot < column(end)),
        "valid": slot < column(end),
        "labels": table.tokens[label_index],
        "label_count": labels.astype(np.int32),
    }
    return Batch(**fields)
