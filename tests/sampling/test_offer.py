"""What is offered at a slot: token and confidence, against NumPy, the oracle, and frequencies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mdlm.sampling import offer as sampling_offer
from jax_mdlm.sampling.offer import Offer, keep_top
from tests.reference import sampler_row as reference
from tests.sampling.oracle import RULES, plain_settings
from tests.sampling.standin import IDS, VOCABULARY

MASK, EOS, END = IDS.mask, IDS.eos, IDS.terminator


@functools.partial(jax.jit, static_argnames=("ids", "changes"))
def _propose(logits: jax.Array, keys: jax.Array, ids, changes) -> Offer:
    return sampling_offer.propose(logits, keys, ids, **dict(changes))


def propose(logits: np.ndarray | jax.Array, keys: jax.Array, **changes) -> Offer:
    """Compiled as a whole; op by op it takes longer."""
    return _propose(logits, keys, IDS, tuple(changes.items()))


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def draw_logits(seed: int = 0, shape: tuple[int, ...] = (2, 6, VOCABULARY)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 2


def keys(rows: int = 2) -> jax.Array:
    return jax.random.split(jax.random.key(0), rows)


def ruled_out(logits: np.ndarray, *tokens: int) -> np.ndarray:
    logits = logits.copy()
    logits[..., list(tokens)] = -np.inf
    return logits


def probability_of(tokens: jax.Array, logits: np.ndarray) -> np.ndarray:
    return np.take_along_axis(softmax(logits), np.asarray(tokens)[..., None], -1)[..., 0]


def test_without_noise_it_is_the_argmax_and_its_probability():
    logits = draw_logits()
    offer = propose(logits, keys())
    np.testing.assert_array_equal(offer.tokens, ruled_out(logits, MASK).argmax(-1))
    # The mask stays in the sum of the softmax.
    np.testing.assert_allclose(offer.confidence, probability_of(offer.tokens, logits), rtol=1e-6)
    assert not offer.last.any()


@pytest.mark.parametrize("temperature", [0.0, 0.7, 5.0])
def test_the_mask_is_never_offered(temperature):
    logits = jnp.zeros((2, 200, VOCABULARY)).at[..., MASK].set(30.0)
    offer = propose(logits, keys(), temperature=temperature)
    assert not (offer.tokens == MASK).any()


def test_the_lower_id_is_offered_on_a_tie():
    offer = propose(jnp.zeros((1, 3, VOCABULARY)), keys(1))
    np.testing.assert_array_equal(offer.tokens, [[0, 0, 0]])


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.6), (4, 0.6)], ids=["all", "k", "p", "k and p"]
)
def test_tokens_are_drawn_from_the_tempered_softmax_of_the_best(top_k, top_p):
    """Frequencies against softmax(kept(logits / T)); the confidence knows of neither."""
    temperature, slots = 0.7, 20_000
    row = draw_logits(1, (VOCABULARY,))
    logits = jnp.broadcast_to(jnp.asarray(row), (1, slots, VOCABULARY))
    offer = propose(logits, keys(1), temperature=temperature, top_k=top_k, top_p=top_p)
    want = softmax(reference.filtered(ruled_out(row, MASK) / temperature, top_k, top_p))
    got = np.bincount(np.asarray(offer.tokens)[0], minlength=VOCABULARY) / slots
    np.testing.assert_allclose(got, want, atol=5 * (0.25 / slots) ** 0.5)
    assert (got[want == 0] == 0).all()
    np.testing.assert_allclose(
        offer.confidence[0], softmax(row)[np.asarray(offer.tokens)[0]], rtol=1e-5
    )


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_suppressed_eos_is_as_if_it_did_not_exist(temperature):
    """Not offered, and not in the sum of any confidence; the terminator is."""
    logits = draw_logits(3, (2, 300, VOCABULARY))
    logits[..., EOS] += 4
    logits[..., END] += 2
    offer = propose(logits, keys(), temperature=temperature, suppress_eos=True)
    assert not (offer.tokens == EOS).any()
    assert (offer.tokens == END).any()
    want = probability_of(offer.tokens, ruled_out(logits, EOS))
    np.testing.assert_allclose(offer.confidence, want, rtol=2e-5)
    np.testing.assert_array_equal(offer.logits[..., EOS], -np.inf)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_deferred_eos_is_offered_with_confidence_zero(temperature):
    """The same tokens as without; scores are measured as if EOS and terminator did not exist."""
    logits = draw_logits(4, (2, 300, VOCABULARY))
    logits[..., [EOS, END]] += 2
    plain = propose(logits, keys(), temperature=temperature)
    offer = propose(logits, keys(), temperature=temperature, defer_eos=True)
    np.testing.assert_array_equal(offer.tokens, plain.tokens)
    closes = np.isin(offer.tokens, [EOS, END])
    assert 0 < closes.sum() < closes.size
    np.testing.assert_array_equal(offer.last, closes)
    want = probability_of(offer.tokens, ruled_out(logits, EOS, END))
    np.testing.assert_allclose(offer.confidence, want, rtol=2e-5)
    assert (np.asarray(offer.confidence)[closes] == 0).all()


@settings(deadline=None, max_examples=200)
@given(
    # Halves up to 3, so that ties are common; the mass of a set stays clear of top_p.
    halves=st.lists(st.integers(-4, 6), min_size=VOCABULARY, max_size=VOCABULARY),
    gone=st.integers(-1, VOCABULARY - 1),
    top_k=st.sampled_from([0, 1, 2, 5, VOCABULARY, VOCABULARY + 3]),
    top_p=st.sampled_from([0.001, 0.3, 0.7, 0.999, 1.0]),
)
def test_keep_top_equals_the_loop(halves, gone, top_k, top_p):
    logits = np.asarray(halves, np.float32) / 2
    if gone >= 0:
        logits[gone] = -np.inf
    got = keep_top(jnp.asarray(logits), top_k=top_k, top_p=top_p)
    np.testing.assert_array_equal(got, reference.filtered(logits, top_k, top_p))


def test_keep_top_of_the_most_probable_alone():
    """However little is asked for, one token stays; all that tie with it do too."""
    logits = jnp.asarray([[1.0, 3.0, 2.0], [3.0, 0.0, 3.0]])
    want = [[-np.inf, 3.0, -np.inf], [3.0, -np.inf, 3.0]]
    np.testing.assert_array_equal(keep_top(logits, top_k=1, top_p=1.0), want)
    np.testing.assert_array_equal(keep_top(logits, top_k=0, top_p=1e-6), want)


@pytest.mark.parametrize("rule", ["confidence", "entropy", "margin"])
@pytest.mark.parametrize("changes", [{}, {"suppress_eos": True}, {"defer_eos": True}], ids=str)
def test_offer_and_score_equal_the_loop(rule, changes):
    """The oracle's slot against `propose` and the score of each rule, option by option."""
    logits = draw_logits(5, (1, 40, VOCABULARY))
    logits[..., [EOS, END]] += 2
    offer = propose(logits, keys(1), **changes)
    score = np.asarray(RULES[rule].score(offer, keys(1)))[0]
    plain = plain_settings(rule=rule, **changes)
    for slot in range(40):
        want = reference.make_offer(logits[0, slot], plain, None, None)
        assert offer.tokens[0, slot] == want.token
        np.testing.assert_allclose(offer.confidence[0, slot], want.confidence, rtol=2e-5)
        if want.score != reference.LAST:  # given by the loop, see `Offer.last`
            np.testing.assert_allclose(score[slot], want.score, rtol=2e-4, atol=1e-6)


def test_confidence_near_one_keeps_its_order():
    """Large logits: 1 - p against float64 to a part in ten, where float32 can hold it."""
    rest = np.linspace(6, 14, 33)  # 1 - p from 2e-3 to 1e-6
    logits = np.zeros((1, 33, VOCABULARY), np.float32)
    logits[0, :, 0] = 120 + rest
    logits[0, :, 1] = 120
    offer = propose(logits, keys(1))
    wide = logits.astype(np.float64)
    wide = np.exp(wide - wide.max(-1, keepdims=True))
    want = 1 - wide[0, :, 0] / wide.sum(-1)[0]
    got = 1 - np.asarray(offer.confidence, np.float64)[0]
    np.testing.assert_allclose(got, want, rtol=0.1)
    assert (np.diff(np.asarray(offer.confidence)[0]) > 0).all()
