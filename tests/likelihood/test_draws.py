"""The law of the masks, by going through all tickets; intervals by hand; choices."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mdlm.config import ConfigError
from jax_mdlm.evaluation.likelihood import MultipleChoice, likeliest, parse_multiple_choice
from jax_mdlm.likelihood import Estimate
from jax_mdlm.likelihood.estimator import add_up, from_draws
from jax_mdlm.likelihood.program import draw_mask, level_of, numbered_mask
from tests.likelihood.small import predict
from tests.reference import likelihood as reference


def levels(count, samples):
    """How many slots are masked, for every sample (rows) and every ticket (columns)."""
    sample, ticket = np.meshgrid(np.arange(samples), np.arange(count), indexing="ij")
    return np.asarray(level_of(sample, ticket, count, samples))


@pytest.mark.parametrize("count", range(1, 10))
@pytest.mark.parametrize("samples", [1, 2, 3, 7, 12, 36])
def test_every_number_of_masks_is_equally_likely(count, samples):
    """Exactly, whatever the two numbers are: tickets are uniform."""
    found, times = np.unique(levels(count, samples), return_counts=True)
    assert found.tolist() == list(range(1, count + 1))
    assert times.tolist() == [samples] * count


@pytest.mark.parametrize(("count", "samples"), [(1, 4), (3, 12), (4, 8), (6, 6)])
def test_strata_cover_every_number_equally(count, samples):
    """Where U divides the samples, whatever the tickets are."""
    of_sample = levels(count, samples)
    assert (of_sample == of_sample[:, :1]).all()
    assert np.bincount(of_sample[:, 0])[1:].tolist() == [samples // count] * count


@pytest.mark.parametrize("samples", [1, 2, 3, 5])
def test_the_mean_over_all_draws_is_the_exact_value(samples):
    """No sampling at all: every ticket of every sample, every set of so many slots."""
    ask, count, total = predict((2,), (1, 3, 0)), 3, 0.0
    for level in levels(count, samples).reshape(-1):
        sets = list(itertools.combinations(range(count), int(level)))
        for chosen in sets:
            masked = np.isin(np.arange(count), chosen)
            total += count / level * ask(masked)[masked].sum() / len(sets)
    mean = total / (samples * count)
    assert mean == pytest.approx(reference.over_masks(ask, count), abs=1e-12)
    assert mean == pytest.approx(reference.over_orders(ask, count), abs=1e-12)


@pytest.fixture(scope="module")
def masks():
    """Masks of 4 of 7 slots, [rows, 12 samples, 7]."""
    draw = jax.vmap(
        jax.vmap(lambda row, sample: draw_mask(jax.random.key(1), row, sample, 4, 12, width=7)),
    )
    row, sample = jnp.meshgrid(jnp.arange(1000), jnp.arange(12), indexing="ij")
    return np.asarray(jax.jit(draw)(row, sample))


def test_masks_have_exact_counts(masks):
    assert (masks.sum(-1) == 1 + np.arange(12) // 3).all()
    assert not masks[:, :, 4:].any()


def test_sets_of_one_size_are_equally_likely(masks):
    """Chi-square of the 6 pairs among 3,000 draws; 20.5 is the quantile of 99.9 %."""
    codes = (masks[:, 3:6, :4] @ (1 << np.arange(4))).reshape(-1)
    found, times = np.unique(codes, return_counts=True)
    assert len(found) == 6
    assert ((times - 500) ** 2 / 500).sum() < 20.5


def test_draws_of_samples_and_rows_differ(masks):
    pairs = masks[:, 3:6, :4] @ (1 << np.arange(4))
    for first, second in ((pairs[:, 0], pairs[:, 1]), (pairs[:-1, 0], pairs[1:, 0])):
        assert np.mean(first == second) == pytest.approx(1 / 6, abs=0.05)


def test_strata_lower_the_variance():
    """For a model that knows the less the more is masked, as trained ones do.

    -1 to -4 nats a token with the share of masks, and -0.3 more at every other slot.
    """
    count = 8

    def estimates(rows, samples):
        draw = jax.vmap(
            jax.vmap(
                lambda row, sample: draw_mask(
                    jax.random.key(2), row, sample, count, samples, width=count
                )
            )
        )
        row, sample = jnp.meshgrid(jnp.arange(rows), jnp.arange(samples), indexing="ij")
        masked = np.asarray(jax.jit(draw)(row, sample))
        level = masked.sum(-1, keepdims=True)
        log_probs = -1 - 3 * level / count - 0.3 * (np.arange(count) % 2)
        return (count / level * masked * log_probs).sum(-1).sum(-1) / samples

    alone = estimates(500 * 16, 1).reshape(500, 16).mean(1)
    stratified = estimates(500, 16)
    assert stratified.mean() == pytest.approx(alone.mean(), abs=0.3)
    assert np.var(stratified) < 0.1 * np.var(alone)


def test_all_subsets_are_numbered():
    made = [tuple(np.asarray(numbered_mask(n, 3, width=40)).nonzero()[0]) for n in range(7)]
    assert sorted(made) == sorted(
        chosen for size in (1, 2, 3) for chosen in itertools.combinations(range(3), size)
    )


def test_estimates_by_hand():
    """Two groups, of 4 and of 5 draws, with 3 and 4 degrees of freedom."""
    found = from_draws(np.array([0.0, 1.0, 2.0, 3.0, 9.0, 9.0, 10.0, 11.0, 11.0]))
    first, second = 4 * 5 / 3 / 81, 5 * 1 / 81
    assert found.value == pytest.approx(56 / 9)
    assert found.standard_error == pytest.approx(math.sqrt(first + second))
    assert found.degrees == pytest.approx((first + second) ** 2 / (first**2 / 3 + second**2 / 4))


def test_few_draws_are_one_group():
    assert from_draws(np.array([1.0, 3.0])).standard_error == pytest.approx(1)
    assert from_draws(np.array([1.0, 3.0])).degrees == pytest.approx(1)
    draws = np.arange(7.0) ** 2
    assert from_draws(draws).standard_error == pytest.approx(draws.std(ddof=1) / math.sqrt(7))
    assert from_draws(draws).degrees == pytest.approx(6)
    assert from_draws(np.array([2.0])) == Estimate(2.0, math.inf)
    assert from_draws(np.array([2.0, 2.0, 2.0])) == Estimate(2.0, 0.0)


def test_estimates_add_up():
    whole = add_up(
        [Estimate(1.0, 3.0, degrees=5), Estimate(2.0, 4.0, degrees=7), Estimate(4.0, 0.0)]
    )
    assert (whole.value, whole.standard_error) == (7, 5)
    assert whole.degrees == pytest.approx(625 / (81 / 5 + 256 / 7))
    assert (
        add_up([Estimate(1.0, 3.0, degrees=5), Estimate(2.0, math.inf)]).standard_error == math.inf
    )


def test_intervals_by_hand():
    low, high = Estimate(10.0, 2.0, degrees=2).interval(0.95)
    assert low == pytest.approx(10 - 4.30265 * 2, abs=1e-4)  # Student's table
    assert high == pytest.approx(10 + 4.30265 * 2, abs=1e-4)
    assert Estimate(10.0, 0.0).interval()[1] == 10
    assert Estimate(10.0, math.inf).interval()[0] == -math.inf


def test_choose():
    estimates = [Estimate(value, 0.1) for value in (-4.0, -3.0, -3.0, -9.0)]
    assert likeliest(estimates) == 1
    assert likeliest(estimates, [4, 2, 3, 10]) == 3


def test_questions():
    row = {"prompt": "p", "choices": ["a", "b"], "answer": 1, "more": 0}
    assert parse_multiple_choice(row, "f:1") == MultipleChoice("p", ("a", "b"), 1, "f:1")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{}", "f:1 must be {.*}; its fields are: none"),
        (b'{"choices": ["a", "b"], "answer": 1}', "f:1 must be .*; its fields are: choices, ans"),
        (b'{"prompt": "a\\ud83d", "choices": ["a", "b"], "answer": 1}', "f:1: prompt must be text"),
        (b'{"prompt": "p", "choices": ["a", "\\udc00"], "answer": 1}', "f:1: choice 2 must be tex"),
        (b'{"prompt": "p", "choices": ["a"], "answer": 0}', "f:1: choices must be two or more"),
        (b'{"prompt": "p", "choices": ["a", " "], "answer": 0}', "f:1: choices must be two or"),
        (b'{"prompt": "p", "choices": "ab", "answer": 0}', "choices must be two or more texts"),
        (b'{"prompt": "p", "choices": ["a", "b"], "answer": 2}', "index of its 2 choices.*got 2"),
        (b'{"prompt": "p", "choices": ["a", "b"], "answer": true}', "got True"),
        (b'{"prompt": "p", "choices": ["a", "b"], "answer": "a"}', "got 'a'"),
    ],
)
def test_bad_questions(line, message):
    with pytest.raises(ConfigError, match=message):
        parse_multiple_choice(json.loads(line), "f:1")
