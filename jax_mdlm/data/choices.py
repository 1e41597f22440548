"""What is drawn anew for every row in every epoch: answer, random length, end padding.

Functions of (seed, epoch, row) only, like the order of rows (`draws`).
"""

from typing import NamedTuple

import numpy as np

from jax_mdlm.config import DataConfig
from jax_mdlm.data import draws
from jax_mdlm.data.table import Table


class Choice(NamedTuple):
    """Rows as their epochs drew them, int64 [n] each.

    Attributes:
      pairs: Indices into `table.history`.
      lengths: Response tokens to keep.
      end_padding: EOS slots behind the terminator.
    """

    pairs: np.ndarray
    lengths: np.ndarray
    end_padding: np.ndarray


def choose(table: Table, config: DataConfig, epochs: np.ndarray, rows: np.ndarray) -> Choice:
    """All draws for some rows of training.

    Args:
      table: Token rows.
      config: Seed and sizes.
      epochs: int [n], or [] for all rows.
      rows: int [n].
    """
    pairs = choose_pairs(table, config.seed, epochs, rows)
    if config.pretraining:
        lengths = random_lengths(table, config, epochs, rows, pairs)
    else:
        lengths = table.response[pairs, 1] - table.response[pairs, 0]
    return Choice(pairs, lengths, end_paddings(config, epochs, rows))


def choose_pairs(table: Table, seed: int, epochs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Which answer of each dialogue is the response: uniform, drawn anew in every epoch.

    LLaDA's fine-tuning (arXiv 2502.09992): a dialogue of n turns gives n pairs of a history and a
    response, one of which is drawn.

    Args:
      table: Token rows.
      seed: `data.seed`.
      epochs: int [n].
      rows: int [n].

    Returns:
      int [n], indices into `table.history`.
    """
    first = table.first_pair[rows]
    count = table.first_pair[rows + 1] - first
    draw = draws.uniform(seed, draws.TURN, epochs, rows)
    return first + np.minimum((draw * count).astype(np.int64), count - 1)


def end_paddings(config: DataConfig, epochs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """EOS slots behind each terminator, where the canvas leaves room.

    With a fixed number (`draw_end_padding` off) on a canvas that it does not fill, the count of
    valid slots tells the model how long the answer is, which no sampler can know beforehand. Drawn
    uniformly, it says little.

    Returns:
      int [n], 0 to `end_padding`.
    """
    if not config.draw_end_padding:
        return np.full(len(rows), config.end_padding)
    draw = draws.uniform(config.seed, draws.PADDING, epochs, rows)
    return (draw * (config.end_padding + 1)).astype(np.int64)


def random_lengths(
    table: Table, config: DataConfig, epochs: np.ndarray, rows: np.ndarray, pairs: np.ndarray
) -> np.ndarray:
    """Tokens to keep of each pre-training row: all, or for `random_length_share` uniform from 1.

    Returns:
      int [n].
    """
    size = table.response[pairs, 1] - table.response[pairs, 0]
    cut = draws.uniform(config.seed, draws.CUT, epochs, rows) < config.random_length_share
    length = draws.uniform(config.seed, draws.CUT_LENGTH, epochs, rows) * size
    return np.where(cut, 1 + length.astype(np.int64), size)
