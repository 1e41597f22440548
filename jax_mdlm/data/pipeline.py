"""Batches: a `Table` enters, `Batch`es of NumPy arrays leave.

`order` says which rows a step owns; a process assembles its share of them, the rows that its
devices hold. So the position of a run is one integer, the step, and the batches do not depend on
the processes.
"""

import dataclasses
import sys
from collections.abc import Iterator

import numpy as np

from jax_mdlm.config import DataConfig, ObjectiveConfig
from jax_mdlm.containers import Batch
from jax_mdlm.data.assemble import assemble
from jax_mdlm.data.choices import choose, choose_pairs, end_paddings
from jax_mdlm.data.order import Order, make_order
from jax_mdlm.data.table import Table
from jax_mdlm.sharding import Share

_PREFETCH = 4  # batches that are assembled ahead
_WHOLE = Share()  # of a single process
_OBJECTIVE = ObjectiveConfig()


class TrainBatches(Iterator[Batch]):
    """An endless iterator over this process's part of the training batches.

    Assembles ahead in a thread: call `close` (or use `contextlib.closing`) when done.
    """

    def __init__(
        self, table: Table, config: DataConfig, order: Order, *, share: Share, start_step: int
    ):
        import grain  # half a second, and whoever samples needs none of it

        self._table, self._order = table, order
        self._own = {canvas: share.rows(canvas.rows) for canvas in order.canvases}
        self._configs = {
            canvas: dataclasses.replace(config, length=canvas.length, max_labels=canvas.labels)
            for canvas in order.canvases
        }
        steps = grain.MapDataset.range(start_step, sys.maxsize).map(self.batch_at)
        # No worker processes: a batch takes less time than to send it to another process. One
        # thread: the order keeps its place between two calls.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCH)
        self._batches = iter(steps.to_iter_dataset(options))

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        """Ends the thread."""
        self._batches.close()

    def batch_at(self, step: int) -> Batch:
        """This process's rows of one step."""
        canvas, epochs, rows = self._order.at(step)
        own, config = self._own[canvas], self._configs[canvas]
        choice = choose(self._table, config, epochs[own], rows[own])
        return assemble(self._table, choice.pairs, config, choice.lengths, choice.end_padding)


def train_batches(
    table: Table,
    config: DataConfig,
    *,
    batch_size: int,
    objective: ObjectiveConfig = _OBJECTIVE,
    share: Share = _WHOLE,
    start_step: int = 0,
) -> TrainBatches:
    """Training batches from `start_step` on, without end.

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
    order = make_order(table, config, objective, batch_size)
    return TrainBatches(table, config, order, share=share, start_step=start_step)


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
