"""The estimator against all masks of a model small enough to enumerate."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jax_mdlm import model
from jax_mdlm.config import ConfigError, MeshConfig
from jax_mdlm.likelihood import log_likelihood, program
from jax_mdlm.sharding import make_layout
from tests.likelihood.small import CONFIG, IDS, PARAMS, logits, predict
from tests.reference import likelihood as reference

RESPONSE = (0, 1, 2, 3, 0, 1, 2, 5)  # 255 masks
PROMPT = (3, 1, 2)

estimate = functools.partial(log_likelihood, config=CONFIG, ids=IDS, key=jax.random.key(0))


def exact(prompt, response, **how):
    return reference.over_masks(predict(prompt, response, **how), len(response))


@pytest.fixture(scope="module")
def runs():
    """400 estimates of one row with 32 draws each, and the exact value."""
    return estimate(PARAMS, rows=[(PROMPT, RESPONSE)] * 400, samples=32, batch_size=1600), exact(
        PROMPT, RESPONSE
    )


def test_the_exact_value_is_in_the_interval(runs):
    """The bar: in 95 or more of 100 runs. A 99 % interval, which is the default, misses 1 of them
    on average; 6 misses would have a probability of 5 in 10,000."""
    estimates, value = runs
    held = [one.interval()[0] <= value <= one.interval()[1] for one in estimates]
    assert sum(held[:100]) >= 95
    assert np.mean(held) >= 0.975
    # And it is not wide for nothing: the 95 % interval misses its share.
    tight = [one.interval(0.95) for one in estimates]
    assert 0.93 <= np.mean([low <= value <= high for low, high in tight]) <= 0.98


def test_the_mean_of_runs_is_the_exact_value(runs):
    estimates, value = runs
    values = np.array([one.value for one in estimates])
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - value) < 3 * error
    assert error < 0.05  # nats, of 24


def test_the_standard_error_is_that_of_the_runs(runs):
    """32 draws of 8 tokens: groups are strata, and the variance is estimated without bias."""
    estimates, _ = runs
    spread = np.var([one.value for one in estimates], ddof=1)
    assert np.mean([one.standard_error**2 for one in estimates]) == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize("samples", [2, 5, 13, 24])
def test_any_number_of_draws_is_unbiased(samples):
    estimates = estimate(PARAMS, rows=[(PROMPT, RESPONSE)] * 200, samples=samples, batch_size=1600)
    values = np.array([one.value for one in estimates])
    assert abs(values.mean() - exact(PROMPT, RESPONSE)) < 3.5 * values.std() / np.sqrt(200)


def test_a_single_draw_has_no_error():
    estimates = estimate(PARAMS, rows=[(PROMPT, RESPONSE)] * 400, samples=1, batch_size=400)
    assert all(one.standard_error == np.inf for one in estimates)
    values = np.array([one.value for one in estimates])
    assert abs(values.mean() - exact(PROMPT, RESPONSE)) < 3 * values.std() / np.sqrt(400)


ROWS = [
    ((), (3,)),
    (PROMPT, (0, 1)),
    ((1,), (2, 2, 5)),
    ((0, 1, 2, 3, 0, 1, 2, 3, 1), (1, 0)),  # wider than 8 slots: another shape
    (PROMPT, (0, 1, 2, 3)),
]


def test_few_masks_are_all_scored():
    """15 masks of four tokens and fewer: exact, for prompts of any lengths, and so without error.

    The oracle sees each prompt alone: padding changes nothing.
    """
    for row, one in zip(ROWS, estimate(PARAMS, rows=ROWS, samples=15), strict=True):
        assert one.value == pytest.approx(exact(*row), abs=1e-4)
        assert one.standard_error == 0
        assert one.interval() == (one.value, one.value)


def test_one_draw_less_and_they_are_drawn():
    (one,) = estimate(PARAMS, rows=ROWS[-1:], samples=14)
    assert one.standard_error > 0
    assert abs(one.value - exact(*ROWS[-1])) > 1e-4


@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_value_is_the_mean_over_all_orders(count):
    """Any-order generation, one token after the other, and masks of an exact count: one number."""
    row = (PROMPT, RESPONSE[-count:])
    (one,) = estimate(PARAMS, rows=[row], samples=31)
    assert one.value == pytest.approx(reference.over_orders(predict(*row), count), abs=1e-4)


def test_draws_do_not_depend_on_the_batch():
    rows = [(PROMPT, RESPONSE), ((), RESPONSE[:6]), ((1,), RESPONSE)]
    values = [one.value for one in estimate(PARAMS, rows=rows, samples=12, batch_size=5)]
    others = [one.value for one in estimate(PARAMS, rows=rows, samples=12, batch_size=64)]
    np.testing.assert_allclose(values, others, atol=1e-4)
    # A row's number names its draws; what else is in the list does not matter.
    instead = [((2, 2), (3, 3)), *rows[1:]]
    again = [one.value for one in estimate(PARAMS, rows=instead, samples=12)]
    np.testing.assert_allclose(values[1:], again[1:], atol=1e-4)
    assert abs(values[0] - values[2]) > 1e-3


def test_one_program_a_shape():
    """Prompts of 1 to 8 tokens and of 9 to 16, responses of up to 8, any number of rows."""
    before = program.score._cache_size()
    rows = [([1] * prompt, [2] * count) for prompt in range(1, 17) for count in (1, 3, 8)]
    estimate(PARAMS, rows=rows, samples=2, batch_size=7)
    assert program.score._cache_size() - before == 2


def test_guidance():
    rows = [(PROMPT, (0, 1, 2)), ((1,), (2, 5)), ((), (3,))]
    for row, one in zip(rows, estimate(PARAMS, rows=rows, guidance=0.7), strict=True):
        assert one.value == pytest.approx(exact(*row, guidance=0.7), abs=1e-4)
    (plain,) = estimate(PARAMS, rows=rows[:1])
    assert abs(plain.value - exact(*rows[0], guidance=0.7)) > 0.1


@pytest.mark.parametrize("weights", ["full", "int8"])
def test_parameters_for_sampling(weights):
    prepared = model.prepare(PARAMS, CONFIG, weights)
    for row, one in zip(ROWS, estimate(prepared, rows=ROWS, samples=15), strict=True):
        assert one.value == pytest.approx(exact(*row, params_of=weights), abs=1e-3)


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(MeshConfig(fsdp=4, tensor=2), marks=pytest.mark.slow),
        pytest.param(MeshConfig(data=2, fsdp=2, context=2), marks=pytest.mark.slow),
    ],
)
def test_a_mesh_gives_the_numbers_of_one_device(mesh, eight_devices):
    layout = make_layout(mesh, eight_devices)
    rows = [*ROWS, (PROMPT, RESPONSE)]
    here = estimate(PARAMS, rows=rows, samples=20, greedy=True, guidance=0.5)
    there = estimate(
        PARAMS, rows=rows, samples=20, greedy=True, guidance=0.5, layout=layout, batch_size=3
    )
    for one, other in zip(here, there, strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-4)
        assert one.greedy == other.greedy


def test_greedy():
    def decode(prompt, count):
        return tuple(
            int(token)
            for token in reference.greedy(lambda t: logits(tuple(t)), prompt, count, IDS.mask)
        )

    # Behind an empty prompt all masks look alike: which of them is surest is a matter of rounding.
    prompts = [(1,), (2, 0), PROMPT, (0, 1, 2, 3, 0, 1, 2, 3, 1)]
    rows = []
    for prompt in prompts:
        for count in (1, 4, 7):
            right = decode(prompt, count)
            assert IDS.mask not in right
            rows.append((prompt, right))
            rows += [
                (prompt, (*right[:at], (right[at] + 1) % 9, *right[at + 1 :]))
                for at in range(count)
            ]
    found = estimate(PARAMS, rows=rows, samples=1, greedy=True)
    expected = [decode(prompt, len(response)) == response for prompt, response in rows]
    assert [one.greedy for one in found] == expected
    assert sum(expected) >= 6
    assert estimate(PARAMS, rows=rows[:1])[0].greedy is None


def test_no_rows():
    assert estimate(PARAMS, rows=[]) == []


def test_a_row_of_the_models_length():
    """Rounding up its widths would need more slots than the model takes."""
    prompt = [number % 4 for number in range(53)]
    (one,) = estimate(PARAMS, rows=[(prompt, RESPONSE[:2])], samples=3)
    short = dataclasses.replace(CONFIG, max_length=55)
    (other,) = estimate(PARAMS, rows=[(prompt, RESPONSE[:2])], samples=3, config=short)
    assert one.value == pytest.approx(other.value, abs=1e-4)


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([((1,), ())], {}, "row 0 must have a response, it is empty"),
        ([((1,), (2,)), ((9,), (2,))], {}, r"row 1 must hold text, it holds the mask \(id 9\)"),
        ([((1,), (9,))], {}, r"row 0 must hold text, it holds the mask \(id 9\)"),
        (
            [([1] * 60, [2] * 5)],
            {},
            "row 0 with 60 prompt and 5 response tokens must fit model.max_length=64; shorten it",
        ),
        ([((1,), (2,))], {"samples": 0}, "samples must be between 1 and 65,536, got 0"),
        ([((1,), (2,))], {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ([((1,), (2,))], {"guidance": -1.0}, "guidance must be 0 or more, got -1.0"),
    ],
)
def test_refusals(rows, changes, message):
    with pytest.raises(ConfigError, match=message):
        estimate(PARAMS, rows=rows, **changes)
