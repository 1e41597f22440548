"""Intervals against scipy and against what they promise; curve statistics by hand."""

import numpy as np
import pytest
import scipy.stats

from jax_mdlm.evaluation.intervals import bootstrap_mean, clopper_pearson
from jax_mdlm.experiments import statistics
from jax_mdlm.experiments.statistics import (
    Curve,
    Spread,
    area,
    bootstrap_curve,
    bootstrap_differences,
    clean,
    pearson,
    permutation_test,
    slope,
)

STRENGTHS = np.array([0.0, 0.1, 0.4])


def make_curve(rng, shift=0.0, rise=0.0, seeds=2, rows=200):
    rate = 0.2 + shift + rise * STRENGTHS[:, None]
    units = rng.integers(3, 9, size=(seeds, 1, rows)).repeat(len(STRENGTHS), 1).astype(float)
    return Curve(STRENGTHS, rng.binomial(units.astype(int), rate).astype(float), units)


def test_statistics_by_hand():
    rates = np.array([0.1, 0.2, 0.3])
    assert clean(STRENGTHS, rates) == 0.1
    fitted = scipy.stats.linregress(STRENGTHS, rates)
    assert slope(STRENGTHS, rates) == pytest.approx(fitted.slope)
    assert pearson(STRENGTHS, rates) == pytest.approx(-fitted.rvalue)  # of the score, not the error
    assert area(STRENGTHS, rates) == pytest.approx((0.1 * 0.15 + 0.3 * 0.25) / 0.4)
    both = np.stack([rates, rates[::-1]])
    for statistic in (clean, slope, pearson, area):
        np.testing.assert_allclose(
            statistic(STRENGTHS, both), [statistic(STRENGTHS, row) for row in both]
        )


def test_a_flat_curve_has_no_correlation():
    assert np.isnan(pearson(STRENGTHS, np.full(3, 0.2)))
    assert slope(STRENGTHS, np.full(3, 0.2)) == pytest.approx(0, abs=1e-15)


def test_intervals_cover_the_truth():
    rng, inside = np.random.default_rng(3), 0
    for trial in range(60):
        found = bootstrap_mean(rng.normal(size=60), samples=500, seed=trial)
        inside += found.low <= 0 <= found.high
    assert 50 <= inside <= 60


def test_a_curve_with_intervals():
    curve = make_curve(np.random.default_rng(1), rise=0.5)
    found = bootstrap_curve(curve, samples=400)
    assert [rate.value for rate in found["rates"]] == pytest.approx(curve.rates.mean(0))
    for rate, strength in zip(found["rates"], STRENGTHS, strict=True):
        assert rate.low <= 0.2 + 0.5 * strength <= rate.high
    assert found["slope"].low <= 0.5 <= found["slope"].high
    assert found["clean"] == found["rates"][0]
    again = bootstrap_curve(curve, samples=400)
    assert again == found


def test_training_seeds_widen_an_interval():
    rng = np.random.default_rng(2)
    one, units = rng.binomial(5, 0.2, size=(1, 3, 4000)).astype(float), np.full((1, 3, 4000), 5.0)
    other = rng.binomial(5, 0.3, size=(1, 3, 4000)).astype(float)
    alone = bootstrap_curve(Curve(STRENGTHS, one, units), samples=300)["clean"]
    both = Curve(STRENGTHS, np.concatenate([one, other]), np.concatenate([units, units]))
    pair = bootstrap_curve(both, samples=300)["clean"]
    assert pair.high - pair.low > 4 * (alone.high - alone.low)


def seeded(rng, seeds, sd=0.02, rows=400, rate=0.2):
    """Trainings whose true rates lie apart by `sd`, alike at all strengths."""
    rates = (rate + sd * rng.standard_normal(seeds))[:, None, None]
    units = np.full((seeds, 3, rows), 50.0)
    return Curve(STRENGTHS, rng.binomial(50, np.broadcast_to(rates, units.shape)) / 1.0, units)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_cover_where_few_seeds_lie_apart(seeds):
    """95 of 100 even of two seeds; resampling the seeds would cover 52, 72 and 82."""
    rng = np.random.default_rng(8)
    inside = 0
    for trial in range(100):
        found = bootstrap_curve(seeded(rng, seeds), samples=400, seed=trial)["clean"]
        inside += found.low <= 0.2 <= found.high
    assert inside >= 90


def test_models_lend_each_other_their_spread():
    """Four models of two seeds: sharper than two seeds alone, and a model of one seed gets some."""
    rng = np.random.default_rng(9)
    inside, widths = 0, []
    for trial in range(100):
        curves = [seeded(rng, 2) for _ in range(4)] + [seeded(rng, 1)]
        spread = Spread.of(curves)
        assert spread.freedom == 4
        shared = bootstrap_curve(curves[0], spread=spread, samples=400, seed=trial)["clean"]
        single = bootstrap_curve(curves[4], spread=spread, samples=400, seed=trial)["clean"]
        own = bootstrap_curve(curves[0], samples=400, seed=trial)["clean"]
        widths.append([one.high - one.low for one in (shared, own)])
        inside += (shared.low <= 0.2 <= shared.high) + (single.low <= 0.2 <= single.high)
    assert inside >= 180
    shared, own = np.median(widths, axis=0)
    assert shared < own / 2


def test_differences_between_equal_models_are_found_as_rarely_as_they_should():
    rng = np.random.default_rng(10)
    inside = 0
    for trial in range(100):
        curves = [seeded(rng, 3) for _ in range(2)]
        found = bootstrap_differences(*curves, samples=400, seed=trial)
        inside += found["clean"].low <= 0 <= found["clean"].high
    assert inside >= 90


def test_a_ratio_to_what_may_be_zero_has_no_ends():
    errors = np.zeros((1, 3, 100))
    errors[0, :, 0] = 1
    few, more = Curve(STRENGTHS, errors, np.ones_like(errors)), errors.copy()
    more[0, :, 1:3] = 1
    found = bootstrap_differences(few, Curve(STRENGTHS, more, np.ones_like(errors)), samples=400)
    assert found["clean_ratio"].value == pytest.approx(3)
    assert np.isnan(found["clean_ratio"].low)
    assert np.isnan(found["clean_ratio"].high)
    assert found["clean"].low <= 0.02 <= found["clean"].high


def test_differences_of_the_same_rows_are_sharper():
    """A row that is hard for one is hard for the other: the pair is resampled together."""
    rng = np.random.default_rng(4)
    hard = rng.integers(0, 5, size=(1, 1, 300)).repeat(3, 1).astype(float)
    units = np.full(hard.shape, 5.0)
    more = hard + rng.normal(0.1, 0.01, hard.shape)
    first, second = Curve(STRENGTHS, hard, units), Curve(STRENGTHS, more, units)
    found = bootstrap_differences(first, second, samples=300)
    assert found["clean"].value == pytest.approx(0.02, abs=5e-4)
    assert 0 < found["clean"].high - found["clean"].low < 1e-3
    assert found["clean_ratio"].value == pytest.approx(1 + 0.1 / hard[0, 0].mean(), rel=1e-3)
    spread = bootstrap_curve(first, samples=300)["clean"]
    assert spread.high - spread.low > 0.05


def test_a_permutation_test_finds_differences_and_none():
    rng = np.random.default_rng(5)
    first, same, worse = make_curve(rng), make_curve(rng), make_curve(rng, shift=0.08)
    assert (permutation_test(first, same, samples=500) > 0.02).all()
    assert (permutation_test(first, worse, samples=500) < 0.02).all()


def test_a_permutation_test_is_calibrated():
    """Without a difference, small p values are as rare as they say."""
    rng = np.random.default_rng(6)
    p = [
        permutation_test(make_curve(rng, rows=40), make_curve(rng, rows=40), samples=200, seed=k)[0]
        for k in range(80)
    ]
    assert np.mean(np.array(p) < 0.2) == pytest.approx(0.2, abs=0.13)


def test_curves_must_belong_together():
    rng = np.random.default_rng(7)
    with pytest.raises(ValueError, match=r"must be \[T, 2, N\], got \(2, 3, 200\)"):
        Curve(STRENGTHS[:2], make_curve(rng).errors, make_curve(rng).units)
    with pytest.raises(ValueError, match="on the same rows"):
        bootstrap_differences(make_curve(rng), make_curve(rng, rows=100), samples=10)


# --- few rows ---


@pytest.mark.parametrize("rows", [3, 24])
def test_a_curve_of_few_rows_has_no_interval(rows: int) -> None:
    rng = np.random.default_rng(0)
    errors = rng.integers(0, 5, (2, 3, rows)).astype(float)
    curve = statistics.Curve(np.array([0.0, 0.1, 0.4]), errors, np.full(errors.shape, 5.0))
    found = statistics.bootstrap_curve(curve)
    change = statistics.bootstrap_differences(curve, curve)
    for entry in (*found.values(), *change.values()):
        assert all(one.ends is None for one in (entry if isinstance(entry, list) else [entry]))
    assert [one.value for one in found["rates"]] == pytest.approx(curve.rates.mean(0))


def test_a_curve_of_whole_rows_is_exact_where_rows_are_few() -> None:
    """One training, one decoding, right or wrong: Clopper and Pearson's interval of the share."""
    errors = np.array([[[0.0] * 8, [0.0] * 6 + [1.0] * 2]])
    curve = statistics.Curve(np.array([0.0, 0.4]), errors, np.ones(errors.shape))
    found = statistics.bootstrap_curve(curve)
    assert found["rates"] == [clopper_pearson(0, 8), clopper_pearson(2, 8)]
    assert found["clean"] == clopper_pearson(0, 8)
    assert found["slope"].reason == "8 rows, at least 25 are needed"


def test_a_curve_of_many_rows_that_are_all_right_is_exact_there_alone() -> None:
    rng = np.random.default_rng(0)
    errors = np.stack([np.zeros(200), rng.binomial(1, 0.3, 200)])[None].astype(float)
    curve = statistics.Curve(np.array([0.0, 0.4]), errors, np.ones(errors.shape))
    first, second = statistics.bootstrap_curve(curve)["rates"]
    assert first == clopper_pearson(0, 200)
    assert second != clopper_pearson(int(errors[0, 1].sum()), 200)
    assert second.ends is not None
