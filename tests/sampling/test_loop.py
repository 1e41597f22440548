"""The while_loop sampler against the Python loop, and the promises of the loop one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mdlm.sampling import (
    AboveThreshold,
    AtRandom,
    ByConfidence,
    SampleOptions,
    decode,
    init_state,
    make_canvas,
)
from tests.sampling import standin
from tests.sampling.standin import IDS, RULES

PROMPTS = [[1, 2, 3, 4, 5, 6], [0], [2, 2]]


def options_with(**changes) -> SampleOptions:
    # 7 calls on two blocks of 6 slots: 4 calls (2, 2, 1, 1 commits), then 3 (2, 2, 2).
    plain = {"length": 12, "block_length": 6, "steps": 7, "ids": IDS, "collapse": "slack_only"}
    return SampleOptions(**{**plain, **changes})


def check_against_oracle(
    options: SampleOptions, prompts: list[list[int]], seed: int, bucket=lambda n: n
) -> None:
    table = standin.tables(seed)
    canvas, valid = make_canvas(prompts, options, max_length=64, bucket=bucket)
    got = standin.run_jax(table, canvas, valid, options, seed)
    want = standin.run_reference(table, canvas, valid, options, seed)
    np.testing.assert_array_equal(got.canvas, want.canvas)
    np.testing.assert_array_equal(got.committed_at, want.committed_at)
    assert got.step == want.calls
    assert got.done.all()


# Every program takes half a second to compile: the stop, which no rule knows of, is crossed with
# all rules in the slow run only.
GRID = [
    pytest.param(
        rule,
        threshold,
        temperature,
        collapse,
        early_stop,
        marks=[pytest.mark.slow] if early_stop and rule != "confidence" else [],
        id=f"{rule}-{threshold=}-{temperature=}-{collapse}-{early_stop=}",
    )
    for rule in RULES
    for threshold in (0.0, 0.4)
    for temperature in (0.0, 0.7)
    for collapse in ("merge", "slack_only")
    for early_stop in (False, True)
]


@pytest.mark.parametrize(("rule", "threshold", "temperature", "collapse", "early_stop"), GRID)
def test_equals_the_python_loop(rule, threshold, temperature, collapse, early_stop):
    """Batch 3, left padding, uneven quota; the grid is whole."""
    strategy = AboveThreshold(threshold, order=RULES[rule]) if threshold else RULES[rule]
    options = options_with(
        strategy=strategy, temperature=temperature, collapse=collapse, early_stop=early_stop
    )
    for seed in range(3):
        check_against_oracle(options, PROMPTS, seed)


@pytest.mark.parametrize("collapse", ["merge", "slack_only"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("threshold", [0.0, 0.4], ids=["quota", "threshold"])
def test_equals_the_python_loop_alone(threshold, temperature, collapse):
    """Batch 1, without padding and with it."""
    strategy = AboveThreshold(threshold) if threshold else ByConfidence()
    options = options_with(strategy=strategy, temperature=temperature, collapse=collapse)
    check_against_oracle(options, PROMPTS[:1], seed=4)
    check_against_oracle(options, PROMPTS[1:2], seed=5, bucket=lambda n: 6)


@pytest.mark.parametrize(
    ("length", "block_length", "steps"),
    [
        (12, 12, 12),  # the whole canvas, one commit a call
        (12, 12, 5),  # 3, 3, 2, 2, 2
        (12, 12, 1),  # everything at once
        (12, 3, 9),  # blocks with 3, 2, 2, 2 calls
        (12, 1, 12),  # left to right
        (12, 4, 100),  # more steps than slots: one commit a call, 12 calls
        (1, 1, 1),
    ],
)
def test_equals_the_python_loop_for_any_quota(length, block_length, steps):
    options = options_with(length=length, block_length=block_length, steps=steps, collapse="merge")
    check_against_oracle(options, PROMPTS, seed=length + block_length + steps)


def test_oracle_meets_what_it_should():
    """The grid is worth something only if merges, stops and forbidden masks occur in it."""
    table = standin.tables(0)
    options = options_with(collapse="merge", early_stop=True)
    canvas, valid = make_canvas(PROMPTS, options, max_length=64)
    logits = standin.denoise_numpy(table, canvas, valid, canvas.shape[1] - 12)
    assert (logits[:, -12:].argmax(-1) == IDS.mask).any(), "the mask would win somewhere"
    merged = stopped = 0
    for seed in range(3):
        table = standin.tables(seed)
        plain = standin.run_reference(table, canvas, valid, options_with(), seed)
        merging = standin.run_reference(table, canvas, valid, options_with(collapse="merge"), seed)
        stopping = standin.run_reference(table, canvas, valid, options_with(early_stop=True), seed)
        merged += (plain.canvas != merging.canvas).any()
        stopped += (plain.committed_at != stopping.committed_at).any()
    assert merged
    assert stopped


def test_prompt_is_never_touched_and_everything_else_is_committed():
    options = options_with(collapse="merge", temperature=1.5)
    canvas, valid = make_canvas(PROMPTS, options, max_length=64)
    state = standin.run_jax(standin.tables(1), canvas, valid, options)
    np.testing.assert_array_equal(state.canvas[:, :-12], canvas[:, :-12])
    assert (state.committed_at[:, :-12] == -1).all()
    assert (state.committed_at[:, -12:] >= 0).all()
    assert not (state.canvas[:, -12:] == IDS.mask).any()


@pytest.mark.parametrize("collapse", ["merge", "slack_only"])
def test_number_of_commits_of_each_call(collapse):
    """The quota of LLaDA, block by block: a merge does not change it."""
    options = options_with(collapse=collapse)
    canvas, valid = make_canvas(PROMPTS, options, max_length=64)
    state = standin.run_jax(standin.tables(2), canvas, valid, options)
    assert state.step == 7
    for row in np.asarray(state.committed_at)[:, -12:]:
        assert np.bincount(row[:6], minlength=7).tolist() == [2, 2, 1, 1, 0, 0, 0]
        assert np.bincount(row[6:], minlength=7).tolist() == [0, 0, 0, 0, 2, 2, 2]


def test_rows_do_not_depend_on_their_batch():
    """Tokens of a row alone and among others, with noise and a threshold."""
    options = options_with(
        strategy=AboveThreshold(0.4, order=AtRandom()), temperature=0.7, collapse="merge"
    )
    table = standin.tables(3)
    canvas, valid = make_canvas(PROMPTS, options, max_length=64)
    together = standin.run_jax(table, canvas, valid, options, seed=9)
    for row in range(3):
        part = slice(row, row + 1)
        alone = standin.run_jax(table, canvas[part], valid[part], options, 9, first_row=row)
        np.testing.assert_array_equal(alone.canvas[0], together.canvas[row])


def test_threshold_one_commits_one_slot_a_call():
    options = options_with(strategy=AboveThreshold(1.0))
    canvas, valid = make_canvas(PROMPTS, options, max_length=64)
    state = standin.run_jax(standin.tables(4), canvas, valid, options)
    assert state.step == 12
    for row in np.asarray(state.committed_at)[:, -12:]:
        assert sorted(row) == list(range(12))


def test_filling_rows_cost_no_call():
    """A threshold that commits everything at once ends after one call per block."""
    options = options_with(strategy=AboveThreshold(1e-6))
    canvas, valid = make_canvas(PROMPTS, options, max_length=64, rows=5)
    state = standin.run_jax(standin.tables(5), canvas, valid, options)
    assert state.step == 2
    np.testing.assert_array_equal(state.canvas[3:], canvas[3:])
    assert (state.committed_at[3:] == -1).all()


def constant_denoiser(rows: list[list[int]]):
    """Offers `rows[b][slot]` with a confidence that falls from left to right."""
    tokens = jnp.asarray(rows, jnp.int32)

    def denoise(canvas: jax.Array, start: jax.Array) -> jax.Array:
        strength = 8.0 - 0.1 * jnp.arange(tokens.shape[1])
        logits = jax.nn.one_hot(tokens, standin.VOCABULARY) * strength[None, :, None]
        return logits

    return denoise


def run_constant(rows: list[list[int]], options: SampleOptions):
    keys = jax.random.split(jax.random.key(0), len(rows))
    canvas = jnp.full((len(rows), len(rows[0])), IDS.mask, jnp.int32)
    return decode(constant_denoiser(rows), init_state(canvas, keys, options), options)


def test_early_stop_fills_with_eos_and_ends_the_loop():
    """Committed from left to right: the terminator stands after three calls in both rows."""
    text = [[1, 2, 7, 3, 4, 5], [1, 8, 2, 3, 4, 5]]
    plain = options_with(length=6, steps=6)
    state = run_constant(text, plain)
    assert state.step == 6
    np.testing.assert_array_equal(state.canvas, text)
    stopping = options_with(length=6, steps=6, early_stop=True)
    state = run_constant(text, stopping)
    assert state.step == 3
    np.testing.assert_array_equal(state.canvas, [[1, 2, 7, 8, 8, 8], [1, 8, 8, 8, 8, 8]])
    np.testing.assert_array_equal(state.committed_at, [[0, 1, 2, 2, 2, 2], [0, 1, 1, 1, 1, 1]])


def test_early_stop_crosses_blocks_and_waits_for_masks_before_the_terminator():
    """The second block is never entered; a terminator behind a mask does not stop a row."""
    options = options_with(length=6, block_length=3, steps=6, early_stop=True)
    keys = jax.random.split(jax.random.key(0), 1)
    canvas = jnp.full((1, 6), IDS.mask, jnp.int32)
    strengths = jnp.asarray([1.0, 2.0, 9.0])  # the terminator at slot 2 comes first
    logits = jax.nn.one_hot(jnp.asarray([[1, 2, 7]]), standin.VOCABULARY) * strengths[:, None]
    state = decode(lambda canvas, start: logits, init_state(canvas, keys, options), options)
    assert state.step == 3
    np.testing.assert_array_equal(state.canvas, [[1, 2, 7, 8, 8, 8]])
    np.testing.assert_array_equal(state.committed_at, [[2, 1, 0, 2, 2, 2]])


def test_a_terminator_in_the_prompt_does_not_stop_a_row():
    options = options_with(length=6, steps=6, early_stop=True)
    canvas, valid = make_canvas([[1, 7, 8]], options, max_length=64)
    table = standin.tables(6)
    table.place[:, [IDS.terminator, IDS.eos]] = -30
    state = standin.run_jax(table, canvas, valid, options)
    assert state.step == 6


def test_the_order_of_commits_decides_what_merges():
    """`a a` merges when both stand; slack that came between keeps them apart."""
    options = options_with(length=3, block_length=3, steps=3, collapse="merge")
    state = run_constant([[1, 10, 1]], options)
    np.testing.assert_array_equal(state.canvas, [[1, 10, 1]])
    state = run_constant([[1, 1, 1]], options)
    # Slot 1 merges into slot 0 at call 1; slot 2 then stands beside slack and stays.
    np.testing.assert_array_equal(state.canvas, [[1, 10, 1]])
    np.testing.assert_array_equal(state.committed_at, [[0, 1, 2]])
    at_once = options_with(length=3, block_length=3, steps=1, collapse="merge")
    np.testing.assert_array_equal(run_constant([[1, 1, 1]], at_once).canvas, [[1, 10, 10]])
