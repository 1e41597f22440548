"""What became of the rows of a split, and what they would have needed: for the log and warnings."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from jax_mdlm.config import DataConfig

MANY = 0.05  # a larger share of rows that do not fit is no accident, and is warned about


class Extent(NamedTuple):
    """How much of something the rows take.

    Attributes:
      nearly_all: What 95% of the rows get along with.
      all: What the largest takes.
    """

    nearly_all: int
    all: int

    @classmethod
    def of(cls, pairs: np.ndarray) -> "Extent":
        """Of int [largest + 1], how many pairs take just so much."""
        reached = np.cumsum(pairs)
        nearly = np.searchsorted(reached, math.ceil((1 - MANY) * reached[-1] - 1e-6))
        return cls(int(nearly), len(pairs) - 1)


@dataclasses.dataclass(frozen=True)
class RowCounts:
    """What became of the rows.

    Attributes:
      rows: Rows of the table.
      responses: Prompt-response pairs of the table.
      skipped: Malformed rows that were left out.
      dropped: Pairs that did not fit and were left out.
      truncated: Pairs whose response was cut.
      by_labels: Of the dropped and the truncated, those that `data.max_labels` cuts; the others
        were too long for the canvas.
      shortened: Pairs whose prompt lost its oldest part to the canvas.
      labels: Response tokens of a pair, terminator included, before anything is cut.
      slots: Slots of a pair on the canvas, before anything is cut.
      prompt: Slots of a prompt before the template's opening, before it is filled up.
    """

    rows: int
    responses: int
    skipped: int
    dropped: int = 0
    truncated: int = 0
    by_labels: int = 0
    shortened: int = 0
    labels: Extent = Extent(0, 0)
    slots: Extent = Extent(0, 0)
    prompt: Extent = Extent(0, 0)

    def line(self, config: DataConfig) -> str:
        """One line for the log.

        Args:
          config: The limits that the rows were held against.
        """
        parts = [f"{self.rows:,} rows", f"{self.responses:,} responses", self._misfits(config)]
        if self.shortened:
            share = self.shortened / self.responses
            parts.append(f"the oldest part of {self.shortened:,} prompts cut ({share:.1%})")
        return ", ".join([*parts, f"{self.skipped:,} skipped"])

    def warnings(self, config: DataConfig, answer_slots: int) -> list[str]:
        """What is probably not meant: many rows cut or left out, limits made for other rows.

        Args:
          config: The limits that the rows were held against.
          answer_slots: New slots that sampling gives an answer at most.
        """
        found = []
        if self.dropped + self.truncated > MANY * (self.responses + self.dropped):
            limits = []
            if self.labels.nearly_all > config.max_labels:
                limits.append(f"data.max_labels={self.labels.nearly_all}")
            if self.slots.nearly_all > config.length:
                limits.append(f"data.length={self.slots.nearly_all}")
            remedy = f"; with {' and '.join(limits)} 95% would fit" if limits else ""
            found.append(
                f"{self._misfits(config)}; the longest response takes {self.labels.all:,} labels, "
                f"the longest row {self.slots.all:,} slots{remedy}"
            )
        if 0 < config.prompt_slots < self.prompt.nearly_all:
            found.append(
                f"data.prompt_slots={config.prompt_slots} fills prompts up so that all responses "
                f"begin at one slot, but more than 5% of the prompts are longer (the longest takes "
                f"{self.prompt.all:,} slots); set data.prompt_slots=0, or a number that holds them"
            )
        if answer_slots < self.labels.nearly_all:
            found.append(
                f"sample.length={answer_slots} is too short for more than 5% of the responses, the "
                f"longest of which takes {self.labels.all:,} slots and more with slack; set "
                "sample.length, or sample.limit, when sampling"
            )
        return found

    def _misfits(self, config: DataConfig) -> str:
        total = self.responses + self.dropped
        parts = [
            f"{count:,} {name} ({count / total:.1%})"
            for name, count in (("truncated", self.truncated), ("dropped", self.dropped))
            if count
        ]
        if not parts:
            return "0 truncated"
        by_length = self.truncated + self.dropped - self.by_labels
        return (
            f"{', '.join(parts)}: {self.by_labels:,} by data.max_labels={config.max_labels}, "
            f"{by_length:,} by data.length={config.length}"
        )
