"""Which rows each step of training owns: a pure function of the step.

An epoch is a permutation of all rows. Without buckets, step s owns the rows s * B to (s + 1) * B of
the endless order that the epochs make. With buckets, the order is walked row by row: a row joins
the queue of its bucket, and a full queue is a batch. Neither depends on processes or devices.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from jax_mdlm.config import DataConfig, ObjectiveConfig
from jax_mdlm.data import buckets, draws
from jax_mdlm.data.buckets import Canvas
from jax_mdlm.data.choices import choose
from jax_mdlm.data.table import Table


class Owned(NamedTuple):
    """The rows of one step.

    Attributes:
      canvas: What they are written on.
      epochs: int64 [B]; the epoch that each row belongs to.
      rows: int64 [B]; numbers of rows of the table.
    """

    canvas: Canvas
    epochs: np.ndarray
    rows: np.ndarray


class Order(Protocol):
    """What `pipeline` asks.

    Attributes:
      canvases: Every kind of batch that there is.
      mean_rows: Rows of a step on average.
    """

    canvases: tuple[Canvas, ...]
    mean_rows: float

    def at(self, step: int) -> Owned:
        """The rows of a step."""
        ...

    def num_steps(self, epochs: float) -> int:
        """Steps whose rows add up to at least `epochs` times all rows."""
        ...


def make_order(
    table: Table, config: DataConfig, objective: ObjectiveConfig, batch_size: int
) -> Order:
    """The order of training, with or without buckets.

    Args:
      table: Token rows.
      config: Seed, sizes, `buckets`.
      objective: How much slack a row may get.
      batch_size: Rows of a step on the full canvas.
    """
    if config.buckets:
        return BucketOrder(table, config, objective, batch_size)
    return PlainOrder(table, config, objective, batch_size)


def count_steps(epochs: float, num_rows: int, batch_size: int) -> int:
    """Steps whose rows add up to at least `epochs` times all rows, without buckets."""
    return math.ceil(epochs * num_rows / batch_size)


class PlainOrder:
    """Every step owns the next `batch_size` rows, on the full canvas."""

    def __init__(
        self, table: Table, config: DataConfig, objective: ObjectiveConfig, batch_size: int
    ) -> None:
        self.canvases = buckets.canvases(config, objective, batch_size)
        self.mean_rows = float(batch_size)
        self._batch_size, self._num_rows, self._seed = batch_size, len(table), config.seed
        self._order = functools.lru_cache(maxsize=2)(self._permutation)

    def at(self, step: int) -> Owned:
        """The rows of a step."""
        first = step * self._batch_size
        epochs, at = np.divmod(np.arange(first, first + self._batch_size), self._num_rows)
        rows = np.empty_like(at)
        for epoch in np.unique(epochs):
            rows[epochs == epoch] = self._order(int(epoch))[at[epochs == epoch]]
        return Owned(self.canvases[0], epochs, rows)

    def num_steps(self, epochs: float) -> int:
        """Steps whose rows add up to at least `epochs` times all rows."""
        return count_steps(epochs, self._num_rows, self._batch_size)

    def _permutation(self, epoch: int) -> np.ndarray:
        return draws.permutation(self._seed, epoch, self._num_rows)


class BucketOrder:
    """Steps of several canvases; see `pack` for what an epoch becomes.

    The rows that an epoch leaves over are the first of the next. So what a step owns follows from
    the epochs before it: a run that resumes walks them again, in array operations (well under a
    second for an epoch of a million rows), and the latest is kept.
    """

    def __init__(
        self, table: Table, config: DataConfig, objective: ObjectiveConfig, batch_size: int
    ) -> None:
        self.canvases = buckets.canvases(config, objective, batch_size)
        self._table, self._config, self._objective = table, config, objective
        self._separators = buckets.count_separators(table, objective)
        self._sizes = np.array([canvas.rows for canvas in self.canvases])
        self._start()
        while not len(self._packed.kind):  # fewer rows than a batch has: an epoch may make none
            self._advance()
        self.mean_rows = float(np.mean(self._sizes[self._packed.kind]))

    def at(self, step: int) -> Owned:
        """The rows of a step."""
        if step < self._first_step:
            self._start()
        while step >= self._first_step + len(self._packed.kind):
            self._advance()
        kind, members = self._packed.batch(step - self._first_step)
        return Owned(self.canvases[kind], self._epochs[members], self._rows[members])

    def num_steps(self, epochs: float) -> int:
        """Steps whose rows add up to at least `epochs` times all rows."""
        missing = epochs * len(self._table)
        self._start()
        while True:
            seen = np.cumsum(self._sizes[self._packed.kind])
            if len(seen) and seen[-1] >= missing:
                return self._first_step + int(np.searchsorted(seen, missing)) + 1
            missing -= seen[-1] if len(seen) else 0
            self._advance()

    def _start(self) -> None:
        """Goes back to the first epoch."""
        none = np.empty(0, np.int64)
        self._epoch, self._first_step = 0, 0
        self._walk(none, none)

    def _advance(self) -> None:
        """Goes on to the next epoch, with the rows that this one left over."""
        left = self._packed.left
        self._epoch += 1
        self._first_step += len(self._packed.kind)
        self._walk(self._epochs[left], self._rows[left])

    def _walk(self, epochs: np.ndarray, rows: np.ndarray) -> None:
        order = draws.permutation(self._config.seed, self._epoch, len(self._table))
        self._epochs = np.concatenate([epochs, np.full_like(order, self._epoch)])
        self._rows = np.concatenate([rows, order])
        choice = choose(self._table, self._config, self._epochs, self._rows)
        slots = buckets.slots_needed(self._table, choice, self._objective, self._separators)
        self._packed = pack(buckets.find(slots, self.canvases), self._sizes.tolist())


class Packed(NamedTuple):
    """The batches of an epoch; rows are places in its walk.

    Attributes:
      kind: int64 [batches]; number of the bucket.
      number: int64 [batches]; which batch of its bucket.
      queues: Per bucket int64 [batches of the bucket, rows of a batch].
      left: int64 [n]; rows that fill no batch, ascending.
    """

    kind: np.ndarray
    number: np.ndarray
    queues: list[np.ndarray]
    left: np.ndarray

    def batch(self, index: int) -> tuple[int, np.ndarray]:
        """Bucket and rows of a batch."""
        kind = int(self.kind[index])
        return kind, self.queues[kind][self.number[index]]


def pack(bucket: np.ndarray, sizes: Sequence[int]) -> Packed:
    """Walks rows in order: each joins the queue of its bucket, and a full queue is a batch.

    After the last row, what stands in the queue of a bucket moves on to the next longer one, where
    full queues are batches again. Otherwise a rare length would wait for as many epochs as it takes
    to fill a batch of its own. What is left of the longest queue is fewer rows than one of its
    batches has.

    Args:
      bucket: int [n]; the bucket of each row, 0 the shortest.
      sizes: Rows of a batch, per bucket.

    Returns:
      The batches in the order in which their queues are full.
    """
    queues, full_at = [], []
    left = np.empty(0, np.int64)
    for kind, size in enumerate(sizes):
        queue = np.flatnonzero(bucket == kind)
        full = len(queue) // size * size
        rest = np.sort(np.concatenate([left, queue[full:]]))  # the longest waiting go first
        late = len(rest) // size * size
        left = rest[late:]
        queues.append(np.concatenate([queue[:full], rest[:late]]).reshape(-1, size))
        full_at += [queue[size - 1 : full : size], np.full(late // size, len(bucket) + kind)]
    lengths = [len(queue) for queue in queues]
    order = np.argsort(np.concatenate(full_at), kind="stable")
    return Packed(
        kind=np.repeat(np.arange(len(sizes)), lengths)[order],
        number=np.concatenate([np.arange(length) for length in lengths])[order],
        queues=queues,
        left=left,
    )
