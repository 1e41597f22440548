"""Intervals of few and of equal rows: exact, or none with the reason."""

import math

import numpy as np
import pytest
import scipy.stats

from jax_mdlm.evaluation import intervals


@pytest.mark.parametrize("rows", [1, 3, 9, 10, 40])
def test_a_share_of_rows_that_are_all_alike_is_exact(rows: int) -> None:
    """The rule of three's exact form: nobody failed, so at most 1 - 0.025^(1/n) do."""
    bound = 1 - 0.025 ** (1 / rows)
    none, every = (intervals.share_of(np.full(rows, value)) for value in (0.0, 1.0))
    np.testing.assert_allclose([none.value, none.low, none.high], [0, 0, bound], rtol=1e-12)
    np.testing.assert_allclose([every.value, every.low, every.high], [1, 1 - bound, 1], rtol=1e-12)


@pytest.mark.parametrize(("count", "rows"), [(1, 3), (2, 9), (4, 8)])
def test_a_share_of_few_rows_is_exact(count: int, rows: int) -> None:
    """Each end is the share at which so many or more (or fewer) have a chance of 2.5 %."""
    found = intervals.share_of(np.repeat([1.0, 0.0], [count, rows - count]))

    def at_least(share: float, least: int) -> float:
        chances = [
            math.comb(rows, k) * share**k * (1 - share) ** (rows - k) for k in range(rows + 1)
        ]
        return sum(chances[least:])

    assert found.value == count / rows
    np.testing.assert_allclose(at_least(found.low, count), 0.025, rtol=1e-9)
    np.testing.assert_allclose(1 - at_least(found.high, count + 1), 0.025, rtol=1e-9)


def test_other_means_of_few_rows_have_no_interval() -> None:
    few, many = np.array([0.25, 0.5, 1.0]), np.linspace(0, 1, intervals.LEAST_ROWS)
    assert intervals.bootstrap_mean(few).ends is None
    assert intervals.share_of(few).ends is None  # parts of rows: no binomial share
    assert intervals.share_of(many) == intervals.bootstrap_mean(many)
    assert intervals.bootstrap_mean(many).ends is not None
    assert str(intervals.bootstrap_mean(few)) == "0.5833 [no interval]"


@pytest.mark.parametrize("value", [0.5, 0.1, 1 / 3, 1e9 / 7])
@pytest.mark.parametrize("rows", [25, 50, 333])
def test_equal_rows_have_no_interval_whatever_their_rounding(value: float, rows: int) -> None:
    found = intervals.bootstrap_mean(np.full(rows, value))
    assert found.ends is None
    assert found.reason == "resampling shows nothing where no row differs from the others"


def test_why_there_is_no_interval() -> None:
    assert intervals.bootstrap_mean(np.ones(1)).reason == "1 row, at least 25 are needed"
    assert intervals.bootstrap_mean(np.ones(24)).reason == "24 rows, at least 25 are needed"
    undefined = intervals.interval_of(1.0, np.full(100, np.nan), 0.95, 50)
    assert undefined.reason == "the number is undefined for many resampled rows"
    assert intervals.bootstrap_mean(np.arange(30.0)).reason == ""


def test_how_numbers_are_shown() -> None:
    assert intervals.shown([0.5, None, None], ".1f", " %") == "0.5 [no interval] %"
    assert intervals.shown([0.5, 0.25, 1], ".2f") == "0.50 [0.25, 1.00]"
    assert intervals.shown([None, None, None], ".2f", " %") == "-"
    assert intervals.Interval(float("nan"), 0.0, 1.0).numbers() == [None, 0.0, 1.0]


def test_bootstrap_mean_beside_scipy():
    values = np.random.default_rng(0).exponential(size=300)
    ours = intervals.bootstrap_mean(values)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=1
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)
    assert intervals.bootstrap_mean(values, level=0.5).low > ours.low
    with pytest.raises(ValueError, match="at least one value"):
        intervals.bootstrap_mean(np.array([]))
