"""The lattice of our own against optax's, in float64; what is written for speed against itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mdlm.diffusion import ctc_loss, lattice
from jax_mdlm.diffusion.ctc import clamp_observed, ctc_feasible
from tests.reference.ctc_optax import optax_ctc

SLACK = 1


def rows(seed, *, num_rows, length, max_labels, most_slack, alphabet=8, observed_share=0.0):
    """Rows that begin anywhere, with any count of labels and slacks, some without an alignment."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(5, 5 + alphabet, (num_rows, max_labels))
    count = rng.integers(0, max_labels + 1, num_rows)
    count[0] = max_labels  # one row is full
    frames_count = np.minimum(count + rng.integers(-1, most_slack + 1, num_rows), length)
    frames_count = np.maximum(frames_count, 0)
    frames_count[0] = min(max_labels + most_slack, length)
    first = rng.integers(0, length - frames_count + 1)
    slot = np.arange(length)
    frames = (slot >= first[:, None]) & (slot < (first + frames_count)[:, None])
    classes = np.pad(labels, ((0, 0), (1, 0)), constant_values=SLACK)
    by_id = rng.normal(size=(num_rows, length, 5 + alphabet)) * 3
    by_id -= np.log(np.exp(by_id).sum(-1, keepdims=True)) - 0.1
    log_probs = np.take_along_axis(by_id, classes[:, None, :], axis=2)
    tokens = rng.integers(1, 5 + alphabet, (num_rows, length))
    observed = rng.random((num_rows, length)) < observed_share
    return log_probs, frames, labels, count, classes, tokens, observed


def value_and_slope(log_probs, frames, labels, count, collapse, through, weight=None):
    def loss(log_probs):
        nll, feasible = through(log_probs, frames, labels, count, collapse=collapse)
        scale = jnp.ones_like(nll) if weight is None else weight
        return jnp.sum(nll * scale), (nll, feasible)

    (_, (nll, feasible)), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(log_probs)
    return np.asarray(nll), np.asarray(feasible), np.asarray(slope)


def by_token(slope, classes):
    """Adds the columns of equal classes: which of them the mass stands in is no promise."""
    total = np.zeros((*slope.shape[:2], classes.max() + 1))
    for row in range(len(slope)):
        np.add.at(total[row], (slice(None), classes[row]), slope[row])
    return total


@pytest.mark.parametrize("collapse", ["merge", "slack_only"])
@pytest.mark.parametrize(
    "shape",
    [
        {"num_rows": 6, "length": 24, "max_labels": 12, "most_slack": 9},
        {"num_rows": 6, "length": 24, "max_labels": 12, "most_slack": 9, "observed_share": 0.3},
        {"num_rows": 3, "length": 330, "max_labels": 270, "most_slack": 20},  # a quarter
        {"num_rows": 3, "length": 400, "max_labels": 270, "most_slack": 100},  # half
        {"num_rows": 3, "length": 460, "max_labels": 270, "most_slack": 180},  # all states
    ],
    ids=["small", "observed", "quarter", "half", "wide"],
)
def test_value_and_gradient_are_those_of_optax(collapse, shape):
    with jax.enable_x64(True):
        data = rows(1, alphabet=300 if shape["length"] > 24 else 8, **shape)
        log_probs, frames, labels, count, classes, tokens, observed = data
        log_probs = clamp_observed(jnp.asarray(log_probs), tokens, observed, classes)
        weight = np.linspace(0.5, 2.0, len(labels))
        one, other = (
            value_and_slope(log_probs, frames, labels, count, collapse, through, weight)
            for through in (ctc_loss, optax_ctc)
        )
    assert one[1].any()
    np.testing.assert_array_equal(one[1], other[1])
    np.testing.assert_allclose(one[0], other[0], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        by_token(one[2], classes), by_token(other[2], classes), rtol=1e-6, atol=1e-9
    )
    assert not one[2][~one[1]].any()  # exactly 0


@pytest.mark.parametrize("collapse", ["merge", "slack_only"])
@pytest.mark.parametrize("most_slack", [20, 67, 68, 134, 135, 180])
def test_a_window_changes_nothing(collapse, most_slack, monkeypatch):
    """At both sides of the widths that a row of 270 labels may take (68, 136, 271)."""
    data = rows(2, num_rows=4, length=460, max_labels=270, most_slack=most_slack, alphabet=300)
    log_probs, frames, labels, count, *_ = data
    log_probs = log_probs.astype(np.float32)
    windowed = value_and_slope(log_probs, frames, labels, count, collapse, ctc_loss)
    monkeypatch.setattr(lattice, "_DIVISORS", ())
    full = value_and_slope(log_probs, frames, labels, count, collapse, ctc_loss)
    np.testing.assert_array_equal(windowed[1], full[1])
    np.testing.assert_allclose(windowed[0], full[0], rtol=1e-6)
    np.testing.assert_allclose(windowed[2], full[2], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("collapse", ["merge", "slack_only"])
def test_mass_of_every_frame_is_one(collapse):
    data = rows(3, num_rows=5, length=200, max_labels=100, most_slack=80)
    log_probs, frames, labels, count, *_ = data
    nll, feasible, slope = value_and_slope(
        log_probs.astype(np.float32), frames, labels, count, collapse, ctc_loss
    )
    mass = -slope.sum(axis=2)
    np.testing.assert_allclose(mass, frames & feasible[:, None], atol=2e-6)
    if collapse == "slack_only":  # and every label stands at one frame
        given = np.arange(labels.shape[1]) < count[:, None]
        np.testing.assert_allclose(
            -slope[:, :, 1:].sum(axis=1), given & feasible[:, None], atol=1e-5
        )


@pytest.mark.parametrize("collapse", ["merge", "slack_only"])
def test_feasibility_without_scores_is_that_of_the_loss(collapse):
    data = rows(
        4, num_rows=200, length=12, max_labels=5, most_slack=4, alphabet=2, observed_share=0.3
    )
    _, frames, labels, count, classes, tokens, observed = data
    scores = clamp_observed(jnp.zeros((200, 12, 6)), tokens, observed, classes)
    _, expected = ctc_loss(scores, frames, labels, count, collapse=collapse)
    found = ctc_feasible(tokens, observed, frames, labels, count, classes, collapse=collapse)
    assert 0 < expected.sum() < 200
    np.testing.assert_array_equal(found, expected)


def test_a_state_far_behind_is_not_lost():
    """The model is sure of one place by e^150 a slot; an observed slot then allows only another."""
    length, labels = 40, np.array([[10, 11, 12]])
    log_probs = np.full((1, length, 4), -150.0, np.float32)
    log_probs[0, :5, 1:] = -0.1  # all labels early
    log_probs[0, 5:, 0] = -0.1  # then slack
    tokens = np.zeros((1, length), int)
    observed = np.zeros((1, length), bool)
    observed[0, 37], tokens[0, 37] = True, 10  # but the first label stands here
    classes = np.pad(labels, ((0, 0), (1, 0)), constant_values=SLACK)
    clamped = clamp_observed(jnp.asarray(log_probs), tokens, observed, classes)
    nll, feasible = ctc_loss(
        clamped, np.ones((1, length), bool), labels, np.array([3]), collapse="slack_only"
    )
    assert feasible[0]
    # Slots 0-4 are slack at -150 each, 5-36 at -0.1, then 12 11 at -150 in slots 38 and 39.
    np.testing.assert_allclose(nll[0], 5 * 150 + 32 * 0.1 + 2 * 150, rtol=1e-6)


@pytest.mark.parametrize("collapse", ["merge", "slack_only"])
def test_memory_is_of_the_order_of_the_input(collapse):
    """Of the compiler: value and gradient, beside the gradient itself."""
    data = rows(5, num_rows=4, length=256, max_labels=128, most_slack=128, alphabet=300)
    log_probs, frames, labels, count, *_ = data

    def temporary(through):
        def loss(log_probs):
            return through(log_probs, frames, labels, count, collapse=collapse)[0].sum()

        program = jax.jit(jax.value_and_grad(loss)).lower(log_probs.astype(np.float32)).compile()
        return program.memory_analysis().temp_size_in_bytes

    size = log_probs.size * 4
    assert temporary(ctc_loss) <= (3.2 if collapse == "merge" else 2.2) * size
    assert temporary(ctc_loss) <= 0.5 * temporary(optax_ctc)
