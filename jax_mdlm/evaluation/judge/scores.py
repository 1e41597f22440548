"""Win rates and mean grades with intervals over questions.

Enters: judgments as a benchmark read them. Leaves: a number and its bootstrap interval per pair of
models, or per model. All judgments of a question are one value: both orders, turns and iterations
stay together when questions are resampled.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jax_mdlm.config import ConfigError
from jax_mdlm.evaluation.intervals import Interval, bootstrap_mean, share_of
from jax_mdlm.evaluation.judge.records import Comparison, Grade


@dataclasses.dataclass(frozen=True)
class WinRate:
    """How often a model is better than another.

    Attributes:
      model: The one that is measured.
      baseline: The other.
      rate: Share of wins, ties count half; with a 95 % interval.
      questions: How many it is the mean of.
      left_out: Parts of questions without a verdict in both orders.
    """

    model: str
    baseline: str
    rate: Interval
    questions: int
    left_out: int


@dataclasses.dataclass(frozen=True)
class MeanGrade:
    """How good a model's answers are, judged alone.

    Attributes:
      model: Whose.
      grade: Mean over questions; with a 95 % interval.
      questions: How many.
      left_out: Answers without a grade.
    """

    model: str
    grade: Interval
    questions: int
    left_out: int


def win_rates(comparisons: Sequence[Comparison], baseline: str | None = None) -> list[WinRate]:
    """A win rate per pair of models.

    A part of a question counts if all its verdicts could be read: one order alone would favour the
    place of an answer. A pair's direction is that of its first row.

    Args:
      comparisons: Of any pairs.
      baseline: Keep only pairs with this model, as the one that others are measured against.

    Raises:
      ConfigError: nobody was compared with `baseline`, or a pair has no verdict at all.
    """
    pairs: dict[tuple[str, str], dict[str, dict[str, list[float | None]]]] = {}
    for one in comparisons:
        pair, other_way = (one.model, one.baseline), (one.baseline, one.model)
        if baseline is not None and baseline not in pair:
            continue
        turned = baseline == one.model or other_way in pairs
        outcome = 1 - one.outcome if turned and one.outcome is not None else one.outcome
        questions = pairs.setdefault(other_way if turned else pair, {})
        questions.setdefault(one.question, {}).setdefault(one.unit, []).append(outcome)
    if baseline is not None and not pairs:
        known = sorted({name for one in comparisons for name in (one.model, one.baseline)})
        raise ConfigError(
            f"--baseline {baseline} must be one of the models compared: {', '.join(known)}"
        )
    return [_win_rate(pair, questions) for pair, questions in pairs.items()]


def mean_grades(grades: Sequence[Grade]) -> list[MeanGrade]:
    """A mean grade per model; several grades of a question are averaged first.

    Raises:
      ConfigError: a model has no grade at all.
    """
    models: dict[str, list[Grade]] = {}
    for grade in grades:
        models.setdefault(grade.model, []).append(grade)
    results = []
    for model, own in models.items():
        questions: dict[str, list[float]] = {}
        for grade in own:
            if grade.score is not None:
                questions.setdefault(grade.question, []).append(grade.score)
        if not questions:
            raise ConfigError(
                f"the judge must have graded an answer of {model}, none of {len(own)} has a grade; "
                "look at the judge's replies"
            )
        values = np.array([np.mean(scores) for scores in questions.values()])
        left_out = sum(grade.score is None for grade in own)
        results.append(MeanGrade(model, bootstrap_mean(values), len(values), left_out))
    return results


def _win_rate(
    pair: tuple[str, str], questions: dict[str, dict[str, list[float | None]]]
) -> WinRate:
    values, left_out = [], 0
    for units in questions.values():
        read = [outcomes for outcomes in units.values() if None not in outcomes]
        left_out += len(units) - len(read)
        if read:
            values.append(np.mean([np.mean(np.array(outcomes, float)) for outcomes in read]))
    if not values:
        raise ConfigError(
            f"the judge must have given a verdict on {pair[0]} and {pair[1]}, none could be read "
            f"of {left_out}; look at the judge's replies"
        )
    return WinRate(*pair, share_of(np.array(values)), len(values), left_out)
