import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mdlm.config import ObjectiveConfig
from jax_mdlm.diffusion import TermWeight, corrupt, count_rows, objective
from jax_mdlm.diffusion.logits import Parts
from tests.diffusion.rows import IDS, batch_of
from tests.reference import objective as reference
from tests.reference.dense import dense_loss

LENGTH, MOST, EMBED, VOCAB = 18, 6, 8, 12
ROWS = [
    ([5, 6], [7, 7, 8, IDS.terminator]),
    ([9], [5, 5, 5, 6, IDS.terminator]),
    ([9] * 14, [5, 5, 6, IDS.terminator]),  # no room for slack: infeasible where 5 5 is merged
    None,
    ([], [10, 11, 10, IDS.terminator]),
    ([6, 6], []),  # end padding only: in ce, not in ctc
    ([7], [8]),
    ([5, 9, 6], [8, 8, 8, 8, 5, IDS.terminator]),
]
MERGE = ObjectiveConfig(ctc_weight=0.7, loss_tile=200)
CONFIGS = {
    "merge, clamp": MERGE,
    "merge, model": dataclasses.replace(MERGE, observed="model", loss_tile=10**6),
    "merge, random placement": dataclasses.replace(MERGE, separate_repeats=False),
    "slack_only, clamp": dataclasses.replace(MERGE, collapse="slack_only", loss_tile=500),
    "slack_only, model": dataclasses.replace(
        MERGE, collapse="slack_only", observed="model", loss_tile=1
    ),
    "plain LLaDA": ObjectiveConfig(ctc_weight=0.0, slack_max=0.0, loss_tile=100),
    "ce with slack": dataclasses.replace(MERGE, ctc_weight=0.0),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def _inputs(config, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(len(ROWS), LENGTH, EMBED)).astype(dtype)
    head = rng.normal(size=(EMBED, VOCAB)).astype(dtype)
    batch = batch_of(ROWS, LENGTH, MOST, end_padding=3)
    corruption = jax.jit(corrupt, static_argnums=(2, 3))(jax.random.key(seed), batch, IDS, config)
    return hidden, head, jax.tree.map(np.asarray, corruption)


@functools.partial(jax.jit, static_argnums=3)
def _value_and_gradient(hidden, head, corruption, config, rows=None):
    def loss(hidden, head):
        return objective(hidden, head, corruption, IDS, config, rows=rows)

    (value, metrics), gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, head)
    return value, gradient, metrics


@every_config
def test_value_equals_the_reference(config):
    hidden, head, corruption = _inputs(config)
    logits = hidden @ head
    loss, gradient, metrics = _value_and_gradient(hidden, head, corruption, config)
    ce = reference.cross_entropy(logits, corruption)
    np.testing.assert_allclose(metrics["ce"].value, ce, rtol=1e-5)
    assert metrics["ce"].count == 7
    ctc = 0.0
    if config.ctc_weight:
        ctc, infeasible = reference.ctc_per_label(
            logits, corruption, IDS.slack, config.collapse, config.observed
        )
        np.testing.assert_allclose(metrics["ctc"].value, ctc, rtol=1e-5)
        assert metrics["infeasible"].total == infeasible
        assert metrics["infeasible"].count == 6
        assert metrics["ctc"].count == 6 - infeasible
    else:
        assert not {"ctc", "infeasible"} & set(metrics)
    np.testing.assert_allclose(loss, ce + config.ctc_weight * ctc, rtol=1e-5)
    assert all(np.isfinite(g).all() for g in gradient)
    assert not np.asarray(gradient[0])[3].any()  # the row without a response


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("merge, model", np.float32),
        ("merge, random placement", np.float32),
        ("merge, random placement", np.float64),
    ],
)
def test_value_and_gradient_equal_the_dense_form(name, dtype):
    config = CONFIGS[name]
    hidden, head, corruption = _inputs(config, dtype=dtype)
    with jax.enable_x64(dtype is np.float64):
        loss, gradient, _ = _value_and_gradient(hidden, head, corruption, config)
        dense = jax.jit(
            jax.value_and_grad(lambda *x: dense_loss(*x, corruption, IDS, config), argnums=(0, 1))
        )
        expected, expected_gradient = dense(hidden, head)
        assert loss.dtype == gradient[0].dtype == gradient[1].dtype == dtype
    small = dtype is np.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-6 if small else 1e-12)
    for ours, theirs in zip(gradient, expected_gradient, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, atol=(1e-5 if small else 1e-12) * scale)


def test_an_infeasible_row_has_no_ctc_gradient():
    """Row 2 fills the canvas and holds a repeat: with ctc or without, its gradient is the same."""
    hidden, head, corruption = _inputs(MERGE)
    only_ce = CONFIGS["ce with slack"]
    both = np.asarray(_value_and_gradient(hidden, head, corruption, MERGE)[1][0])
    plain = np.asarray(_value_and_gradient(hidden, head, corruption, only_ce)[1][0])
    assert plain[2].any()
    np.testing.assert_array_equal(both[2], plain[2])
    assert (both[1] != plain[1]).any()


@every_config
def test_row_counts_without_the_model_agree_with_the_loss(config):
    counts = jax.jit(count_rows, static_argnums=(1, 2))
    seen = set()
    for seed in range(6):
        hidden, head, corruption = _inputs(config, seed)
        metrics = _value_and_gradient(hidden, head, corruption, config)[2]
        rows = counts(corruption, IDS, config)
        assert float(rows["ce"]) == float(metrics["ce"].count)
        assert ("ctc" in rows) == (config.ctc_weight > 0)
        if "ctc" in rows:
            assert float(rows["ctc"]) == float(metrics["ctc"].count)
            seen.add(float(rows["ctc"]))
    assert len(seen) > 1 or config is not CONFIGS["merge, random placement"]


@pytest.mark.parametrize("name", ["merge, random placement", "slack_only, model"])
def test_microbatches_add_up_to_the_batch(name):
    config = CONFIGS[name]
    hidden, head, corruption = _inputs(config, seed=2)
    loss, gradient, metrics = _value_and_gradient(hidden, head, corruption, config)
    rows = jax.jit(count_rows, static_argnums=(1, 2))(corruption, IDS, config)
    if name == "merge, random placement":
        assert 0 < metrics["infeasible"].total < metrics["infeasible"].count
    parts = []
    for part in range(4):
        take = slice(2 * part, 2 * part + 2)
        some = jax.tree.map(lambda x, take=take: x[take], corruption)
        parts.append(_value_and_gradient(hidden[take], head, some, config, rows))
    losses, gradients, means = zip(*parts, strict=True)
    np.testing.assert_allclose(sum(losses), loss, rtol=1e-6)
    np.testing.assert_allclose(
        np.concatenate([g[0] for g in gradients]), gradient[0], rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(sum(g[1] for g in gradients), gradient[1], rtol=1e-5, atol=1e-6)
    for name, mean in metrics.items():
        added = functools.reduce(lambda a, b: a + b, [m[name] for m in means])
        np.testing.assert_allclose([added.total, added.count], [mean.total, mean.count], rtol=1e-5)


def test_a_batch_of_nothing_is_zero():
    hidden, head, _ = _inputs(MERGE)
    batch = batch_of([None] * len(ROWS), LENGTH, MOST)
    corruption = jax.jit(corrupt, static_argnums=(2, 3))(jax.random.key(0), batch, IDS, MERGE)
    loss, gradient, metrics = _value_and_gradient(hidden, head, corruption, MERGE)
    assert float(loss) == 0
    assert not any(np.asarray(g).any() for g in gradient)
    assert all(float(mean.count) == 0 for mean in metrics.values())


def test_shares_of_slack_hits_and_padding():
    hidden, head, corruption = _inputs(MERGE)
    head[:, IDS.slack] *= 3
    best = (hidden @ head).argmax(axis=-1)
    frames = corruption.masked & corruption.frames
    metrics = _value_and_gradient(hidden, head, corruption, MERGE)[2]
    expected = {
        "accuracy": (best == corruption.targets)[corruption.masked].mean(),
        "slack_target": (corruption.targets == IDS.slack)[frames].mean(),
        "slack_predicted": (best == IDS.slack)[frames].mean(),
        "padding": (~corruption.frames)[corruption.response].mean(),
    }
    for name, value in expected.items():
        assert 0 < value < 1, name
        np.testing.assert_allclose(metrics[name].value, value, rtol=1e-6)


def test_a_certain_right_answer_is_counted_in_bfloat16():
    """Target and largest logit come from one product; two would differ in their last bits."""
    rng = np.random.default_rng(5)
    config = dataclasses.replace(MERGE, loss_tile=150)
    _, _, corruption = _inputs(config)
    head = rng.normal(size=(64, VOCAB)).astype(np.float32)
    hidden = jnp.asarray(10 * head.T[corruption.targets], jnp.bfloat16)
    loss, gradient, metrics = _value_and_gradient(hidden, head, corruption, config)
    assert loss.dtype == jnp.float32
    assert gradient[0].dtype == jnp.bfloat16
    assert gradient[1].dtype == jnp.float32
    assert metrics["accuracy"].value == 1
    assert metrics["slack_predicted"].value == metrics["slack_target"].value


def test_constraints_see_logical_axes():
    seen = []

    def constrain(x, *axes):
        seen.append((x.shape, axes))
        return x

    config = dataclasses.replace(MERGE, loss_tile=900)
    hidden, head, corruption = _inputs(config)
    jax.eval_shape(
        lambda: objective(
            hidden, head, corruption, IDS, config, weights={"ctc": 0.1}, constrain=constrain
        )
    )
    rows = len(ROWS)
    parts = Parts.of(VOCAB, rows * LENGTH, config.loss_tile).number
    assert 1 < parts < VOCAB
    columns = math.ceil(VOCAB / parts)
    assert ((rows, LENGTH, columns), ("batch", "length", "vocab")) in seen
    assert ((rows, LENGTH, EMBED), ("batch", "length", None)) in seen
    assert ((EMBED, columns), (None, "vocab")) in seen  # a part of the head is gathered
    assert ((EMBED, rows, 1 + MOST), ("embed", None, None)) in seen  # label columns are not
    assert ((rows, LENGTH, 1 + MOST), ("batch", None, None)) in seen
    assert not any(shape == (rows, LENGTH, VOCAB) for shape, _ in seen)


@pytest.mark.parametrize(
    ("start", "steps", "at", "expected"),
    [
        (-1.0, 10, [0, 5, 100], [0.5, 0.5, 0.5]),
        (0.0, 10, [0, 5, 10, 100], [0.0, 0.25, 0.5, 0.5]),
        (2.0, 4, [0, 1, 4], [2.0, 1.625, 0.5]),
        (0.0, 0, [0, 1], [0.5, 0.5]),
    ],
)
def test_ctc_weight_schedule(start, steps, at, expected):
    weights = [jax.jit(TermWeight(0.5, start, steps).at)(step) for step in at]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert weights[0].dtype == jnp.float32


def test_weight_that_falls_to_zero_still_computes_ctc():
    config = dataclasses.replace(MERGE, ctc_weight=0.0, ctc_weight_start=1.0, ctc_weight_steps=10)
    hidden, head, corruption = _inputs(config)
    shapes = jax.eval_shape(lambda: _value_and_gradient(hidden, head, corruption, config))
    assert "ctc" in shapes[2]


def test_inverse_probability_makes_the_estimate_unbiased():
    """Two tokens: the mean over draws is the integral over t, known in closed form.

    A slot's loss is `alone` where the other slot is observed and `both` where it is masked. With
    weight 1 / p the expectation given t is `((1 - p) alone + p both)` per slot; p is uniform.
    """
    num_rows = 40000
    config = ObjectiveConfig(ctc_weight=0.0, slack_max=0.0)
    batch = batch_of([([], [5, 6])] * num_rows, 2, 2)
    head = np.random.default_rng(12).normal(size=(4, VOCAB)).astype(np.float32)
    log_probs = head - np.logaddexp.reduce(head, axis=1, keepdims=True)
    slot_losses = -np.array(
        [[log_probs[0, 5], log_probs[1, 5]], [log_probs[2, 6], log_probs[3, 6]]]
    )

    @jax.jit
    def draw(key):
        corruption = corrupt(key, batch, IDS, config)
        other_masked = jnp.flip(corruption.masked, axis=1).astype(int)
        # hidden selects a row of the head: (slot, whether the other one is masked)
        hidden = jax.nn.one_hot(2 * jnp.arange(2) + other_masked, 4)
        loss, _ = objective(hidden, head, corruption, IDS, config)
        losses = jnp.asarray(slot_losses)[jnp.arange(2), other_masked] * corruption.masked
        return loss, losses.sum(axis=1) * corruption.weight / 2

    loss, per_row = draw(jax.random.key(11))
    p = 0.5 * (1 + config.level_floor)  # its mean
    alone, both = slot_losses.sum(axis=0)
    exact = ((1 - p) * alone + p * both) / 2
    error = np.std(per_row) / np.sqrt(num_rows)
    assert error < 0.05 * exact
    np.testing.assert_allclose(loss, np.mean(per_row), rtol=1e-4)
    assert abs(float(loss) - exact) < 4 * error
