"""Which rows each step of training owns, and on how many slots: a pure function of the step.

An epoch is an order of all rows. Without length buckets, step s owns the rows s * B to (s + 1) * B
of the endless order that the epochs make. With them, the order is walked row by row: a row joins
the queue of its bucket, and a full queue is a batch. Neither depends on processes or devices, and
neither keeps an array as long as an epoch: the order is computed place by place.

A bucket changes nothing about a row but the slots after it, which nobody attends to: a row goes
where its prompt, its response, the most slack that it may draw and all of its end padding find
room. So slack is cut, and end padding ends at the canvas, only where the full canvas does so too,
and what the model can read off the number of valid slots is what it could on the full canvas. A
bucket that cut the padding, or was filled up with it, would tell the answer's length to within a
bucket.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jax_mdlm.config import DataConfig, ObjectiveConfig
from jax_mdlm.data.draws import Drawn, draw_epochs, shuffled
from jax_mdlm.data.table import Table

_PART = 2**16  # rows that are walked in one go
_COUNTED = 2**20  # rows of the first epoch whose batches give the mean


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

    def at(self, step: int) -> Owned:
        """The rows of a step."""
        first = step * self._batch_size
        epochs, places = np.divmod(np.arange(first, first + self._batch_size), self._num_rows)
        rows = shuffled(self._seed, epochs, self._num_rows, places)
        return Owned(self.buckets[0], epochs, rows)

    def num_steps(self, epochs: float) -> int:
        """Steps whose rows add up to at least `epochs` times all rows."""
        return count_steps(epochs, self._num_rows, self._batch_size)


class BucketOrder(Order):
    """Steps on several buckets, as `Queues` makes them.

    The rows that an epoch leaves over are the first of the next. So what a step owns follows from
    all rows before it. They are walked a part at a time, and the batches of the latest part are
    kept: a run that resumes walks again, in array operations (a second for a million rows).
    """

    def __init__(
        self, table: Table, config: DataConfig, objective: ObjectiveConfig, batch_size: int
    ) -> None:
        self.buckets = length_buckets(config, objective, batch_size)
        self._table, self._config, self._objective = table, config, objective
        self._sizes = [bucket.rows for bucket in self.buckets]
        self._start()
        # Rows of each batch, until an epoch that makes some has ended; of many rows the first do.
        seen: list[int] = []
        while True:
            seen += self._rows_of_batches()
            if seen and (self._walked == 0 or self._walked >= _COUNTED):
                break
            self._advance()
        self.mean_rows = float(np.mean(seen))

    def at(self, step: int) -> Owned:
        """The rows of a step."""
        if step < self._first_step:
            self._start()
        while step >= self._first_step + len(self._batches):
            self._advance()
        return self._batches[step - self._first_step]

    def num_steps(self, epochs: float) -> int:
        """See `Order`."""
        missing = epochs * len(self._table)
        self._start()
        while True:
            seen = np.cumsum(self._rows_of_batches())
            if len(seen) and seen[-1] >= missing:
                return self._first_step + int(np.searchsorted(seen, missing)) + 1
            missing -= seen[-1] if len(seen) else 0
            self._advance()

    def _rows_of_batches(self) -> list[int]:
        return [owned.bucket.rows for owned in self._batches]

    def _start(self) -> None:
        """Goes back to the first rows."""
        self._queues = Queues(self._sizes)
        self._carried = (np.empty(0, np.int64), np.empty(0, np.int64))  # epochs and rows
        self._epoch = self._walked = self._first_step = 0
        self._batches: list[Owned] = []
        self._advance()

    def _advance(self) -> None:
        """Walks the next part of the epoch, and keeps the batches that it makes."""
        self._first_step += len(self._batches)
        end = len(self._carried[0]) + len(self._table)
        walk = np.arange(self._walked, min(self._walked + _PART, end))
        drawn = draw_epochs(self._table, self._config, *self._at(walk))
        slots = slots_needed(self._table, drawn, self._objective)
        # The first bucket that has so many slots, else the last.
        fits = np.searchsorted([bucket.length for bucket in self.buckets], slots)
        full = self._queues.put(np.minimum(fits, len(self.buckets) - 1), self._walked)
        self._walked += len(walk)
        left = None
        if self._walked == end:
            late, left = self._queues.end()
            full += late
        places = np.concatenate([np.empty(0, np.int64), *(rows for _, rows in full)])
        ends = np.cumsum([len(rows) for _, rows in full])[:-1]
        owned = zip(full, *(np.split(found, ends) for found in self._at(places)), strict=False)
        self._batches = [Owned(self.buckets[kind], *rows) for (kind, _), *rows in owned]
        if left is not None:
            self._carried, self._walked = self._at(left), 0
            self._epoch += 1

    def _at(self, walk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Epochs and rows at places of the walk: what was carried, then the epoch's order."""
        late = len(self._carried[0])
        epochs, rows = (np.empty(len(walk), np.int64) for _ in range(2))
        own = walk >= late
        for found, carried in zip((epochs, rows), self._carried, strict=True):
            found[~own] = carried[walk[~own]]
        epochs[own] = self._epoch
        count = len(self._table)
        rows[own] = shuffled(self._config.seed, epochs[own], count, walk[own] - late)
        return epochs, rows


def make_order(
    table: Table, config: DataConfig, objective: ObjectiveConfig, batch_size: int
) -> Order:
    """The order of training, with or without buckets; `batch_size` rows on the full canvas."""
    kind = BucketOrder if config.buckets else Order
    return kind(table, config, objective, batch_size)


class Queues:
    """Rows in the order of a walk: each joins the queue of its bucket, a full queue is a batch.

    After the last row, what stands in the queue of a bucket moves on to the next longer one, where
    full queues are batches again. Otherwise a rare length would wait for as many epochs as it takes
    to fill a batch of its own. What is left of the longest queue is fewer rows than one of its
    batches has.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        """Begins an epoch; `sizes`: rows of a batch, per bucket, the shortest first."""
        self._sizes = sizes
        self._clear()

    def put(self, bucket: np.ndarray, begin: int) -> list[tuple[int, np.ndarray]]:
        """Rows join.

        Args:
          bucket: int [n]; the bucket of each row, 0 the shortest.
          begin: Place of the first in the walk.

        Returns:
          Bucket and places of each batch, in the order in which the queues are full.
        """
        full = []
        for kind, size in enumerate(self._sizes):
            queue = np.concatenate([self._waiting[kind], begin + np.flatnonzero(bucket == kind)])
            batches, self._waiting[kind] = _cut_queue(queue, size)
            full += [(kind, rows) for rows in batches]
        return sorted(full, key=lambda batch: batch[1][-1])

    def end(self) -> tuple[list[tuple[int, np.ndarray]], np.ndarray]:
        """Ends the walk, and is empty again.

        Returns:
          The batches as `put`, and the places of the rows that fill none, ascending.
        """
        full = []
        left = np.empty(0, np.int64)
        for kind, size in enumerate(self._sizes):
            queue = np.sort(
                np.concatenate([left, self._waiting[kind]])
            )  # the longest waiting first
            batches, left = _cut_queue(queue, size)
            full += [(kind, rows) for rows in batches]
        self._clear()
        return full, left

    def _clear(self) -> None:
        self._waiting = [np.empty(0, np.int64) for _ in self._sizes]


def _cut_queue(queue: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Full batches, int64 [n, size], and the rest."""
    full = len(queue) // size * size
    return queue[:full].reshape(-1, size), queue[full:]


def slots_needed(table: Table, drawn: Drawn, objective: ObjectiveConfig) -> np.ndarray:
    """Slots that a row fills at most, whatever slack it draws.

    `stochastic_round(s * U)` with `s < slack_max` is at most `floor(slack_max * U) + 1`; separators
    of equal neighbours may be more (`diffusion.slack`).

    Args:
      table: Token rows.
      drawn: What their epochs drew, [n].
      objective: How much slack a row may get.

    Returns:
      int64 [n]; may be more than the full canvas, which then cuts slack and padding.
    """
    spans = table.spans(drawn.pairs, drawn.lengths)
    slack = np.zeros_like(spans.labels)
    if objective.slack_max > 0:
        slack = np.floor(objective.slack_max * spans.labels).astype(np.int64) + 1
        if objective.separate_repeats and objective.collapse == "merge":  # see `corrupt`
            # A response that is cut to a random length has no more of them than the whole.
            forced = np.minimum(table.repeats[drawn.pairs], spans.labels - 1)
            slack = np.maximum(slack, forced)
    padding = np.where(table.terminated[drawn.pairs], drawn.end_padding, 0)
    return spans.begin + spans.labels + slack + padding
