"""Intervals and tests of scores, by resampling what could have been drawn otherwise.

Enters: a score per row, per strength, per training seed. Leaves: numbers with intervals. Rows are
resampled with all their decodings. Training seeds are few, and resampling two or three of them
would promise far too much: their part is Student's t (`Spread`).
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

# Rows that a bootstrap needs. Its 95 % interval covers the truth in 68 to 75 % of the cases with 3
# rows, 78 to 93 % with 5, 87 to 97 % with 10, 90 to 95 % with 20 (a share of 0.5, and the mean of
# exponential values; 2,000 cases each).
LEAST_ROWS = 10
_CHUNK = 500  # resamplings whose row weights are in memory at a time


@dataclasses.dataclass(frozen=True)
class Interval:
    """A number and its interval: of a bootstrap, or exact.

    Attributes:
      value: The statistic of the data.
      low: Lower end; nan where there is no interval, see `why_none`.
      high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def ends(self) -> tuple[float, float] | None:
        """Both ends; None where there is no interval."""
        return (self.low, self.high) if np.isfinite([self.low, self.high]).all() else None

    def __str__(self) -> str:
        return shown((self.value, *(self.ends or (None, None))), ".4g")


def shown(numbers: Sequence[float | None], digits: str, unit: str = "") -> str:
    """`98.1 [97.4, 98.7]`, or `98.1 [no interval]`.

    Args:
      numbers: Value, lower and upper end; ends that are None or nan are none.
      digits: Format of a number, e.g. ".1f".
      unit: Stands after it all.
    """
    value, low, high = (np.nan if number is None else number for number in numbers)
    ends = f"{low:{digits}}, {high:{digits}}" if np.isfinite(low + high) else "no interval"
    return f"{value:{digits}} [{ends}]{unit}"


def why_none(rows: int) -> str:
    """Why there is no interval.

    Args:
      rows: How many were resampled.
    """
    if rows < LEAST_ROWS:
        return f"no interval: {rows} row{'s' * (rows != 1)}, at least {LEAST_ROWS} are needed"
    return "no interval: resampling shows nothing where no row differs from the others"


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


def bootstrap_mean(
    values: np.ndarray, *, samples: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The mean of independent values.

    Args:
      values: float [N], N at least 1.
      samples: Resamplings.
      seed: Of the resampling.
      level: Share of the resampled means inside the interval.
    """
    values = np.asarray(values, np.float64)
    if not values.size:
        raise ValueError("a mean needs at least one value, got none")
    if len(values) < LEAST_ROWS:
        return Interval(float(values.mean()), np.nan, np.nan)
    draws = [weights @ values / len(values) for weights in _row_weights(len(values), samples, seed)]
    return _interval(float(values.mean()), np.concatenate(draws), level)


def share_of(values: np.ndarray, *, level: float = 0.95) -> Interval:
    """A share of rows, each of which counts 0 or 1 or in part (several verdicts or seeds).

    The bootstrap's interval. Where the rows are few, or all the same, it promises too much, and
    rows that count 0 or 1 get the exact interval (Clopper and Pearson 1934).

    Args:
      values: float [N], 0 to 1, N at least 1.
      level: Share of intervals that cover the truth, at least.
    """
    values = np.asarray(values, np.float64)
    whole = np.isin(values, (0, 1)).all()
    if values.size and whole and (len(values) < LEAST_ROWS or np.ptp(values) == 0):
        return clopper_pearson(int(values.sum()), len(values), level=level)
    return bootstrap_mean(values, level=level)


def clopper_pearson(count: int, rows: int, *, level: float = 0.95) -> Interval:
    """The exact interval of a binomial share: quantiles of two beta distributions.

    Args:
      count: Rows that count.
      rows: All of them, at least 1.
      level: Share of intervals that cover the truth, at least.
    """
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = betaincinv(count, rows - count + 1, tail) if count else 0.0
    high = betaincinv(count + 1, rows - count, 1 - tail) if count < rows else 1.0
    return Interval(count / rows, float(low), float(high))


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
    draws = _resampled(curve, samples, seed, spread or Spread.of([curve]))
    value = curve.rates.mean(0)
    result: dict[str, Interval | list[Interval]] = {
        "rates": [_interval(float(value[s]), draws[:, s], level) for s in range(len(value))]
    }
    for name, statistic in STATISTICS.items():
        whole, resampled = (statistic(curve.strengths, rates) for rates in (value, draws))
        result[name] = _interval(float(whole), resampled, level)
    return result


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
      spread: As in `bootstrap_curve`; default: that of these two.
      samples: As there.
      seed: As there.
      level: As there.

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
    result: dict[str, Interval | list[Interval]] = {
        "rates": [_interval(float(change[s]), changes[:, s], level) for s in range(len(change))]
    }
    for name, statistic in STATISTICS.items():
        a, b = (statistic(strengths, value) for value in values)
        resampled_a, resampled_b = (statistic(strengths, draw) for draw in draws)
        result[name] = _interval(float(b - a), resampled_b - resampled_a, level)
        if name != "pearson":
            ratios = resampled_b / np.where(resampled_a * a > 0, resampled_a, np.nan)
            ratio = float(b / a) if a else float("nan")
            result[f"{name}_ratio"] = _interval(ratio, ratios, level)
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
        count = min(left, _CHUNK)
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

    Of fewer than `LEAST_ROWS` rows all are nan, and nothing that follows has an interval.
    """
    trained, num_strengths, num_rows = curve.errors.shape
    if num_rows < LEAST_ROWS:
        return np.full((samples, num_strengths), np.nan)
    rates = np.empty((samples, num_strengths))
    done = 0
    for weights in _row_weights(num_rows, samples, seed):
        errors = np.einsum("bn,tsn->bts", weights, curve.errors, optimize=True)
        units = np.einsum("bn,tsn->bts", weights, curve.units, optimize=True)
        rates[done : done + len(weights)] = _quotient(errors, units).mean(1)
        done += len(weights)
    factors = spread.draw(np.random.default_rng([seed, 1, number]), samples, trained)
    return np.maximum(rates * factors, 0.0)


def _quotient(errors: np.ndarray, units: np.ndarray) -> np.ndarray:
    return np.divide(errors, units, out=np.full(errors.shape, np.nan), where=units > 0)


def _row_weights(rows: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row is drawn, float64 [b, N], in parts of at most `_CHUNK` resamplings."""
    rng = np.random.default_rng([seed, 0])
    while samples:
        count = min(samples, _CHUNK)
        drawn = rng.integers(rows, size=(count, rows)) + rows * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows).astype(float)
        samples -= count


def _interval(value: float, draws: np.ndarray, level: float) -> Interval:
    """No ends where more draws are no number than lie outside of one: an end may be anywhere.

    And none where all draws are equal, which tells nothing of other rows.
    """
    finite = np.isfinite(draws)
    if np.mean(~finite) > (1 - level) / 2:
        return Interval(value, np.nan, np.nan)
    draws = draws[finite]
    if np.ptp(draws) == 0:
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))
