"""Which rows each step of training owns, and on how many slots: a pure function of the step.

An epoch is a permutation of all rows. Without length buckets, step s owns the rows s * B to (s + 1)
* B of the endless order that the epochs make. With them, the order is walked row by row: a row
joins the queue of its bucket, and a full queue is a batch. Neither depends on processes or devices.
At an epoch's end what stands in a queue moves to the next longer canvas; a resumed run walks the
earlier epochs again in NumPy (0.4 s for a million rows).

A bucket changes nothing about a row but the slots after it, which nobody attends to: a row goes
where its prompt, its response, the most slack that it may draw and all of its end padding find
room. So slack is cut, and end padding ends at the canvas, only where the full canvas does so too,
and what the model can read off the number of valid slots is what it could on the full canvas. A
bucket that cut the padding, or was filled up with it, would tell the answer's length to within a
bucket.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jax_mdlm.config import DataConfig, ObjectiveConfig
from jax_mdlm.data.draws import Drawn, draw_epochs, permutation
from jax_mdlm.data.table import TERMINATOR, Table


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The shape of a batch; a step is compiled for each.

    Attributes:
      rows: B, over all processes.
      length: L.
      labels: U.
    """

    rows: int
    length: int
    labels: int


class Owned(NamedTuple):
    """The rows of one step.

    Attributes:
      bucket: The shape of their batch.
      epochs: int64 [B]; the epoch that each row belongs to.
      rows: int64 [B]; numbers of rows of the table.
    """

    bucket: Bucket
    epochs: np.ndarray
    rows: np.ndarray


def length_buckets(
    config: DataConfig, objective: ObjectiveConfig, batch_size: int
) -> tuple[Bucket, ...]:
    """The shapes of all training batches, the shortest first.

    Every batch has as many slots as `batch_size` rows on the full canvas. U of a shorter bucket is
    the most labels that it holds together with their slack.
    Without buckets there is one shape.
    """
    shapes = [
        Bucket(
            rows=batch_size * config.length // length,
            length=length,
            labels=min(config.max_labels, math.floor(length / (1 + objective.slack_max))),
        )
        for length in config.buckets[:-1]
    ]
    return (*shapes, Bucket(batch_size, config.length, config.max_labels))


def count_steps(epochs: float, num_rows: int, batch_size: int) -> int:
    """Steps whose rows add up to at least `epochs` times all rows, without buckets."""
    return math.ceil(epochs * num_rows / batch_size)


class Order:
    """Every step owns the next `batch_size` rows, on the full canvas.

    Attributes:
      buckets: Every kind of batch that there is.
      mean_rows: Rows of a step on average.
    """

    def __init__(
        self, table: Table, config: DataConfig, objective: ObjectiveConfig, batch_size: int
    ) -> None:
        self.buckets = length_buckets(config, objective, batch_size)
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
        return Owned(self.buckets[0], epochs, rows)

    def num_steps(self, epochs: float) -> int:
        """Steps whose rows add up to at least `epochs` times all rows."""
        return count_steps(epochs, self._num_rows, self._batch_size)

    def _permutation(self, epoch: int) -> np.ndarray:
        return permutation(self._seed, epoch, self._num_rows)


class BucketOrder(Order):
    """Steps on several buckets; see `pack` for what an epoch becomes.

    The rows that an epoch leaves over are the first of the next. So what a step owns follows from
    the epochs before it: a run that resumes walks them again, in array operations (well under a
    second for an epoch of a million rows), and the latest is kept.
    """

    def __init__(
        self, table: Table, config: DataConfig, objective: ObjectiveConfig, batch_size: int
    ) -> None:
        self.buckets = length_buckets(config, objective, batch_size)
        self._table, self._config, self._objective = table, config, objective
        self._separators = count_separators(table, objective)
        self._sizes = np.array([bucket.rows for bucket in self.buckets])
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
        return Owned(self.buckets[kind], self._epochs[members], self._rows[members])

    def num_steps(self, epochs: float) -> int:
        """See `Order`."""
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
        order = permutation(self._config.seed, self._epoch, len(self._table))
        self._epochs = np.concatenate([epochs, np.full_like(order, self._epoch)])
        self._rows = np.concatenate([rows, order])
        drawn = draw_epochs(self._table, self._config, self._epochs, self._rows)
        slots = slots_needed(self._table, drawn, self._objective, self._separators)
        # The first bucket that has so many slots, else the last.
        fits = np.searchsorted([bucket.length for bucket in self.buckets], slots)
        self._packed = pack(np.minimum(fits, len(self.buckets) - 1), self._sizes.tolist())


def make_order(
    table: Table, config: DataConfig, objective: ObjectiveConfig, batch_size: int
) -> Order:
    """The order of training, with or without buckets; `batch_size` rows on the full canvas."""
    kind = BucketOrder if config.buckets else Order
    return kind(table, config, objective, batch_size)


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


def slots_needed(
    table: Table, drawn: Drawn, objective: ObjectiveConfig, separators: np.ndarray
) -> np.ndarray:
    """Slots that a row fills at most, whatever slack it draws.

    `stochastic_round(s * U)` with `s < slack_max` is at most `floor(slack_max * U) + 1`; separators
    of equal neighbours may be more (`diffusion.slack`).
    Args:
      drawn: What their epochs drew, [n].
      separators: int [pairs]; from `count_separators`.

    Returns:
      int64 [n]; may be more than the full canvas, which then cuts slack and padding.
    """
    spans = table.spans(drawn.pairs, drawn.lengths)
    slack = np.zeros_like(spans.labels)
    if objective.slack_max > 0:
        # A response that is cut to a random length has no more separators than the whole.
        forced = np.minimum(separators[drawn.pairs], spans.labels - 1)
        slack = np.floor(objective.slack_max * spans.labels).astype(np.int64) + 1
        slack = np.maximum(slack, forced)
    padding = np.where(table.terminated[drawn.pairs], drawn.end_padding, 0)
    return spans.begin + spans.labels + slack + padding


def count_separators(table: Table, objective: ObjectiveConfig) -> np.ndarray:
    """Equal neighbours among the labels of each pair, where slack has to part them; int64 [pairs].

    All 0 where the objective puts no slack there (see `diffusion.corrupt`).
    """
    if not (objective.separate_repeats and objective.collapse == "merge"):
        return np.zeros(len(table.response), np.int64)
    first, stop = table.response[:, 0], table.response[:, 1]
    repeated = np.append(table.tokens[1:] == table.tokens[:-1], False)  # by the next token
    # Sums over [first, stop - 1); one of no element gives an element, which is not wanted.
    edges = np.stack([first, np.maximum(stop - 1, first)], axis=1).reshape(-1)
    inside = np.add.reduceat(repeated, edges, dtype=np.int64)[::2]
    inside = np.where(stop - first > 1, inside, 0)
    last = table.tokens[np.maximum(stop - 1, first)]
    return inside + (table.terminated & (stop > first) & (last == table.tokens[TERMINATOR]))
