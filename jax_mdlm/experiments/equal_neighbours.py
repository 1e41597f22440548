"""What becomes of equal neighbours: "100" that is decoded as "10".

Enters: references and decoded texts. Leaves: exact matches, and repeats that were lost or gained.
Under the collapse map `merge` two equal tokens side by side are read as one, so a model that does
not put slack between them loses a digit; arXiv 2601.22947 names it as what its first version loses
on GSM8K.

Texts are compared as runs of equal characters ("1100" has the runs 1 x 2 and 0 x 2). An answer has
*lost* a repeat if both texts have the same characters in the same order, lengths of runs aside, and
a run is shorter than in the reference; *gained*, if a run is longer. An answer with another mistake
is wrong, but neither lost nor gained. Runs are also counted one by one, in all answers: there the
runs are aligned first.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jax_mdlm.evaluation.intervals import Interval, share_of


class Run(NamedTuple):
    """Equal characters side by side."""

    character: str
    length: int


@dataclasses.dataclass(frozen=True)
class Counts:
    """One answer against its reference.

    Attributes:
      exact: The texts are equal, spaces at their ends aside.
      lost: A repeat was lost and there is no other kind of mistake.
      gained: A repeat was gained and there is no other kind of mistake.
      runs: Runs of the reference.
      repeats: Those of two characters or more.
      lost_runs: Repeats whose aligned run is shorter.
      gained_runs: Runs whose aligned run is longer.
    """

    exact: bool
    lost: bool
    gained: bool
    runs: int
    repeats: int
    lost_runs: int
    gained_runs: int


@dataclasses.dataclass(frozen=True)
class Report:
    """Shares over answers, 1 = 100%, with intervals over rows; None where no row counts.

    Attributes:
      exact: Answers that are right.
      exact_with: Of references with a repeat.
      exact_without: Of references without.
      lost: Answers that lost a repeat, of references with a repeat.
      gained: Answers that gained one, of all references.
      lost_runs: Repeats that were lost / repeats of all references; no interval.
      gained_runs: Runs that grew / runs of all references; no interval.
      rows: References.
      rows_with: Of these with a repeat.
    """

    exact: Interval
    exact_with: Interval | None
    exact_without: Interval | None
    lost: Interval | None
    gained: Interval
    lost_runs: float
    gained_runs: float
    rows: int
    rows_with: int


def runs(text: str) -> list[Run]:
    """The runs of a text, in order: "1100" -> [("1", 2), ("0", 2)]."""
    return [Run(character, len(list(group))) for character, group in itertools.groupby(text)]


def align(reference: Sequence[Run], hypothesis: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Pairs of runs of the same character on a cheapest path of edits (Levenshtein, over runs).

    An edit inserts, deletes or replaces a run; lengths cost nothing. Of equally cheap paths the one
    that pairs runs as far behind as possible is taken.
    """
    width = len(hypothesis) + 1
    cost = [list(range(width))]
    for i, run in enumerate(reference, start=1):
        row = [i]
        for j, other in enumerate(hypothesis, start=1):
            change = cost[i - 1][j - 1] + (run.character != other.character)
            row.append(min(change, cost[i - 1][j] + 1, row[j - 1] + 1))
        cost.append(row)
    pairs = []
    i, j = len(reference), len(hypothesis)
    while i and j:
        same = reference[i - 1].character == hypothesis[j - 1].character
        if cost[i][j] == cost[i - 1][j - 1] + (not same):
            i, j = i - 1, j - 1
            if same:
                pairs.append((reference[i], hypothesis[j]))
        elif cost[i][j] == cost[i - 1][j] + 1:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def compare(reference: str, hypothesis: str) -> Counts:
    """Counts of one answer; spaces at the ends of both texts do not count."""
    reference, hypothesis = reference.strip(), hypothesis.strip()
    expected, found = runs(reference), runs(hypothesis)
    pairs = align(expected, found)
    collapses = len(pairs) == len(expected) == len(found)
    shorter = sum(run.length > other.length for run, other in pairs)
    longer = sum(run.length < other.length for run, other in pairs)
    return Counts(
        exact=reference == hypothesis,
        lost=collapses and shorter > 0,
        gained=collapses and longer > 0,
        runs=len(expected),
        repeats=sum(run.length > 1 for run in expected),
        lost_runs=shorter,
        gained_runs=longer,
    )


def summarise(trained: Sequence[Sequence[Counts]]) -> Report:
    """Shares over all answers.

    Args:
      trained: Counts of the same rows, in the same order, for each training seed. The intervals
        resample rows (each the mean over seeds); they say nothing of other seeds.

    Raises:
      ValueError: no rows, or seeds with other references.
    """
    rows = list(zip(*trained, strict=True))  # one tuple of seeds per row
    if not rows:
        raise ValueError("repeats need at least one row, got none")
    if any(len({(count.runs, count.repeats) for count in row}) > 1 for row in rows):
        raise ValueError("all training seeds must be held against the same references, in order")

    def column(name: str) -> np.ndarray:
        return np.array([[getattr(count, name) for count in row] for row in rows], float).mean(1)

    exact, repeats = column("exact"), column("repeats")
    has = repeats > 0
    return Report(
        exact=share_of(exact),
        exact_with=_share(exact[has]),
        exact_without=_share(exact[~has]),
        lost=_share(column("lost")[has]),
        gained=share_of(column("gained")),
        lost_runs=float(column("lost_runs").sum() / max(repeats.sum(), 1)),
        gained_runs=float(column("gained_runs").sum() / max(column("runs").sum(), 1)),
        rows=len(rows),
        rows_with=int(has.sum()),
    )


def _share(values: np.ndarray) -> Interval | None:
    return share_of(values) if values.size else None
