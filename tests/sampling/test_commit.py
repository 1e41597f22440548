"""Proposals, scores and selections, each against NumPy or a case made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mdlm.sampling import AboveThreshold, AtRandom, ByConfidence, ByEntropy, ByMargin
from jax_mdlm.sampling.commit import Offer, propose, ranks

MASK = 4


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def draw_logits(seed: int = 0, shape: tuple[int, ...] = (2, 6, 7)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 2


def offer_of(confidence: list[list[float]]) -> Offer:
    rows = jnp.asarray(confidence)
    return Offer(
        tokens=jnp.zeros(rows.shape, jnp.int32),
        confidence=rows,
        logits=jnp.zeros((*rows.shape, 7)),
        mask_id=MASK,
    )


def keys(rows: int = 2) -> jax.Array:
    return jax.random.split(jax.random.key(0), rows)


def test_propose_without_noise_is_the_argmax_and_its_probability():
    logits = draw_logits()
    offer = propose(jnp.asarray(logits), keys(), temperature=0.0, mask_id=MASK)
    without_mask = logits.copy()
    without_mask[..., MASK] = -np.inf
    np.testing.assert_array_equal(offer.tokens, without_mask.argmax(-1))
    # The mask stays in the sum of the softmax.
    want = np.take_along_axis(softmax(logits), np.asarray(offer.tokens)[..., None], -1)[..., 0]
    np.testing.assert_allclose(offer.confidence, want, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 5.0])
def test_propose_never_offers_the_mask(temperature):
    logits = jnp.zeros((2, 200, 7)).at[..., MASK].set(30.0)
    offer = propose(logits, keys(), temperature=temperature, mask_id=MASK)
    assert not (offer.tokens == MASK).any()


def test_propose_draws_from_the_tempered_softmax():
    """Frequencies against softmax(logits / T) without the mask; the confidence is untempered."""
    temperature, slots = 0.7, 20_000
    row = draw_logits(1, (7,))
    logits = jnp.broadcast_to(jnp.asarray(row), (1, slots, 7))
    offer = propose(logits, keys(1), temperature=temperature, mask_id=MASK)
    tempered = row / temperature
    tempered[MASK] = -np.inf
    want = softmax(tempered)
    got = np.bincount(np.asarray(offer.tokens)[0], minlength=7) / slots
    np.testing.assert_allclose(got, want, atol=5 * (0.25 / slots) ** 0.5)
    np.testing.assert_allclose(
        offer.confidence[0], softmax(row)[np.asarray(offer.tokens)[0]], rtol=1e-5
    )


def test_propose_takes_the_lower_id_on_a_tie():
    offer = propose(jnp.zeros((1, 3, 7)), keys(1), temperature=0.0, mask_id=0)
    np.testing.assert_array_equal(offer.tokens, [[1, 1, 1]])


def test_scores():
    logits = draw_logits(2)
    p = softmax(logits)
    offer = propose(jnp.asarray(logits), keys(), temperature=0.0, mask_id=MASK)
    np.testing.assert_array_equal(ByConfidence().score(offer, keys()), offer.confidence)
    np.testing.assert_allclose(
        ByEntropy().score(offer, keys()), (p * np.log(p)).sum(-1), rtol=1e-5, atol=1e-6
    )
    rest = np.sort(np.delete(p, MASK, axis=-1), axis=-1)
    np.testing.assert_allclose(
        ByMargin().score(offer, keys()), rest[..., -1] - rest[..., -2], rtol=1e-4, atol=1e-6
    )


def test_entropy_of_a_certain_slot_is_zero_not_nan():
    logits = jnp.full((1, 1, 7), -jnp.inf).at[0, 0, 2].set(0.0)
    offer = propose(logits, keys(1), temperature=0.0, mask_id=MASK)
    assert ByEntropy().score(offer, keys(1)) == 0.0


def test_random_order_is_uniform_and_one_row_does_not_see_another():
    offer = offer_of([[0.0] * 4] * 3000)
    many = keys(3000)
    score = AtRandom().score(offer, many)
    first = np.bincount(np.asarray(score).argmax(-1), minlength=4) / 3000
    np.testing.assert_allclose(first, 0.25, atol=0.05)
    alone = AtRandom().score(offer_of([[0.0] * 4]), many[7:8])
    np.testing.assert_array_equal(alone[0], score[7])


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.sampled_from([0.0, -0.0, 0.5, 1.0, -np.inf]), min_size=8, max_size=8))
def test_ranks_sort_by_score_then_by_slot(values):
    want = sorted(range(8), key=lambda slot: (-values[slot], slot))
    got = np.argsort(np.asarray(ranks(jnp.asarray([values], jnp.float32))[0]))
    assert got.tolist() == want


@pytest.mark.parametrize(("calls_left", "count"), [(1, 5), (2, 3), (3, 2), (4, 2), (5, 1), (8, 1)])
def test_quota_takes_the_best_masked_slots(calls_left, count):
    """ceil(5 / calls left) of the five masked slots; the observed slot is the most confident."""
    confidence = [[0.1, 0.9, 0.3, 0.3, 0.2, 0.25]]
    masked = jnp.asarray([[True, False, True, True, True, True]])
    order = [2, 3, 5, 4, 0]  # the tie of 2 and 3 goes to 2
    offer = offer_of(confidence)
    chosen = ByConfidence().select(offer, offer.confidence, masked, jnp.asarray(calls_left))
    assert np.flatnonzero(chosen[0]).tolist() == sorted(order[:count])


def test_quota_of_a_row_without_masks_is_zero():
    offer = offer_of([[0.5, 0.6]])
    masked = jnp.zeros((1, 2), bool)
    assert not ByConfidence().select(offer, offer.confidence, masked, jnp.asarray(1)).any()


@pytest.mark.parametrize(
    ("threshold", "chosen"),
    [
        (0.95, [4]),  # none is confident enough: the best masked slot
        (0.5, [2, 4]),
        (0.3, [0, 2, 4]),  # 0.3 itself counts
    ],
)
def test_threshold(threshold, chosen):
    confidence = [[0.3, 0.99, 0.5, 0.2, 0.6]]
    masked = jnp.asarray([[True, False, True, True, True]])
    offer = offer_of(confidence)
    got = AboveThreshold(threshold).select(offer, offer.confidence, masked, jnp.asarray(1))
    assert np.flatnonzero(got[0]).tolist() == chosen


def test_threshold_with_another_order_still_measures_confidence():
    """The one slot that is forced is the best by `order`; the others by their probability."""
    offer = offer_of([[0.3, 0.4, 0.6]])
    score = jnp.asarray([[5.0, 1.0, 0.0]])
    masked = jnp.ones((1, 3), bool)
    strategy = AboveThreshold(0.5, order=ByEntropy())
    got = strategy.select(offer, score, masked, jnp.asarray(1))
    assert np.flatnonzero(got[0]).tolist() == [0, 2]


def test_threshold_of_a_row_without_masks_commits_nothing():
    offer = offer_of([[0.9, 0.9]])
    masked = jnp.zeros((1, 2), bool)
    assert not AboveThreshold(0.5).select(offer, offer.confidence, masked, jnp.asarray(1)).any()


def test_calls_of_a_block():
    """A quota never spreads over more calls than slots; a threshold may need one a slot."""
    assert ByConfidence().calls(jnp.asarray(5), 8) == 5
    assert ByConfidence().calls(jnp.asarray(50), 8) == 8
    assert AboveThreshold(0.5).calls(jnp.asarray(5), 8) == 8
