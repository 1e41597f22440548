"""Scores and selections, each against the oracle's loop, NumPy, or a case made by hand."""

import functools
import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mdlm.config import SampleConfig
from jax_mdlm.sampling import (
    AboveThreshold,
    AtRandom,
    Boundary,
    ByConfidence,
    ByEntropy,
    ByFactor,
    ByMargin,
    Displace,
)
from jax_mdlm.sampling.commit import NAMED, Call, ranks, remask
from jax_mdlm.sampling.offer import Offer, propose
from tests.reference import sampler_row as reference
from tests.sampling.oracle import plain_settings
from tests.sampling.standin import IDS, VOCABULARY

SLOTS = 8  # one shape for all drawn cases: one compilation


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def offer_of(confidence: np.ndarray | jax.Array) -> Offer:
    return Offer(
        tokens=jnp.zeros(confidence.shape, jnp.int32),
        confidence=jnp.asarray(confidence, jnp.float32),
        logits=jnp.zeros((*confidence.shape, VOCABULARY)),
        last=jnp.zeros(confidence.shape, bool),
        mask_id=IDS.mask,
    )


RULES = {
    "quota": lambda value: ByConfidence(),
    "threshold": lambda value: AboveThreshold(value),
    "factor": lambda value: ByFactor(value),
}


@functools.partial(jax.jit, static_argnames="rule")
def _select(rule, value, confidence, score, masked, calls_left):
    nothing = jnp.zeros(())  # a selection reads of a call what is left
    call = Call(nothing, nothing, nothing, calls_left, masked.shape[1], IDS.mask, None)
    return RULES[rule](value).select(offer_of(confidence), score, masked, call)


def chosen(
    rule: str,
    value: float,
    confidence: Sequence[float],
    masked: Sequence[bool] | None = None,  # None: all
    score: Sequence[float] | None = None,  # None: the confidence
    calls_left: int = 1,
) -> list[int]:
    """The slots of one row that `rule` commits."""

    def row(values: Sequence[float] | Sequence[bool], dtype: type) -> np.ndarray:
        return np.asarray([[*values, *[0] * (SLOTS - len(values))]], dtype)

    masked = row([True] * len(confidence) if masked is None else masked, bool)
    certain, ranking = row(confidence, np.float32), row(score or confidence, np.float32)
    got = _select(rule, np.float32(value), certain, ranking, masked, calls_left)
    return np.flatnonzero(got[0]).tolist()


def keys(rows: int = 2) -> jax.Array:
    return jax.random.split(jax.random.key(0), rows)


# --- scores ---


def test_scores():
    logits = np.random.default_rng(2).normal(size=(2, 6, VOCABULARY)).astype(np.float32) * 2
    p = softmax(logits)

    @jax.jit
    def scores(logits: jax.Array) -> list[jax.Array]:
        offer = propose(logits, keys(), IDS)
        rules = ByConfidence(), ByEntropy(), ByMargin()
        return [offer.confidence, *(rule.score(offer, keys()) for rule in rules)]

    confidence, by_confidence, by_entropy, by_margin = scores(logits)
    np.testing.assert_array_equal(by_confidence, confidence)
    np.testing.assert_allclose(by_entropy, (p * np.log(p)).sum(-1), rtol=1e-5, atol=1e-6)
    rest = np.sort(np.delete(p, IDS.mask, axis=-1), axis=-1)
    np.testing.assert_allclose(by_margin, rest[..., -1] - rest[..., -2], rtol=1e-4, atol=1e-6)


def test_entropy_of_a_certain_slot_is_zero_not_nan():
    logits = np.full((1, 1, VOCABULARY), -np.inf, np.float32)
    logits[0, 0, 2] = 0
    score = jax.jit(lambda x: ByEntropy().score(propose(x, keys(1), IDS), keys(1)))
    assert score(logits) == 0.0


def test_random_order_is_uniform_and_one_row_does_not_see_another():
    many = keys(3000)
    score = jax.jit(lambda x, keys: AtRandom().score(offer_of(x), keys))
    together = score(np.zeros((3000, 4)), many)
    first = np.bincount(np.asarray(together).argmax(-1), minlength=4) / 3000
    np.testing.assert_allclose(first, 0.25, atol=0.05)
    alone = score(np.zeros((1, 4)), many[7:8])
    np.testing.assert_array_equal(alone[0], together[7])


# --- counts ---

sorted_places = jax.jit(ranks)


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.sampled_from([0.0, -0.0, 0.5, 1.0, -np.inf]), min_size=SLOTS, max_size=SLOTS))
def test_ranks_sort_by_score_then_by_slot(values):
    want = sorted(range(SLOTS), key=lambda slot: (-values[slot], slot))
    got = np.argsort(np.asarray(sorted_places(np.asarray([values], np.float32))[0]))
    assert got.tolist() == want


@pytest.mark.parametrize(("calls_left", "count"), [(1, 5), (2, 3), (3, 2), (4, 2), (5, 1), (8, 1)])
def test_quota_takes_the_best_masked_slots(calls_left, count):
    """ceil(5 / calls left) of the five masked slots; the observed slot is the most confident."""
    confidence = [0.1, 0.9, 0.3, 0.3, 0.2, 0.25]
    masked = [True, False, True, True, True, True]
    order = [2, 3, 5, 4, 0]  # the tie of 2 and 3 goes to 2
    got = chosen("quota", 0, confidence, masked, calls_left=calls_left)
    assert got == sorted(order[:count])


@pytest.mark.parametrize(
    ("threshold", "want"),
    [
        (0.95, [4]),  # none is confident enough: the best masked slot
        (0.5, [2, 4]),
        (0.3, [0, 2, 4]),  # 0.3 itself counts
    ],
)
def test_threshold(threshold, want):
    masked = [True, False, True, True, True]
    assert chosen("threshold", threshold, [0.3, 0.99, 0.5, 0.2, 0.6], masked) == want


@pytest.mark.parametrize(
    ("factor", "want"),
    [
        (0.05, [3]),  # 0.9375 does not reach 1 - 0.05 / 2: the best one in any case
        (0.375, [3, 4]),  # 0.875 reaches 1 - 0.375 / 3 just so, 0.75 not 1 - 0.375 / 4
        (1.0, [0, 3, 4]),  # 0.75 reaches 1 - 1 / 4 just so, 0.5 not 1 - 1 / 5
        (3.0, [0, 2, 3, 4]),
    ],
)
def test_factor(factor, want):
    """`1 - factor / (n + 1)` for the n-th best; an observed slot does not count as a place."""
    masked = [True, False, True, True, True]
    assert chosen("factor", factor, [0.75, 0.99, 0.5, 0.9375, 0.875], masked) == want


@settings(deadline=None)
@given(
    # Sixteenths: every comparison with 1 - factor / (n + 1) is decided the same way in float32.
    confidence=st.lists(st.integers(0, 16), min_size=SLOTS, max_size=SLOTS),
    score=st.lists(st.integers(0, 4), min_size=SLOTS, max_size=SLOTS),
    masked=st.lists(st.booleans(), min_size=SLOTS, max_size=SLOTS),
    factor=st.sampled_from([0.1, 0.55, 1.3, 2.7]),
    rule=st.sampled_from(["factor", "threshold", "quota"]),
    own_order=st.booleans(),
    calls_left=st.integers(1, 10),
)
def test_selections_equal_the_loop(confidence, score, masked, factor, rule, own_order, calls_left):
    """Factor and threshold, ordered by confidence or by another score, and the quota; with ties."""
    certain = [sixteenths / 16 for sixteenths in confidence]
    ranking = [float(value) for value in score] if own_order else certain
    value = factor / 3 if rule == "threshold" else factor
    offers = {
        slot: reference.Offer(0, certain[slot], ranking[slot])
        for slot in range(SLOTS)
        if masked[slot]
    }
    plain = plain_settings(**{rule: value} if rule != "quota" else {})
    want = reference.select(offers, -(-len(offers) // calls_left), plain)
    assert chosen(rule, value, certain, masked, ranking, calls_left) == sorted(want)


@pytest.mark.parametrize("rule", ["threshold", "factor"])
def test_another_order_still_measures_confidence(rule):
    """The one slot that is forced is the best by `order`; the others by their probability."""
    assert chosen(rule, 0.5, [0.3, 0.4, 0.8], score=[5, 1, 0]) == [0, 2]
    strategy = {"threshold": AboveThreshold, "factor": ByFactor}[rule](0.5, order=AtRandom())
    offer = offer_of(np.zeros((2, 4)))
    np.testing.assert_array_equal(strategy.score(offer, keys()), AtRandom().score(offer, keys()))


@pytest.mark.parametrize(("rule", "value"), [("threshold", 0.7), ("factor", 0.5)])
def test_another_order_forces_one_slot_only(rule, value):
    """None is confident enough: the pick of `order` alone, not the most confident one as well."""
    assert chosen(rule, value, [0.3, 0.4, 0.6], score=[5, 1, 0]) == [0]


@pytest.mark.parametrize("rule", list(RULES))
def test_a_row_without_masks_commits_nothing(rule):
    assert chosen(rule, 0.5, [0.9, 0.9], masked=[False, False]) == []


def test_calls_of_a_block():
    """A quota never spreads over more calls than slots; a threshold may need one a slot."""
    assert ByConfidence().calls(5, 8) == 5
    assert ByConfidence().calls(50, 8) == 8
    assert AboveThreshold(0.5).calls(5, 8) == 8
    assert ByFactor(0.5).calls(5, 8) == 8
    assert Displace().calls(50, 8) == 8
    assert Boundary().calls(50, Boundary().commits(8)) == 9


def test_every_name_of_the_settings_is_a_strategy():
    field = typing.get_type_hints(SampleConfig)["strategy"]
    assert set(typing.get_args(field)) == set(NAMED)


# --- remasking ---

kept = jax.jit(remask)


@settings(deadline=None)
@given(
    kinds=st.lists(st.sampled_from("mcg"), min_size=SLOTS, max_size=SLOTS),
    now=st.lists(st.integers(0, 4), min_size=SLOTS, max_size=SLOTS),
    then=st.lists(st.integers(0, 4), min_size=SLOTS, max_size=SLOTS),
    keep=st.integers(0, SLOTS),
)
def test_remask_equals_the_loop(kinds, now, then, keep):
    """`m` masked, `c` committed, `g` given; small whole scores, so that ties are common."""
    row = reference.Row(
        canvas=np.asarray([IDS.mask if kind == "m" else 1 for kind in kinds]),
        given=np.asarray([kind == "g" for kind in kinds]),
        committed_at=np.asarray([0 if kind == "c" else -1 for kind in kinds]),
        score=np.asarray(then, float),
    )
    masked, committed = row.canvas == IDS.mask, row.committed_at >= 0
    scores = np.asarray([now], np.float32), np.asarray([then], np.float32)
    got = kept(np.asarray([[keep]]), *scores, masked[None], committed[None])
    offers = {slot: reference.Offer(0, 0.0, now[slot]) for slot in np.flatnonzero(masked)}
    new = reference.revise(row, offers, range(SLOTS), keep, plain_settings())
    if masked.any():  # a finished row is left alone by the loop, not by the rule
        want = {*new, *np.flatnonzero(row.committed_at >= 0)}
        assert set(np.flatnonzero(got[0])) == want
