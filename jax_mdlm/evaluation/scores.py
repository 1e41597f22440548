"""Scores of decoded text against references, row by row, without a judge.

A score is errors and what they are errors of, per row, so that rows can be resampled and rates
divided once: `sum(errors) / sum(units)`. Every metric is an error rate; 0 is perfect.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

from jax_mdlm.config import ConfigError
from jax_mdlm.extras import how_to_install

Measure = Callable[[str, Sequence[str]], tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Metric:
    """An error rate.

    Attributes:
      name: As on the command line.
      label: For tables and axes of figures.
      measure: (hypothesis, accepted references) -> errors and units of a row.
    """

    name: str
    label: str
    measure: Measure

    def score(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Errors and units of each row, float64 [N] both.

        Raises:
          ValueError: a row without a reference.
        """
        rows = [
            self.measure(text, accepted)
            for text, accepted in zip(hypotheses, references, strict=True)
        ]
        errors, units = np.array(rows, np.float64).reshape(-1, 2).T
        return errors, units


@dataclasses.dataclass(frozen=True)
class Score:
    """A number that a run reports of decoded text.

    Attributes:
      name: In the log.
      metric: One of `METRICS`.
      right: Whether 1 - its rate is reported, which is 1 where all is right.
    """

    name: str
    metric: str
    right: bool = False

    def value(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """Errors per unit over all rows, or what is right of them."""
        errors, units = METRICS[self.metric].score(texts, references)
        rate = float(errors.sum() / max(units.sum(), 1.0))
        return 1 - rate if self.right else rate


def edit_table(first: Sequence[str], second: Sequence[str]) -> list[list[int]]:
    """Edit distances of all beginnings of two sequences (Levenshtein).

    `d[i, j] = min(d[i-1, j] + 1, d[i, j-1] + 1, d[i-1, j-1] + (first[i] != second[j]))`, row by
    row.
    """
    rows = [list(range(len(second) + 1))]
    for i, left in enumerate(first, start=1):
        above, row = rows[-1], [i]
        for j, right in enumerate(second, start=1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (left != right)))
        rows.append(row)
    return rows


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions between two sequences."""
    return edit_table(first, second)[-1][-1]


def nearest(hypothesis: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[int, int]:
    """Edits to the nearest reference, and its length.

    Of equally near ones the shortest counts, which gives the higher rate.

    Raises:
      ValueError: no reference, or an empty one.
    """
    if not references or not all(references):
        raise ValueError(
            f"a row must have at least one reference and no empty one, got {references!r}"
        )
    return min((edit_distance(hypothesis, one), len(one)) for one in references)


def final_number(text: str) -> str:
    """The answer of a GSM8K text: what follows `####`, else its last number; no commas, no "$".

    As the evaluation of openai/grade-school-math reads it; "" where there is no number.
    """
    _, marked, tail = text.rpartition("####")
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", (tail if marked else text).replace("$", ""))
    if not numbers:
        return ""
    number = numbers[0] if marked else numbers[-1]
    number = number.replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


def distinct(texts: Sequence[str], size: int = 2) -> float:
    """Distinct n-grams of words over all n-grams of all texts (distinct-n, arXiv 1510.03055)."""
    grams = [gram for text in texts for gram in _grams(text.split(), size)]
    return len(set(grams)) / max(len(grams), 1)


def repetition(text: str, size: int = 4) -> float:
    """Share of a text's word n-grams that occurred in it before (arXiv 1908.04319); 0 to 1."""
    grams = _grams(text.split(), size)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _symbols(text: str, references: Sequence[str]) -> tuple[float, float]:
    return nearest(text.split(), [one.split() for one in references])


def _characters(text: str, references: Sequence[str]) -> tuple[float, float]:
    return nearest(text, references)


def _exact(text: str, references: Sequence[str]) -> tuple[float, float]:
    return float(text.split() not in [one.split() for one in references]), 1.0


def _number(text: str, references: Sequence[str]) -> tuple[float, float]:
    return float(final_number(text) not in {final_number(one) for one in references}), 1.0


def _chrf(text: str, references: Sequence[str]) -> tuple[float, float]:
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise ConfigError(
            f"metric chrf needs the package sacrebleu; {how_to_install('eval')}"
        ) from error
    return 1 - CHRF().sentence_score(text, list(references)).score / 100, 1.0


def _repeated(text: str, references: Sequence[str]) -> tuple[float, float]:
    grams = len(_grams(text.split(), 4))
    return repetition(text) * grams, float(grams)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("symbols", "word error rate", _symbols),
        Metric("characters", "character error rate", _characters),
        Metric("exact", "share of rows that are not an exact match", _exact),
        Metric("number", "share of rows with another final number", _number),
        Metric("chrf", "1 - chrF", _chrf),
        Metric("repetition", "share of repeated 4-grams", _repeated),
    )
}


def metric_named(name: str) -> Metric:
    """One of `METRICS`.

    Raises:
      ConfigError: there is none of that name, or a package that it needs is missing.
    """
    if name not in METRICS:
        raise ConfigError(f"metric must be one of {', '.join(METRICS)}, got {name!r}")
    if name == "chrf":
        _chrf("", [""])
    return METRICS[name]


def _grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
