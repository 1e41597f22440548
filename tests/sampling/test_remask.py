"""Commits that are taken back: what stays, what is recorded, what is left alone."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mdlm.config import ConfigError
from jax_mdlm.containers import SampleState
from jax_mdlm.sampling import (
    AboveThreshold,
    AtRandom,
    ByFactor,
    SampleOptions,
    make_canvas,
)
from tests.sampling import oracle, standin
from tests.sampling.making import changed, make_options
from tests.sampling.standin import IDS, VOCABULARY

M, EOS, END, SLACK = IDS.mask, IDS.eos, IDS.terminator, IDS.slack


def options_with(**changes) -> SampleOptions:
    plain = {"length": 4, "block_length": 4, "steps": 4, "ids": IDS, "collapse": "slack_only"}
    return make_options(**{**plain, "remask": True, **changes})


@flax.struct.dataclass
class Script:
    """Offers `text[n]` with `strength[n]` while `n` masks are left in the row, one block."""

    text: np.ndarray  # [masks, W]; the first line is never read
    strength: np.ndarray

    def full(self, canvas: jax.Array, start: jax.Array, end: jax.Array) -> tuple[jax.Array, Any]:
        left = jnp.sum(canvas == M, axis=1)
        tokens, strength = jnp.asarray(self.text)[left], jnp.asarray(self.strength)[left]
        return jax.nn.one_hot(tokens, VOCABULARY) * strength[..., None], None

    def cached(self, cache: Any, canvas: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
        raise NotImplementedError


def run_script(
    lines: list[tuple[list[int], list[float]]], options: SampleOptions
) -> tuple[SampleState, list[list[int]]]:
    """`lines` from all masks to one; the final state, the row before each call and at the end."""
    lines = [*lines, lines[-1]][::-1]
    script = Script(*(np.asarray(part) for part in zip(*lines)))
    canvas = make_canvas([[]], options, max_length=64, bucket=lambda n: n)
    options = changed(options, trace=True)
    state = oracle.run_with(script, canvas, options)
    assert state.trace is not None
    return state, np.asarray(state.trace.frames[: state.step + 1, 0]).tolist()


def test_a_weak_commit_makes_room_for_a_stronger_offer():
    """Slot 0 is the best at first; then slots 1 and 2 are better than it was. It is drawn anew."""
    lines = [
        ([1, 0, 0, 0], [3, 1, 1, 1]),
        ([9, 2, 3, 0], [9, 5, 5, 1]),  # what is offered at a committed slot plays no part
        ([4, 9, 9, 5], [4, 0, 0, 7]),
        ([4, 9, 9, 9], [4, 0, 0, 0]),
    ]
    state, frames = run_script(lines, options_with())
    assert frames == [
        [M, M, M, M],
        [1, M, M, M],
        [M, 2, 3, M],
        [M, 2, 3, 5],
        [4, 2, 3, 5],
    ]
    np.testing.assert_array_equal(state.committed_at, [[3, 1, 1, 2]])
    # Without remasking the first commit stays.
    state, frames = run_script(lines, options_with(remask=False))
    assert frames[-1][0] == 1
    np.testing.assert_array_equal(state.committed_at[0, 0], 0)


def test_a_commit_competes_with_the_score_it_had():
    """Slot 0 was sure when it was committed: that the offers elsewhere fall changes nothing."""
    lines = [([1, 0, 0, 0], [9, 1, 1, 1])] + [([2, 2, 2, 2], [1, 4, 3, 2])] * 3
    state, frames = run_script(lines, options_with())
    assert [frame[0] for frame in frames] == [M, 1, 1, 1, 1]
    np.testing.assert_array_equal(state.committed_at, [[0, 1, 2, 3]])


def test_of_equal_scores_the_lower_slot_stays():
    lines = [([1, 1, 1, 1], [5, 5, 5, 5])] * 4
    _, frames = run_script(lines, options_with(steps=2))
    assert frames == [[M] * 4, [1, 1, M, M], [1, 1, 1, 1]]


def test_what_merged_can_be_taken_back():
    """Slot 1 became slack; its record is that of its commit, and a stronger offer replaces it."""
    lines = [
        ([1, 1, 0, 0], [6, 5, 1, 1]),
        ([0, 0, 0, 0], [1, 1, 1, 1]),  # never read: two commits in the first call
        ([9, 9, 3, 4], [0, 0, 7, 7]),
        ([9, 2, 9, 9], [0, 2, 0, 0]),
    ]
    _, frames = run_script(lines, options_with(steps=3, collapse="merge"))
    assert frames == [[M] * 4, [1, SLACK, M, M], [1, M, 3, 4], [1, 2, 3, 4]]


def test_a_slot_taken_back_and_filled_by_the_stop_is_fixed_by_that_call():
    """Call 1 takes slot 3 back; the terminator beside it ends the row and fills it with EOS."""
    lines = [
        ([1, 0, 0, 2], [9, 0, 0, 3]),
        ([0, 0, 0, 0], [1, 1, 1, 1]),  # never read: two commits in the first call
        ([9, END, 5, 9], [0, 9, 8, 0]),
        ([0, 0, 0, 0], [1, 1, 1, 1]),
    ]
    state, frames = run_script(lines, options_with(steps=3, early_stop=True))
    assert frames == [[M] * 4, [1, M, M, 2], [1, END, 5, EOS]]
    np.testing.assert_array_equal(state.committed_at, [[0, 1, 1, 1]])


def test_a_finished_row_is_left_alone():
    """Filled up by the stop with the record of no commit; another row goes on in the same block."""
    options = options_with(length=6, block_length=6, steps=6, early_stop=True)
    text = [[1, END, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]]
    state = oracle.run_fixed(text, options)
    np.testing.assert_array_equal(state.canvas, [[1, END, *[EOS] * 4], text[1]])
    np.testing.assert_array_equal(state.committed_at, [[0, 1, 1, 1, 1, 1], [0, 1, 2, 3, 4, 5]])


@pytest.mark.parametrize("strategy", [None, AtRandom()], ids=["confidence", "random"])
def test_the_number_of_committed_slots_is_that_of_the_quota(strategy):
    """Call by call, while slots come and go: 2, 4, 5, 6 in each block, and no earlier block."""
    changes = {} if strategy is None else {"strategy": strategy}
    options = options_with(
        length=12, block_length=6, steps=8, temperature=0.7, trace=True, **changes
    )
    canvas = make_canvas([[1, 2, 3], [0], []], options, max_length=64, bucket=lambda n: n)
    state = oracle.run_jax(standin.tables(0), canvas, options)
    assert state.trace is not None
    frames = np.asarray(state.trace.frames)
    count = (frames != M).sum(axis=2)
    want = [0, 2, 4, 5, 6, 8, 10, 11, 12]
    np.testing.assert_array_equal(count, np.repeat(np.asarray(want)[:, None], 3, axis=1))
    assert ((frames[:-1] != M) & (frames[1:] == M)).any()
    np.testing.assert_array_equal(frames[4:, :, :6], np.broadcast_to(frames[4, :, :6], (5, 3, 6)))


@pytest.mark.parametrize("strategy", [AboveThreshold(0.5), ByFactor(1.0)])
def test_remasking_needs_a_quota(strategy):
    with pytest.raises(ConfigError, match=r"sample\.remask counts what stays committed"):
        options_with(strategy=strategy)
