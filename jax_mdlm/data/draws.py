"""What is drawn anew in every epoch: the order of rows; of a row answer, length, end padding.

All are functions of (seed, epoch, row): there is no generator whose state a checkpoint would have
to hold, batches do not depend on the number of processes, and a library upgrade does not change the
order of a run that is resumed.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jax_mdlm.config import DataConfig
from jax_mdlm.data.examples import Part
from jax_mdlm.data.table import Table

ORDER, TURN, CUT, CUT_LENGTH, PADDING = range(5)  # what a draw is for; each has its own stream

_SORTED = 2**18  # rows whose order is sorted, and kept: 2 MB
_ROUNDS = 8  # even: halves are back in their places
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def uniform(seed: int, stream: int, epochs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1), one per row.

    Args:
      seed: `data.seed`.
      stream: One of the names above.
      epochs: int [n], or [] for all rows.
      rows: int [n]; numbers of an epoch.

    Returns:
      float64 [n].
    """
    return (_bits(seed, stream, epochs, rows) >> np.uint64(11)) * 2.0**-53


def shuffled(seed: int, epochs: np.ndarray, count: int, places: np.ndarray) -> np.ndarray:
    """Which of `count` rows stands at a place of an epoch's order; every row stands at one.

    Up to 2^18 rows are sorted by a hash, once an epoch. The order of more is a Feistel network
    over their numbers, so that no permutation is stored: eight rounds of the same hash as round
    function (Luby and Rackoff, 1988), on the smallest power of two that holds all numbers; a result
    that is none of them goes through again.

    Args:
      seed: `data.seed`.
      epochs: int [n].
      count: Rows of an epoch.
      places: int [n], below `count`.

    Returns:
      int64 [n].
    """
    if count <= _SORTED:
        rows = np.empty(len(places), np.int64)
        for epoch in np.unique(epochs):
            own = epochs == epoch
            rows[own] = _permutation(seed, int(epoch), count)[places[own]]
        return rows
    low = np.uint64((count - 1).bit_length() // 2)
    high = np.uint64((count - 1).bit_length()) - low
    keys = _bits(seed, ORDER, epochs, np.zeros_like(epochs))
    rows = np.asarray(places).astype(np.uint64)
    open_ = np.arange(len(rows))
    while len(open_):
        rows[open_] = _feistel(rows[open_], keys[open_], high, low)
        open_ = open_[rows[open_] >= count]
    return rows.astype(np.int64)


@functools.lru_cache(maxsize=16)  # every source of a mixture has its own
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    bits = _bits(seed, ORDER, np.asarray(epoch), np.arange(count))
    return np.argsort(bits, kind="stable")


def _feistel(value: np.ndarray, keys: np.ndarray, high: np.uint64, low: np.uint64) -> np.ndarray:
    """A bijection of numbers of `high + low` bits, uint64 [n], for each key another."""
    for round_ in range(_ROUNDS):
        left, right = value >> low, value & ((np.uint64(1) << low) - np.uint64(1))
        noise = _mix(_mix(keys ^ np.uint64(round_)) ^ right)
        left = (left ^ noise) & ((np.uint64(1) << high) - np.uint64(1))
        value, high, low = (right << high) | left, low, high
    return value


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
    stored = mixed_rows(table.parts, seed, epochs, rows)
    first = table.first_pair[stored]
    count = table.first_pair[stored + 1] - first
    draw = uniform(seed, TURN, epochs, rows)
    return first + np.minimum((draw * count).astype(np.int64), count - 1)


def mixed_rows(
    parts: Sequence[Part], seed: int, epochs: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """The stored row of each row of an epoch, int64 [n], where sources have weights.

    A source of weight 2 has each of its rows twice in an epoch. One of weight 0.25 is walked in
    passes of its own, in another order each, a quarter of a pass an epoch.

    Args:
      parts: The sources.
      seed: `data.seed`.
      epochs: int [n], or [] for all rows.
      rows: int [n]; numbers of the epoch, source after source.
    """
    if all(part.weight == 1 for part in parts):
        return rows
    found = np.empty_like(rows)
    epochs = np.broadcast_to(epochs, rows.shape)
    begin = stored = 0
    for number, part in enumerate(parts):
        own = (rows >= begin) & (rows < begin + part.drawn)
        local = rows[own] - begin
        if part.weight.is_integer():
            found[own] = stored + local % part.rows
        else:
            passes, place = np.divmod(epochs[own] * part.drawn + local, part.rows)
            found[own] = stored + shuffled(seed + number + 1, passes, part.rows, place)
        begin += part.drawn
        stored += part.rows
    return found


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
