"""Batches: a `Table` enters, `Batch`es of NumPy arrays leave.

`order` says which rows a step owns; a process assembles its share of them, the rows that its
devices hold. So the position of a run is one integer, the step, and the batches do not depend on
the processes.
"""

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from jax_mdlm.config import ConfigError, DataConfig, ObjectiveConfig, first_line
from jax_mdlm.containers import Batch
from jax_mdlm.data.draws import choose_pairs, draw_epochs, end_paddings
from jax_mdlm.data.order import make_order
from jax_mdlm.data.table import EOS, PAD, START, TERMINATOR, Table
from jax_mdlm.sharding import Share

_PREFETCH = 4  # batches that are assembled ahead
_WHOLE = Share()  # of a single process
_OBJECTIVE = ObjectiveConfig()


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
        objective: ObjectiveConfig = _OBJECTIVE,
        share: Share = _WHOLE,
        start_step: int = 0,
    ):
        """Begins to assemble.

        Args:
          table: Token rows; the same on every process.
          config: Sizes and seed.
          batch_size: Rows per step over all processes, on the full canvas.
          objective: How much slack a row may get; read where there are buckets.
          share: Which of the rows this process holds.
          start_step: The first step whose rows are wanted.

        Raises:
          ConfigError: the batch cannot be shared evenly.
        """
        import grain  # half a second, and whoever samples needs none of it

        self._table, self._order = table, make_order(table, config, objective, batch_size)
        self._own = {bucket: share.rows(bucket.rows) for bucket in self._order.buckets}
        self._configs = {
            bucket: dataclasses.replace(config, length=bucket.length, max_labels=bucket.labels)
            for bucket in self._order.buckets
        }
        steps = grain.MapDataset.range(start_step, sys.maxsize).map(self.batch_at)
        # No worker processes: a batch takes less time than to send it to another process. One
        # thread: the order keeps its place between two calls.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCH)
        self._batches = iter(steps.to_iter_dataset(options))

    def __next__(self) -> Batch:
        try:
            return next(self._batches)
        except ConfigError as error:  # a bucket that fails, e.g.; Grain adds lines of its own
            raise ConfigError(first_line(error)) from error

    def close(self) -> None:
        """Ends the thread."""
        self._batches.close()

    def batch_at(self, step: int) -> Batch:
        """This process's rows of one step."""
        bucket, epochs, rows = self._order.at(step)
        own, config = self._own[bucket], self._configs[bucket]
        drawn = draw_epochs(self._table, config, epochs[own], rows[own])
        return assemble(self._table, drawn.pairs, config, drawn.lengths, drawn.end_padding)


def evaluation_batches(
    table: Table,
    config: DataConfig,
    *,
    batch_size: int,
    limit: int = 0,
    share: Share = _WHOLE,
) -> Iterator[Batch]:
    """The rows in order, once; the last batch is filled up with rows of `label_count` 0.

    Of a dialogue the same answer is taken every time; no row is cut to a random length. All rows
    are on the full canvas: with the same noise, runs with and without buckets are compared.

    Args:
      table: Token rows.
      config: Sizes and seed.
      batch_size: Rows per batch over all processes.
      limit: Rows at most; 0 = all.
      share: Which of them this process holds.

    Raises:
      ConfigError: a batch cannot be shared evenly.
    """
    own = share.rows(batch_size)
    count = min(len(table), limit) if limit else len(table)
    rows = np.arange(count)
    pairs = choose_pairs(table, config.seed, np.zeros_like(rows), rows)
    pairs = np.pad(pairs, (0, -count % batch_size), constant_values=-1)
    for begin in range(0, count, batch_size):
        padding = end_paddings(config, np.zeros(len(own)), begin + own)
        yield assemble(table, pairs[begin + own], config, end_padding=padding)


def assemble(
    table: Table,
    pairs: np.ndarray,
    config: DataConfig,
    lengths: np.ndarray | None = None,
    end_padding: np.ndarray | None = None,
) -> Batch:
    """Rows of a batch from their pairs; their tokens are fetched at once.

    Args:
      table: Token rows.
      pairs: int [b]; which prompt and response; -1 = a row that only fills up the batch.
      config: Sizes.
      lengths: int [b]; tokens of the response to keep (pre-training); None = all.
      end_padding: int [b]; EOS slots after the terminator; None = `config.end_padding`.

    Returns:
      A `Batch` of int32 and bool arrays, [b, L] and [b, U]. A filling row has one valid slot (a
      pad token), since attention over no keys is NaN.
    """
    # --- where each part of a row ends ---
    margins, filling = table.margins, pairs < 0
    history, response = table.history[pairs], table.response[pairs]
    terminated = table.terminated[pairs]
    past, opening, begin, labels = table.spans(pairs, lengths)
    labels = np.where(filling, 0, labels)
    begin = np.where(filling, 1, begin)
    learned = labels - (terminated & ~filling)
    close = begin + learned  # the terminator's slot
    stop = begin + labels  # after the last label
    padding = config.end_padding if end_padding is None else end_padding
    padding = np.where(terminated & ~filling, padding, 0)
    end = np.minimum(stop + padding, config.length)  # after the last valid slot

    # --- the tokens of these rows, once: each history and the response after it ---
    sizes = np.stack([np.where(filling, 0, past - margins.start), learned], axis=1).reshape(-1)
    starts = np.stack([history[:, 0], response[:, 0]], axis=1).reshape(-1)
    ids = np.concatenate([margins.head, table.tokens.take(starts, sizes)])
    before = len(margins.head) + np.cumsum(sizes) - sizes
    said, answer = before[0::2], before[1::2]  # where they begin among `ids`

    def column(per_row: np.ndarray) -> np.ndarray:
        return per_row[:, None]

    # --- which token stands at each slot, and which labels ---
    slot = np.arange(config.length)
    index = np.select(  # the first condition that holds
        [
            column(filling),
            (slot < margins.start)[None],
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
            column(said) - margins.start + slot,
            np.asarray(PAD),
            START + margins.start - column(opening) + slot,
            column(answer - begin) + slot,
            TERMINATOR,
            EOS,
        ],
        PAD,
    )
    number = np.arange(config.max_labels)
    label_index = np.select(
        [number < column(learned), number < column(labels)],
        [column(answer) + number, TERMINATOR],
        PAD,
    )
    fields: dict[str, Any] = {
        "tokens": ids[index],
        "response": (slot >= column(begin)) & (slot < column(end)),
        "valid": slot < column(end),
        "labels": ids[label_index],
        "label_count": labels.astype(np.int32),
    }
    return Batch(**fields)
