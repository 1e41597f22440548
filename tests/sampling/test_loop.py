"""The promises of the loop, one by one; `test_grid` holds it against the Python loop."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jax_mdlm.config import ConfigError
from jax_mdlm.sampling import (
    AboveThreshold,
    AtRandom,
    ByFactor,
    Displace,
    SampleOptions,
    Strategy,
    make_canvas,
)
from jax_mdlm.sampling.loop import init_state, max_calls
from tests.sampling import oracle, standin
from tests.sampling.making import changed, make_options
from tests.sampling.oracle import run_fixed
from tests.sampling.standin import IDS

PROMPTS = [[1, 2, 3, 4, 5, 6], [0], [2, 2]]


def options_with(**changes) -> SampleOptions:
    # 7 calls on two blocks of 6 slots: 4 calls (2, 2, 1, 1 commits), then 3 (2, 2, 2).
    plain = {"length": 12, "block_length": 6, "steps": 7, "ids": IDS, "collapse": "slack_only"}
    return make_options(**{**plain, **changes})


# The program of `test_grid`'s first case: compiled once for both.
NOISY = options_with(collapse="merge", temperature=0.7)


def canvas_of(options: SampleOptions, prompts=PROMPTS, rows: int | None = None):
    return make_canvas(prompts, options, max_length=64, rows=rows, bucket=lambda n: n)


@pytest.mark.parametrize(
    ("length", "block_length", "steps"),
    [
        (12, 12, 5),  # the whole canvas: 3, 3, 2, 2, 2 commits
        (12, 3, 9),  # blocks with 3, 2, 2, 2 calls
        (12, 4, 100),  # more steps than slots: one commit a call, 12 calls
        (1, 1, 1),
        pytest.param(12, 12, 12, marks=pytest.mark.slow),  # one commit a call
        pytest.param(12, 12, 1, marks=pytest.mark.slow),  # everything at once
        pytest.param(12, 1, 12, marks=pytest.mark.slow),  # left to right
    ],
)
def test_equals_the_python_loop_for_any_quota(length, block_length, steps):
    options = options_with(length=length, block_length=block_length, steps=steps, collapse="merge")
    canvas, seed = canvas_of(options), length + block_length + steps
    got = oracle.run_jax(standin.tables(seed), canvas, options, seed)
    want = oracle.run_reference(standin.tables(seed), canvas, options, seed)
    np.testing.assert_array_equal(got.canvas, want.canvas)
    np.testing.assert_array_equal(got.committed_at, want.committed_at)
    assert got.step == want.calls == max_calls(options, canvas.region)


def test_prompt_is_never_touched_and_everything_else_is_committed():
    canvas = canvas_of(NOISY)
    state = oracle.run_jax(standin.tables(1), canvas, NOISY)
    np.testing.assert_array_equal(state.canvas[:, :-12], canvas.tokens[:, :-12])
    np.testing.assert_array_equal(state.committed_at >= 0, canvas.tokens == IDS.mask)
    assert not (state.canvas == IDS.mask).any()


def test_number_of_commits_of_each_call():
    """The quota of LLaDA, block by block: a merge does not change it."""
    state = oracle.run_jax(standin.tables(2), canvas_of(NOISY), NOISY)
    assert (state.canvas == IDS.slack).any()
    assert state.step == 7
    for row in np.asarray(state.committed_at)[:, -12:]:
        assert np.bincount(row[:6], minlength=7).tolist() == [2, 2, 1, 1, 0, 0, 0]
        assert np.bincount(row[6:], minlength=7).tolist() == [0, 0, 0, 0, 2, 2, 2]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {"strategy": AboveThreshold(0.4, order=AtRandom()), "temperature": 0.7},
            marks=pytest.mark.slow,
        ),
        {"length": 6, "limit": 18, "steps": 4, "cache": "dual", "temperature": 0.7},
    ],
    ids=["threshold", "growth"],
)
def test_rows_do_not_depend_on_their_batch(changes):
    """Tokens of a row alone and among others, whatever number of calls the others take."""
    options = options_with(**changes, collapse="merge", early_stop=True)
    table = standin.tables(5)
    together = oracle.run_jax(table, canvas_of(options), options, seed=9)
    for row, prompt in enumerate(PROMPTS):
        # Of one width, so that all three are one program; less padding is a matter of the model.
        canvas = make_canvas([prompt], options, max_length=64, bucket=lambda n: 6)
        alone = oracle.run_jax(table, canvas, options, seed=9, first_row=row)
        np.testing.assert_array_equal(alone.canvas[0], together.canvas[row])


@dataclasses.dataclass(frozen=True)
class FromTheLeft(Strategy):
    """A stranger's: the lowest masked slot first, and a count of its calls by row."""

    def score(self, offer, key):
        return -jnp.arange(offer.tokens.shape[1], dtype=jnp.float32) + 0 * offer.confidence

    def select(self, offer, score, masked, call):
        return masked & (score == jnp.max(jnp.where(masked, score, -jnp.inf), 1, keepdims=True))

    def begin(self, rows, strength):
        return jnp.zeros(rows, jnp.int32)

    def after(self, state, call):
        return dataclasses.replace(state, own=state.own + 1)


@pytest.mark.parametrize("disturbed", [False, True])
def test_a_strategy_of_ones_own_is_passed_and_keeps_what_it_likes(disturbed):
    own = Displace(FromTheLeft()) if disturbed else FromTheLeft()
    options = options_with(strategy=own)
    canvas = canvas_of(options)
    state = oracle.run_jax(standin.tables(3), canvas, options)
    kept = state.own.inner if disturbed else state.own
    assert state.step == max_calls(options, canvas.region) == 12
    assert kept.tolist() == [12, 12, 12]
    for row in np.asarray(state.committed_at)[:, canvas.region.start :]:
        assert row.tolist() == list(range(12))
    with pytest.raises(ConfigError, match=r"sample\.remask"):
        changed(options, remask=True)


def test_a_decoding_in_parts_is_the_decoding_at_once():
    """`until` in the middle of blocks, on their edges, twice the same, and past the end."""
    options = options_with(
        length=6, limit=18, steps=4, temperature=0.7, early_stop=True, cache="dual", trace=True
    )
    table, canvas = standin.tables(5), canvas_of(options)
    empty = jnp.zeros(canvas.tokens.shape, jnp.int32)
    state = init_state(
        jnp.asarray(canvas.tokens),
        jnp.asarray(oracle.given_of(canvas)),
        oracle.row_keys(0, 3),
        options,
        canvas.region,
        (empty, empty),
    )
    whole = oracle.advance(table, canvas.valid, state, options, jnp.asarray(100))
    assert whole.step > 4
    assert whole.done.all()
    for until in (1, 3, 3, 4, 100):
        state = oracle.advance(table, canvas.valid, state, options, jnp.asarray(until))
        assert state.step == min(until, int(whole.step))
    for name in ("canvas", "committed_at", "done", "block", "block_step"):
        np.testing.assert_array_equal(getattr(state, name), getattr(whole, name), err_msg=name)
    assert state.trace is not None
    assert whole.trace is not None
    np.testing.assert_array_equal(state.trace.frames, whole.trace.frames)
    np.testing.assert_array_equal(state.trace.confidence, whole.trace.confidence)


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(AboveThreshold(1.0), marks=pytest.mark.slow),
        pytest.param(ByFactor(1e-6), marks=pytest.mark.slow),
    ],
)
def test_a_strict_rule_commits_one_slot_a_call(strategy):
    options = options_with(strategy=strategy)
    state = oracle.run_jax(standin.tables(4), canvas_of(options), options)
    assert state.step == 12
    for row in np.asarray(state.committed_at)[:, -12:]:
        assert sorted(row) == list(range(12))


@pytest.mark.parametrize(
    "strategy", [AboveThreshold(1e-6), pytest.param(ByFactor(100.0), marks=pytest.mark.slow)]
)
def test_filling_rows_cost_no_call(strategy):
    """A rule that commits everything at once ends after one call per block."""
    options = options_with(strategy=strategy)
    canvas = canvas_of(options, rows=5)
    state = oracle.run_jax(standin.tables(5), canvas, options)
    assert state.step == 2
    np.testing.assert_array_equal(state.canvas[3:], canvas.tokens[3:])
    assert (state.committed_at[3:] == -1).all()


def test_without_a_cache_nothing_is_carried_for_one():
    state = oracle.run_jax(standin.tables(0), canvas_of(NOISY), NOISY)
    assert (state.cache, state.score, state.trace) == (None, None, None)


# --- early stop ---


def test_early_stop_fills_with_eos_and_ends_the_loop():
    """Committed from left to right: the terminator stands after three calls in both rows."""
    text = [[1, 2, 7, 3, 4, 5], [1, 8, 2, 3, 4, 5]]
    state = run_fixed(text, options_with(length=6, steps=6, early_stop=True))
    assert state.step == 3
    np.testing.assert_array_equal(state.canvas, [[1, 2, 7, 8, 8, 8], [1, 8, 8, 8, 8, 8]])
    np.testing.assert_array_equal(state.committed_at, [[0, 1, 2, 2, 2, 2], [0, 1, 1, 1, 1, 1]])


def test_early_stop_crosses_blocks_and_waits_for_masks_before_the_terminator():
    """The second block is never entered; a terminator behind a mask does not stop a row."""
    options = options_with(length=6, block_length=3, steps=6, early_stop=True)
    # The terminator at slot 2 comes first.
    state = run_fixed([[1, 2, 7, 3, 3, 3]], options, strength=[1, 2, 9, 9, 9, 9])
    assert state.step == 3
    np.testing.assert_array_equal(state.canvas, [[1, 2, 7, 8, 8, 8]])
    np.testing.assert_array_equal(state.committed_at, [[2, 1, 0, 2, 2, 2]])


def test_a_terminator_in_the_prompt_does_not_stop_a_row():
    options = options_with(length=6, steps=6, early_stop=True)
    state = run_fixed([[1, 2, 3, 4, 5, 0]], options, prompts=[[1, 7, 8]])
    assert state.step == 6


# --- merge ---


def test_the_order_of_commits_decides_what_merges():
    """`a a` merges when both stand; slack that came between keeps them apart."""
    options = options_with(length=3, block_length=3, steps=3, collapse="merge")
    state = run_fixed([[1, 10, 1]], options)
    np.testing.assert_array_equal(state.canvas, [[1, 10, 1]])
    state = run_fixed([[1, 1, 1]], options)
    # Slot 1 merges into slot 0 at call 1; slot 2 then stands beside slack and stays.
    np.testing.assert_array_equal(state.canvas, [[1, 10, 1]])
    np.testing.assert_array_equal(state.committed_at, [[0, 1, 2]])
    at_once = options_with(length=3, block_length=3, steps=1, collapse="merge")
    np.testing.assert_array_equal(run_fixed([[1, 1, 1]], at_once).canvas, [[1, 10, 10]])


# --- end of text ---


def test_deferred_eos_comes_last_however_sure_it_is():
    """EOS and terminator are the strongest offers; they wait, and come from the left."""
    text, strength = [[8, 1, 7, 2, 3, 8]], [9, 4, 9, 3, 2, 9]
    state = run_fixed(text, options_with(length=6, steps=6, defer_eos=True), strength)
    np.testing.assert_array_equal(state.canvas, text)
    np.testing.assert_array_equal(state.committed_at, [[3, 0, 4, 1, 2, 5]])


def test_suppressed_eos_never_appears_but_as_the_filling_behind_a_terminator():
    options = options_with(length=6, steps=6, suppress_eos=True, early_stop=True)
    state = run_fixed([[8, 1, 7, 3, 3, 3], [8, 8, 8, 8, 8, 8]], options, [1, 9, 8, 0, 0, 0])
    # Where EOS was the only offer all others tie, for slot and token: the lowest one.
    np.testing.assert_array_equal(state.canvas, [[0, 1, 7, 8, 8, 8], [0, 0, 0, 0, 0, 0]])


def test_a_trace_replays_the_generation():
    """A frame before the first call and after each; confidence where something was offered."""
    options = options_with(length=6, block_length=3, steps=6, early_stop=True, trace=True)
    state = run_fixed([[1, 2, 3, 7, 4, 5]], options)
    assert state.trace is not None
    want = [
        [11, 11, 11, 11, 11, 11],
        [1, 11, 11, 11, 11, 11],
        [1, 2, 11, 11, 11, 11],
        [1, 2, 3, 11, 11, 11],
        [1, 2, 3, 7, 8, 8],
        [0] * 6,
        [0] * 6,
    ]
    np.testing.assert_array_equal(state.trace.frames[:, 0], want)
    offered = [[1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]
    np.testing.assert_array_equal(state.trace.confidence[:4, 0] > 0, np.asarray(offered, bool))
    # e^8 against eleven times e^0
    np.testing.assert_allclose(
        state.trace.confidence[0, 0, 0], np.exp(8) / (np.exp(8) + 11), rtol=1e-5
    )
    assert not jnp.any(state.trace.confidence[4:])
