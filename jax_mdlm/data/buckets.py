"""Length buckets: canvases of several lengths, and which of them a row needs.

Enters: settings and token rows. Leaves: the canvases, and the slots that a row needs; `order` makes
batches of them.

A bucket changes nothing about a row but the slots behind it, which nobody attends to: a row goes
where its prompt, its response, the most slack that it may draw and all of its end padding find
room. So slack is cut, and end padding ends at the canvas, only where the full canvas does so too,
and what the model can read off the number of valid slots is what it could on the full canvas. A
bucket that cut the padding, or was filled up with it, would tell the answer's length to within a
bucket.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jax_mdlm.config import DataConfig, ObjectiveConfig
from jax_mdlm.data.assemble import place
from jax_mdlm.data.choices import Choice
from jax_mdlm.data.table import TERMINATOR, Table


@dataclasses.dataclass(frozen=True)
class Canvas:
    """The shape of a batch; a step is compiled for each.

    Attributes:
      rows: B, over all processes.
      length: L.
      labels: U.
    """

    rows: int
    length: int
    labels: int


def canvases(config: DataConfig, objective: ObjectiveConfig, batch_size: int) -> tuple[Canvas, ...]:
    """The shapes of all training batches, the shortest canvas first.

    Every batch has as many slots as `batch_size` rows on the full canvas. U of a shorter canvas is
    the most labels that it holds together with their slack.

    Args:
      config: `length`, `max_labels`, `buckets`; without buckets there is one canvas.
      objective: `slack_max`.
      batch_size: Rows on the full canvas.
    """
    shapes = [
        Canvas(
            rows=batch_size * config.length // length,
            length=length,
            labels=min(config.max_labels, math.floor(length / (1 + objective.slack_max))),
        )
        for length in config.buckets[:-1]
    ]
    return (*shapes, Canvas(batch_size, config.length, config.max_labels))


def find(slots: np.ndarray, shapes: Sequence[Canvas]) -> np.ndarray:
    """The first canvas that has so many slots, else the last, int64 [n].

    Args:
      slots: int [n]; from `slots_needed`.
      shapes: From `canvases`.
    """
    lengths = [canvas.length for canvas in shapes]
    return np.minimum(np.searchsorted(lengths, slots), len(lengths) - 1)


def slots_needed(
    table: Table, choice: Choice, objective: ObjectiveConfig, separators: np.ndarray
) -> np.ndarray:
    """Slots that a row fills at most, whatever slack it draws.

    `stochastic_round(s * U)` with `s < slack_max` is at most `floor(slack_max * U) + 1`; separators
    of equal neighbours may be more (`diffusion.slack`).

    Args:
      table: Token rows.
      choice: What their epochs drew, [n].
      objective: How much slack.
      separators: int [pairs]; from `count_separators`.

    Returns:
      int64 [n]; may be more than the full canvas, which then cuts slack and padding.
    """
    places = place(table, choice.pairs, choice.lengths)
    slack = np.zeros_like(places.labels)
    if objective.slack_max > 0:
        # A response that is cut to a random length has no more separators than the whole.
        forced = np.minimum(separators[choice.pairs], places.labels - 1)
        slack = np.floor(objective.slack_max * places.labels).astype(np.int64) + 1
        slack = np.maximum(slack, forced)
    padding = np.where(table.terminated[choice.pairs], choice.end_padding, 0)
    return places.begin + places.labels + slack + padding


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
