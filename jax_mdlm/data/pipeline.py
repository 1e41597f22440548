"""Batches: a `Table` enters, `Batch`es of NumPy arrays leave.

Step s of training owns the rows order[s * B : (s + 1) * B] of an endless order in which every epoch
is a permutation of its own. Process p assembles its contiguous part. So the position of a run is
one integer, the step, and the batches do not depend on the number of processes.
"""

import functools
import sys
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.containers import Batch
from jax_mdlm.data import draws
from jax_mdlm.data.table import EOS, PAD, START, TERMINATOR, Table

_PREFETCH = 4  # batches that are assembled ahead


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
    learned = response[:, 1] - response[:, 0]
    learned = learned if lengths is None else np.minimum(learned, lengths)
    terminated = table.terminated[pairs]
    labels = np.where(filling, 0, learned + terminated)
    past = table.start + history[:, 1] - history[:, 0]  # slots before the opening
    opening = np.maximum(past, table.filled)  # the opening's slot
    begin = np.where(filling, 1, opening + table.opening)  # first response slot
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
        [number < column(np.where(filling, 0, learned)), number < column(labels)],
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


class TrainBatches(Iterator[Batch]):
    """An endless iterator over this process's part of the training batches.

    Assembles ahead in a thread: call `close` (or use `contextlib.closing`) when done.
    """

    def __init__(
        self,
        table: Table,
        config: DataConfig,
        *,
        batch_size: int,
        process_index: int,
        process_count: int,
        start_step: int,
    ):
        self._table, self._config = table, config
        self._batch_size = batch_size
        self._process_index, self._process_count = process_index, process_count
        self._order = functools.lru_cache(maxsize=2)(self._permutation)
        steps = grain.MapDataset.range(start_step, sys.maxsize).map(self.batch_at)
        # No worker processes: a batch takes less time than to send it to another process.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCH)
        self._batches = iter(steps.to_iter_dataset(options))

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        """Ends the thread."""
        self._batches.close()

    def batch_at(self, step: int) -> Batch:
        """This process's rows of one step."""
        size = self._batch_size // self._process_count
        first = step * self._batch_size + self._process_index * size
        epochs, at = np.divmod(np.arange(first, first + size), len(self._table))
        rows = np.empty(size, np.int64)
        for epoch in np.unique(epochs):
            rows[epochs == epoch] = self._order(int(epoch))[at[epochs == epoch]]
        pairs = choose_pairs(self._table, self._config.seed, epochs, rows)
        lengths = None
        if self._config.pretraining:
            lengths = random_lengths(self._table, self._config, epochs, rows, pairs)
        padding = end_paddings(self._config, epochs, rows)
        return assemble(self._table, pairs, self._config, lengths, padding)

    def _permutation(self, epoch: int) -> np.ndarray:
        return draws.permutation(self._config.seed, epoch, len(self._table))


def train_batches(
    table: Table,
    config: DataConfig,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
) -> TrainBatches:
    """Training batches from `start_step` on, without end.

    Args:
      table: Token rows; the same on every process.
      config: Sizes and seed.
      batch_size: Rows per step over all processes.
      process_index: This process.
      process_count: Processes that share the batch.
      start_step: The first step whose rows are wanted.

    Raises:
      ConfigError: the processes cannot share the batch evenly.
    """
    _check_shares(batch_size, process_count)
    return TrainBatches(
        table,
        config,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        start_step=start_step,
    )


def evaluation_batches(
    table: Table,
    config: DataConfig,
    *,
    batch_size: int,
    limit: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """The rows in order, once; the last batch is filled up with rows of `label_count` 0.

    Of a dialogue the same answer is taken every time; no row is cut to a random length.

    Args:
      table: Token rows.
      config: Sizes and seed.
      batch_size: Rows per batch over all processes.
      limit: Rows at most; 0 = all.
      process_index: This process.
      process_count: Processes that share a batch.

    Raises:
      ConfigError: the processes cannot share the batch evenly.
    """
    _check_shares(batch_size, process_count)
    count = min(len(table), limit) if limit else len(table)
    rows = np.arange(count)
    pairs = choose_pairs(table, config.seed, np.zeros_like(rows), rows)
    size = batch_size // process_count
    for begin in range(0, count, batch_size):
        own = pairs[begin + process_index * size :][:size]
        own = own[: max(0, count - begin - process_index * size)]
        own = np.pad(own, (0, size - len(own)), constant_values=-1)
        padding = end_paddings(
            config, np.zeros(size), begin + process_index * size + np.arange(size)
        )
        yield assemble(table, own, config, end_padding=padding)


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


def _check_shares(batch_size: int, process_count: int) -> None:
    if batch_size % process_count:
        raise ConfigError(
            f"train.batch_size must be divisible by the {process_count} processes, got {batch_size}"
        )
