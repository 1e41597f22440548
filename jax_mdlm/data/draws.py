"""What is drawn anew in every epoch: the order of rows; of a row answer, length, end padding.

All are functions of (seed, epoch, row): there is no generator whose state a checkpoint would have
to hold, batches do not depend on the number of processes, and a library upgrade does not change the
order of a run that is resumed.
"""

from typing import NamedTuple

import numpy as np

from jax_mdlm.config import DataConfig
from jax_mdlm.data.table import Table

ORDER, TURN, CUT, CUT_LENGTH, PADDING = range(5)  # what a draw is for; each has its own stream

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def uniform(seed: int, stream: int, epochs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1), one per row.

    Args:
      seed: `data.seed`.
      stream: One of the names above.
      epochs: int [n], or [] for all rows.
      rows: int [n].

    Returns:
      float64 [n].
    """
    return (_bits(seed, stream, epochs, rows) >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, epoch: int, rows: int) -> np.ndarray:
    """The order of an epoch: int64 [rows], every row once."""
    bits = _bits(seed, ORDER, np.asarray(epoch), np.arange(rows))
    return np.argsort(bits, kind="stable")


class Drawn(NamedTuple):
    """Rows as their epochs drew them, int64 [n] each.

    Attributes:
      pairs: Indices into `table.history`.
      lengths: Response tokens to keep.
      end_padding: EOS slots after the terminator.
    """

    pairs: np.ndarray
    lengths: np.ndarray
    end_padding: np.ndarray


def draw_epochs(table: Table, config: DataConfig, epochs: np.ndarray, rows: np.ndarray) -> Drawn:
    """All draws for some rows of training; `epochs` is int [n], or [] for all `rows` int [n]."""
    pairs = choose_pairs(table, config.seed, epochs, rows)
    if config.pretraining:
        lengths = random_lengths(table, config, epochs, rows, pairs)
    else:
        lengths = table.response[pairs, 1] - table.response[pairs, 0]
    return Drawn(pairs, lengths, end_paddings(config, epochs, rows))


def choose_pairs(table: Table, seed: int, epochs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Which answer of each dialogue is the response: uniform, drawn anew in every epoch.

    LLaDA's fine-tuning (arXiv 2502.09992): a dialogue of n turns gives n pairs of a history and a
    response, one of which is drawn. int [n], indices into `table.history`.
    """
    first = table.first_pair[rows]
    count = table.first_pair[rows + 1] - first
    draw = uniform(seed, TURN, epochs, rows)
    return first + np.minimum((draw * count).astype(np.int64), count - 1)


def end_paddings(config: DataConfig, epochs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """EOS slots after each terminator, where the canvas leaves room.

    With a fixed number (`draw_end_padding` off) on a canvas that it does not fill, the count of
    valid slots tells the model how long the answer is, which no sampler can know beforehand. Drawn
    uniformly, it says little.

    Returns:
      int [n], 0 to `end_padding`.
    """
    if not config.draw_end_padding:
        return np.full(len(rows), config.end_padding)
    draw = uniform(config.seed, PADDING, epochs, rows)
    return (draw * (config.end_padding + 1)).astype(np.int64)


def random_lengths(
    table: Table, config: DataConfig, epochs: np.ndarray, rows: np.ndarray, pairs: np.ndarray
) -> np.ndarray:
    """Tokens to keep of each pre-training row: all, or for `random_length_share` uniform from 1."""
    size = table.response[pairs, 1] - table.response[pairs, 0]
    cut = uniform(config.seed, CUT, epochs, rows) < config.random_length_share
    length = uniform(config.seed, CUT_LENGTH, epochs, rows) * size
    return np.where(cut, 1 + length.astype(np.int64), size)


def _bits(seed: int, stream: int, epochs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    state = _mix(np.asarray(seed % 2**64, np.uint64))
    for word in (np.asarray(stream), epochs, rows):
        state = _mix(state ^ np.asarray(word).astype(np.uint64))
    return state


def _mix(state: np.ndarray) -> np.ndarray:
    """One step of SplitMix64 (Steele, Lea and Flood, 2014); the products wrap around."""
    with np.errstate(over="ignore"):
        state = state + _GAMMA
        state = (state ^ (state >> np.uint64(30))) * _MIX_1
        state = (state ^ (state >> np.uint64(27))) * _MIX_2
        return state ^ (state >> np.uint64(31))
