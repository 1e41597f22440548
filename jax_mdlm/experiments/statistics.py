"""Curves of errors: what is said of them, with intervals, and tests of two of them.

Enters: a score per row, per strength, per training seed. Leaves: numbers with intervals. Rows are
resampled with all their decodings. Training seeds are few, and resampling two or three of them
would promise far too much (of two, three, five seeds a 95 % interval would cover 52, 72, 82 %):
their part is Student's t, pooled over the models of a comparison (`Spread`).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jax_mdlm.evaluation.intervals import (
    CHUNK,
    Interval,
    few,
    interval_of,
    row_weights,
    share_of,
)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Errors of one model (all its training seeds) under interventions of several strengths.

    Attributes:
      strengths: float64 [S], ascending.
      errors: float64 [T, S, N]; errors of each row, summed over decodings. T: training seeds.
      units: float64 [T, S, N]; what they are errors of (phonemes of the reference, or decodings):
        a rate is `sum(errors) / sum(units)`.
    """

    strengths: np.ndarray
    errors: np.ndarray
    units: np.ndarray

    def __post_init__(self) -> None:
        """Raises ValueError for shapes that do not belong together."""
        expected = (len(self.strengths), self.errors.shape[-1])
        if self.errors.shape != self.units.shape or self.errors.shape[1:] != expected:
            raise ValueError(
                f"errors and units must be [T, {len(self.strengths)}, N], got "
                f"{self.errors.shape} and {self.units.shape}"
            )

    @property
    def rates(self) -> np.ndarray:
        """float64 [T, S]; error rate of each training seed; nan where there is no unit."""
        return _quotient(self.errors.sum(-1), self.units.sum(-1))


@dataclasses.dataclass(frozen=True)
class Spread:
    """How far trainings of one model lie apart that differ in the seed alone.

    Relative to the mean rate of their model, and taken to be the same for all models: of two or
    three seeds each, no model's own spread would be known.

    Attributes:
      deviations: float64 [R, S]; relative deviations of all trainings from their model's mean.
      freedom: Degrees of freedom, trainings less models; 0 = nothing is known.
    """

    deviations: np.ndarray
    freedom: int

    @classmethod
    def of(cls, curves: Sequence[Curve]) -> "Spread":
        """The spread that the models of one comparison share."""
        parts = []
        for curve in curves:
            mean = curve.rates.mean(0)
            parts.append((curve.rates - mean) / np.where(mean == 0, 1.0, mean))
        return cls(np.concatenate(parts), sum(len(part) - 1 for part in parts))

    def draw(self, rng: np.random.Generator, samples: int, trainings: int) -> np.ndarray:
        """Factors float64 [samples, S] of a mean over `trainings` seeds: 1 and multivariate t.

        With deviations D of f degrees of freedom, `1 + z D / sqrt(f T) sqrt(f / chi2_f)` has the
        covariance of the mean of T seeds and t's tails.
        """
        if not self.freedom:
            return np.ones((samples, self.deviations.shape[1]))
        normal = rng.standard_normal((samples, len(self.deviations))) @ self.deviations
        tails = np.sqrt(rng.chisquare(self.freedom, (samples, 1)))
        return 1 + normal / tails / np.sqrt(trainings)


# What is said of a curve: functions of strengths [S] and rates [..., S].


def clean(strengths: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """The rate without intervention (at the smallest strength)."""
    del strengths
    return rates[..., 0]


def slope(strengths: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Least-squares slope: errors per unit of strength."""
    x = strengths - strengths.mean()
    return (rates - rates.mean(-1, keepdims=True)) @ x / (x @ x)


def pearson(strengths: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Correlation of strength and *score* (1 - rate), as the paper reports it; nan if constant."""
    x = strengths - strengths.mean()
    y = rates.mean(-1, keepdims=True) - rates
    constant = np.ptp(rates, axis=-1) == 0  # its rounding would correlate with something
    spread = np.where(constant, np.nan, (y * y).sum(-1))
    return y @ x / np.sqrt((x @ x) * spread)


def area(strengths: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Area under the curve over its range of strengths: the mean rate, by trapezoids."""
    steps = np.diff(strengths)
    return ((rates[..., 1:] + rates[..., :-1]) / 2) @ steps / steps.sum()


STATISTICS = {"clean": clean, "slope": slope, "pearson": pearson, "area": area}


def bootstrap_curve(
    curve: Curve,
    *,
    spread: Spread | None = None,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval | list[Interval]]:
    """A curve and what is said of it, with intervals.

    Args:
      curve: Errors of a model.
      spread: Of training seeds; default: that of this model's own.
      samples: Resamplings of rows, each with a draw of the training seeds' part.
      seed: Of the resampling. Two curves of the same rows and the same seed are resampled alike.
      level: Coverage.

    Returns:
      `rates`: an interval per strength; and one per entry of `STATISTICS`. Where the spread has no
      degree of freedom the intervals say nothing of how another training would have ended.
    """
    spread = spread or Spread.of([curve])
    rows = curve.errors.shape[-1]
    draws = _resampled(curve, samples, seed, spread)
    value = curve.rates.mean(0)
    rates = []
    for s in range(len(value)):
        if len(curve.errors) == 1 and not spread.freedom and (curve.units[0, s] == 1).all():
            rates.append(share_of(curve.errors[0, s], draws=draws[:, s], level=level))
        else:
            rates.append(interval_of(float(value[s]), draws[:, s], level, rows))
    result: dict[str, Interval | list[Interval]] = {"rates": rates}
    for name, statistic in STATISTICS.items():
        whole, resampled = (statistic(curve.strengths, rates) for rates in (value, draws))
        result[name] = interval_of(float(whole), resampled, level, rows)
    return result | {"clean": rates[0]}


def bootstrap_differences(
    first: Curve,
    second: Curve,
    *,
    spread: Spread | None = None,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval | list[Interval]]:
    """`second - first`, of the same rows: both are resampled alike, training seeds apart.

    Args:
      first: What is compared with.
      second: The other.
      spread: Of training seeds; default: that of these two.
      samples: Resamplings of rows.
      seed: Of the resampling.
      level: Coverage.

    Returns:
      As `bootstrap_curve`; and for each statistic but `pearson` under `<name>_ratio` the quotient
      `second / first`, without an interval where the sign of the divisor is not certain.

    Raises:
      ValueError: other strengths or another number of rows.
    """
    _check_pair(first, second)
    strengths = first.strengths
    values = [first.rates.mean(0), second.rates.mean(0)]
    spread = spread or Spread.of([first, second])
    draws = [_resampled(c, samples, seed, spread, k) for k, c in enumerate((first, second))]
    change, changes = values[1] - values[0], draws[1] - draws[0]
    rows = first.errors.shape[-1]
    result: dict[str, Interval | list[Interval]] = {
        "rates": [
            interval_of(float(change[s]), changes[:, s], level, rows) for s in range(len(change))
        ]
    }
    for name, statistic in STATISTICS.items():
        a, b = (statistic(strengths, value) for value in values)
        resampled_a, resampled_b = (statistic(strengths, draw) for draw in draws)
        result[name] = interval_of(float(b - a), resampled_b - resampled_a, level, rows)
        if name != "pearson":
            ratios = resampled_b / np.where(resampled_a * a > 0, resampled_a, np.nan)
            ratio = float(b / a) if a else float("nan")
            result[f"{name}_ratio"] = interval_of(ratio, ratios, level, rows)
    return result


def permutation_test(
    first: Curve, second: Curve, *, samples: int = 10_000, seed: int = 0
) -> np.ndarray:
    """Paired test per strength: is a row's error as likely to be larger in one as in the other?

    It asks about these trained models on other rows, not about other trainings: two seeds of one
    model usually differ by this test. A row's errors are its errors per unit, averaged over
    training seeds; the sign of each row's difference is flipped at random.

    Returns:
      float64 [S]; two-sided p values, at least 1 / (samples + 1).

    Raises:
      ValueError: other strengths or another number of rows.
    """
    _check_pair(first, second)
    rows = [(c.errors.sum(0) / np.maximum(c.units.sum(0), 1e-30)) for c in (first, second)]
    change = rows[1] - rows[0]  # [S, N]
    seen = np.abs(change.sum(-1))
    rng, beyond, left = np.random.default_rng(seed), np.zeros(len(change)), samples
    while left:
        count = min(left, CHUNK)
        signs = rng.choice(np.array([-1.0, 1.0], np.float32), (count, change.shape[1]))
        beyond += (np.abs(signs @ change.T) >= seen - 1e-9).sum(0)
        left -= count
    return (beyond + 1) / (samples + 1)


def _check_pair(first: Curve, second: Curve) -> None:
    same = np.array_equal(first.strengths, second.strengths)
    if not same or first.errors.shape[-1] != second.errors.shape[-1]:
        raise ValueError("two curves are compared at the same strengths and on the same rows")


def _resampled(
    curve: Curve, samples: int, seed: int, spread: Spread, number: int = 0
) -> np.ndarray:
    """Rates float64 [samples, S] of resampled rows, with the training seeds' part drawn.

    Of too few rows all are nan, and nothing that follows has an interval.
    """
    trained, num_strengths, num_rows = curve.errors.shape
    if few(num_rows):
        return np.full((samples, num_strengths), np.nan)
    rates = np.empty((samples, num_strengths))
    done = 0
    for weights in row_weights(num_rows, samples, seed):
        errors = np.einsum("bn,tsn->bts", weights, curve.errors, optimize=True)
        units = np.einsum("bn,tsn->bts", weights, curve.units, optimize=True)
        rates[done : done + len(weights)] = _quotient(errors, units).mean(1)
        done += len(weights)
    factors = spread.draw(np.random.default_rng([seed, 1, number]), samples, trained)
    return np.maximum(rates * factors, 0.0)


def _quotient(errors: np.ndarray, units: np.ndarray) -> np.ndarray:
    return np.divide(errors, units, out=np.full(errors.shape, np.nan), where=units > 0)
