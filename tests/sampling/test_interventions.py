"""Interventions: the rules against loops, whole generations against the oracle, their rates."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mdlm.config import ConfigError
from jax_mdlm.sampling import (
    AboveThreshold,
    AtRandom,
    Boundary,
    ByConfidence,
    Displace,
    make_canvas,
    sample,
)
from jax_mdlm.sampling.interventions import carried, shift
from tests.reference.sampler_row import displace
from tests.sampling import oracle, standin
from tests.sampling.making import changed, make_options
from tests.sampling.standin import IDS

WIDTH = 7
options = make_options(length=12, block_length=6, steps=7, ids=IDS, collapse="slack_only")
PROMPTS = [[1, 2, 3], [4], [0, 0, 5, 1, 2]]


@functools.partial(jax.jit, static_argnums=0)
def land(displacement, keys, strength, chosen, masked):
    return displacement.land(keys, strength, chosen, masked)


@jax.jit
def draws(key):
    return jax.random.uniform(key, (2, WIDTH))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from("mco"), min_size=WIDTH, max_size=WIDTH),  # masked, chosen, observed
    st.sampled_from(["right", "left", "both"]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 10_000),
)
def test_landing_is_the_loop(kinds, direction, strength, seed):
    chosen = np.array([[kind == "c" for kind in kinds]])
    masked = np.array([[kind != "o" for kind in kinds]])
    key = jax.random.key(seed)
    landing = np.asarray(land(Displace(direction=direction), key[None], strength, chosen, masked))
    slip, way = np.asarray(draws(key))
    ways = {
        "right": lambda at: 1,
        "left": lambda at: -1,
        "both": lambda at: 1 if way[at] < 0.5 else -1,
    }
    slips = {at: ways[direction](at) for at in range(WIDTH) if slip[at] < strength}
    slots = [at for at in range(WIDTH) if chosen[0, at]]
    expected = displace(slots, set(np.flatnonzero(masked[0])), slips)
    assert {at: at + landing[0, at] for at in slots} == expected
    assert not landing[~chosen].any()

    values = 100 + np.arange(WIDTH)[None]
    written = np.asarray(carried(np.zeros((1, WIDTH), int), values, landing, chosen))
    assert {int(slot): int(written[0, slot] - 100) for slot in np.flatnonzero(written)} == {
        slot: at for at, slot in expected.items()
    }


def test_a_shift_by_hand():
    slots = np.arange(10).reshape(2, 5)
    found = shift(slots, np.array([1, 5]), np.int32(4), -7)
    assert found.tolist() == [[0, -7, 1, 2, 4], [5, 6, 7, 8, 9]]
    assert shift(slots, np.array([0, 3]), np.int32(5), 0).tolist() == [
        [0, 0, 1, 2, 3],
        [5, 6, 7, 0, 8],
    ]


INTERVENTIONS = [
    Displace(),
    Displace(direction="left"),
    Displace(direction="both"),
    Boundary(share=0.0),
    Boundary(share=0.4),
    Boundary(share=0.9),
]


def around(plain, intervention):
    """The options with their strategy inside of the intervention."""
    return changed(plain, strategy=dataclasses.replace(intervention, inner=plain.strategy))


@pytest.mark.parametrize("intervention", INTERVENTIONS, ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"strategy": AtRandom(), "steps": 24, "block_length": 4, "collapse": "merge"},
        {"strategy": AboveThreshold(0.3), "early_stop": True},
        {"cache": "prefix", "strategy": AboveThreshold(0.4), "block_length": 4},
        *(
            pytest.param(changes, marks=pytest.mark.slow)
            for changes in [
                {"collapse": "merge", "early_stop": True},
                {"block_length": 12, "steps": 5, "temperature": 0.8},
                {"strategy": AboveThreshold(0.9, ByConfidence())},
                {"limit": 24, "early_stop": True},
                {"cache": "dual"},
                {"guidance": 1.0},
            ]
        ),
    ],
    ids=str,
)
def test_a_generation_is_the_oracles(intervention, changes):
    plain = changed(options, trace=True, **changes)
    own = around(plain, intervention)
    disturbed = 0
    for seed in range(3):
        table = standin.tables(seed)
        canvas = make_canvas(PROMPTS, own, max_length=64)
        found = oracle.run_jax(table, canvas, own, seed=seed, strength=0.5)
        expected = oracle.run_reference(table, canvas, own, seed=seed, strength=0.5)
        np.testing.assert_array_equal(found.canvas, expected.canvas)
        np.testing.assert_array_equal(found.committed_at, expected.committed_at)
        assert int(found.step) == expected.calls
        assert not np.any(np.asarray(found.canvas)[:, canvas.region.start :] == IDS.mask)
        undisturbed = oracle.run_jax(table, canvas, plain, seed=seed)
        disturbed += np.any(np.asarray(undisturbed.canvas) != np.asarray(found.canvas))
    # Where a call or two of a block commit all, late boundaries find nothing left to fill.
    assert disturbed or isinstance(intervention, Boundary)


@pytest.mark.parametrize("intervention", INTERVENTIONS, ids=str)
def test_strength_zero_is_no_intervention(intervention):
    base = changed(options, steps=8)
    own = around(base, intervention)
    table, canvas = standin.tables(1), make_canvas(PROMPTS, own, max_length=64)
    plain = oracle.run_jax(table, canvas, base)
    for name in ("canvas", "committed_at", "step"):
        found = getattr(oracle.run_jax(table, canvas, own, strength=0.0), name)
        np.testing.assert_array_equal(found, getattr(plain, name))


def test_one_call_displaces_as_many_as_the_strength_says():
    """Tokens whose neighbour is free: a binomial share of them is moved."""
    chosen = np.tile([True, False], 500)[None]
    masked = np.ones_like(chosen)
    for strength in (0.1, 0.4):
        landing = Displace().land(jax.random.key(1)[None], np.float32(strength), chosen, masked)
        share = float(np.sum(np.asarray(landing) == 1)) / 500
        assert share == pytest.approx(strength, abs=4 * np.sqrt(strength / 500))


def test_strength_is_no_constant_of_the_program():
    """A curve is one compiled program."""
    own = changed(options, strategy=Displace(), steps=9)
    canvas = make_canvas(PROMPTS, own, max_length=64)
    oracle.run_jax(standin.tables(0), canvas, own, strength=0.1)
    before = oracle._run._cache_size()
    oracle.run_jax(standin.tables(0), canvas, own, strength=0.9)
    assert oracle._run._cache_size() == before


def test_a_boundary_leaves_text_of_the_caller_alone():
    own = changed(options, strategy=Boundary(share=0.0), steps=8)
    prompts = [[1, IDS.mask, IDS.mask, IDS.mask, 2, IDS.mask, 3]]
    canvas = make_canvas(prompts, own, max_length=64)
    found = oracle.run_jax(standin.tables(2), canvas, own, strength=1.0)
    given_slots = oracle.given_of(canvas)
    np.testing.assert_array_equal(np.asarray(found.canvas)[given_slots], canvas.tokens[given_slots])


def test_the_trace_of_a_boundary_holds_every_call():
    """Where steps allow it, a block of W slots takes W + 1 calls: a mask opens once more."""
    own = changed(options, strategy=Boundary(share=0.0), block_length=4, steps=24, trace=True)
    canvas = make_canvas(PROMPTS, own, max_length=64)
    state = oracle.run_jax(standin.tables(1), canvas, own, strength=1.0)
    assert state.step > 12
    last = np.asarray(state.trace.frames)[int(state.step)]
    np.testing.assert_array_equal(last, np.asarray(state.canvas)[:, canvas.region.start :])


def test_refusals():
    with pytest.raises(ConfigError, match="sample.remask to false"):
        changed(options, strategy=Displace(), remask=True)
    with pytest.raises(ConfigError, match=r"share of a boundary must lie in \[0, 1\), got 1.5"):
        Boundary(share=1.5)
    with pytest.raises(ConfigError, match="must give each of the 2 blocks two, got 3"):
        changed(options, strategy=Boundary(), steps=3)
    with pytest.raises(ConfigError, match=r"wraps a plain strategy, got Displace\(inner=ByConf"):
        Boundary(Displace())
    config = standin_config()
    with pytest.raises(ConfigError, match=r"at 0 without an intervention, got 0.1"):
        sample({}, config, [[1]], options, jax.random.key(0), strength=0.1)
    own = changed(options, strategy=Displace())
    with pytest.raises(ConfigError, match=r"strength must lie in \[0, 1\].*got 1.1"):
        sample({}, config, [[1]], own, jax.random.key(0), strength=1.1)


def standin_config():
    from jax_mdlm.config import ModelConfig

    return ModelConfig(vocab_size=12, max_length=64)
