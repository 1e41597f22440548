"""A number with its interval: by resampling rows, exact, or none with the reason.

Enters: a value per row. Leaves: `Interval`. Nothing here promises more than the rows can show: of
few rows, or of rows that are all the same, a bootstrap would give an interval that is far too
narrow, or one of no width at all.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

# Rows that a bootstrap needs. Its 95 % interval of a share of 0.1 covers the truth in 64 % of the
# cases with 10 rows, in 91 % with 25; the mean of exponential values in 87 % and 91 % (2,000 cases
# each).
LEAST_ROWS = 25
CHUNK = 500  # resamplings whose row weights are in memory at a time


@dataclasses.dataclass(frozen=True)
class Interval:
    """A number and its interval: of a bootstrap, or exact.

    Attributes:
      value: The statistic of the data.
      low: Lower end; nan where there is no interval.
      high: Upper end; nan where there is no interval.
      reason: Why there is none; empty where there is one.
    """

    value: float
    low: float
    high: float
    reason: str = ""

    @classmethod
    def none(cls, value: float, reason: str) -> "Interval":
        """A number without an interval."""
        return cls(value, np.nan, np.nan, reason)

    @property
    def ends(self) -> tuple[float, float] | None:
        """Both ends; None where there is no interval."""
        return (self.low, self.high) if np.isfinite([self.low, self.high]).all() else None

    def numbers(self) -> list[float | None]:
        """Value, lower and upper end for JSON, which has no nan: None takes its place."""
        ends = (self.value, self.low, self.high)
        return [round(float(number), 6) if np.isfinite(number) else None for number in ends]

    def __str__(self) -> str:
        return shown(self.numbers(), ".4g")


def shown(numbers: Sequence[float | None], digits: str, unit: str = "") -> str:
    """`98.1 [97.4, 98.7]`, `98.1 [no interval]`, or `-` where there is no value either.

    Args:
      numbers: Value, lower and upper end, as `Interval.numbers` gives them.
      digits: Format of a number, e.g. ".1f".
      unit: Stands after it all.
    """
    value, low, high = numbers
    if value is None:
        return "-"
    no_ends = low is None or high is None
    ends = "no interval" if no_ends else f"{low:{digits}}, {high:{digits}}"
    return f"{value:{digits}} [{ends}]{unit}"


def few(rows: int) -> bool:
    """Whether these are too few rows for a bootstrap."""
    return rows < LEAST_ROWS


def bootstrap_mean(
    values: np.ndarray, *, samples: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The mean of independent values.

    Args:
      values: float [N], N at least 1.
      samples: Resamplings.
      seed: Of the resampling.
      level: Share of the resampled means inside the interval.

    Raises:
      ValueError: no value.
    """
    values = np.asarray(values, np.float64)
    if not values.size:
        raise ValueError("a mean needs at least one value, got none")
    rows, value = len(values), float(values.mean())
    if few(rows):
        return Interval.none(value, _too_few(rows))
    draws = [weights @ values / rows for weights in row_weights(rows, samples, seed)]
    return interval_of(value, np.concatenate(draws), level, rows)


def share_of(
    values: np.ndarray, *, draws: np.ndarray | None = None, level: float = 0.95
) -> Interval:
    """A share of rows, each of which counts 0 or 1 or in part (several verdicts or seeds).

    The bootstrap's interval. Where the rows are few, or all the same, it promises too much, and
    rows that count 0 or 1 get the exact interval (Clopper and Pearson 1934).

    Args:
      values: float [N], 0 to 1, N at least 1.
      draws: float [samples]; resampled shares, where they were drawn together with others.
      level: Share of intervals that cover the truth, at least.
    """
    values = np.asarray(values, np.float64)
    whole = np.isin(values, (0, 1)).all()
    if values.size and whole and (few(len(values)) or _equal(values)):
        return clopper_pearson(int(values.sum()), len(values), level=level)
    if draws is None:
        return bootstrap_mean(values, level=level)
    return interval_of(float(values.mean()), draws, level, len(values))


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


def interval_of(value: float, draws: np.ndarray, level: float, rows: int) -> Interval:
    """The interval of resampled values.

    It has no ends where more draws are no number than lie outside of one, because an end may then
    be anywhere; and none where all draws are equal, which tells nothing of other rows.

    Args:
      value: The statistic of the data.
      draws: float [samples]; of resampled rows.
      level: Share of the draws inside.
      rows: How many were resampled, for the reason.
    """
    if few(rows):
        return Interval.none(value, _too_few(rows))
    finite = np.isfinite(draws)
    if np.mean(~finite) > (1 - level) / 2:
        return Interval.none(value, "the number is undefined for many resampled rows")
    draws = draws[finite]
    if _equal(draws):
        return Interval.none(value, "resampling shows nothing where no row differs from the others")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def row_weights(rows: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row is drawn, float64 [b, N], in parts of at most `CHUNK` resamplings."""
    rng = np.random.default_rng([seed, 0])
    while samples:
        count = min(samples, CHUNK)
        drawn = rng.integers(rows, size=(count, rows)) + rows * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows).astype(float)
        samples -= count


def _too_few(rows: int) -> str:
    return f"{rows} row{'s' * (rows != 1)}, at least {LEAST_ROWS} are needed"


def _equal(values: np.ndarray) -> bool:
    """Whether nothing but rounding tells them apart."""
    return bool(np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())))
