"""Prompts with masks in them: what is filled in, and what is left as it was given."""

import numpy as np
import pytest

from jax_mdlm.sampling import SampleOptions, make_canvas, response_tokens
from jax_mdlm.sampling.loop import max_calls
from tests.sampling import oracle, standin
from tests.sampling.making import make_options
from tests.sampling.oracle import run_fixed
from tests.sampling.standin import IDS

M, SLACK, PAD, EOS, END = IDS.mask, IDS.slack, IDS.pad, IDS.eos, IDS.terminator


def options_with(**changes) -> SampleOptions:
    plain = {"length": 6, "block_length": 6, "steps": 6, "ids": IDS, "collapse": "merge"}
    return make_options(**{**plain, **changes})


def test_gaps_are_filled_and_the_text_around_them_stays():
    state = run_fixed([[2, 0, 4, 0, 5, 0]], options_with(), prompts=[[1, 3, M, 1, M, 1, M, 1]])
    np.testing.assert_array_equal(state.canvas, [[1, 3, 2, 1, 4, 1, 5, 1]])
    np.testing.assert_array_equal(state.committed_at, [[-1, -1, 0, -1, 1, -1, 2, -1]])
    np.testing.assert_array_equal(state.given, [[1, 1, 0, 1, 0, 1, 0, 1]])
    assert state.step == 3


def test_given_neighbours_do_not_merge_and_slack_may_stand_in_a_gap():
    """Left of the gap, right of it, and inside: only two commits are a pair."""
    prompts = [[1, M, M, M, 2, 2]]
    state = run_fixed([[1, 1, 2, 2, 2, 2]], options_with(), prompts=prompts)
    assert state.canvas[0, :6].tolist() == [1, 1, SLACK, 2, 2, 2]
    region = np.asarray(state.canvas[0, 1:])
    assert response_tokens(region, options_with(), np.asarray(state.given[0, 1:])) == [1, 2, 2, 2]


def test_calls_follow_the_masks_of_each_row():
    """Rows with 4, 1 and 2 masks in six slots and three calls: ceil(masks / calls left) each."""
    prompts = [[M, M, M, M, 1, 1], [M, 1, 1, 1, 1, 1], [M, 1, 1, 1, M, 1]]
    state = run_fixed([[2, 3, 4, 5, 0, 0]] * 3, options_with(steps=3), prompts=prompts)
    want = [[0, 0, 1, 2, -1, -1], [0, -1, -1, -1, -1, -1], [0, -1, -1, -1, 1, -1]]
    np.testing.assert_array_equal(state.committed_at, want)


def test_a_region_longer_than_the_length_takes_the_share_of_each_block():
    """`steps` is for `length` slots: 3 calls for the first block, 2 for each behind it."""
    options = options_with(length=6, block_length=3, steps=5)
    canvas = make_canvas([[M] * 12], options, max_length=64)
    assert canvas.region.length == canvas.region.limit == 12
    state = run_fixed([[1, 2, 3, 4] * 3], options, prompts=[[M] * 12])
    at = np.asarray(state.committed_at[0]).reshape(4, 3)
    assert [len(set(block)) for block in at.tolist()] == [3, 2, 2, 2]
    assert state.step == 9 == max_calls(options, canvas.region)


def test_early_stop_waits_for_the_text_that_is_still_to_come():
    """A terminator in the first gap ends nothing; in the last gap it ends the row."""
    options = options_with(early_stop=True)
    state = run_fixed([[END, 0, 2, 0, 3, 4]], options, prompts=[[5, M, 1, M, 1, M, M]])
    assert state.canvas[0].tolist() == [5, END, 1, 2, 1, 3, 4]
    assert state.step == 4
    state = run_fixed([[2, 0, 3, 0, END, 4]], options, prompts=[[5, M, 1, M, 1, M, M]])
    assert state.canvas[0].tolist() == [5, 2, 1, 3, 1, END, EOS]
    np.testing.assert_array_equal(state.committed_at[0], [-1, 0, -1, 1, -1, 2, 2])
    assert state.step == 3


def test_padding_at_the_right_is_neither_filled_nor_seen():
    """A short row beside a long one gets what it gets in a canvas of its own."""
    options = options_with(temperature=0.7, early_stop=True)
    table = standin.tables(0)
    prompts = [[1, 2, M, M, 3, M, M, M, 4, M, M, M, M, 5], [0, M, 3, M]]
    both = make_canvas(prompts, options, max_length=64, bucket=lambda n: n)
    assert both.tokens.shape == (2, 14)
    assert (both.tokens[1, 5:] == PAD).all()
    together = oracle.run_jax(table, both, options)
    np.testing.assert_array_equal(together.canvas[1, 5:], both.tokens[1, 5:])
    alone = make_canvas(prompts[1:], options, max_length=64, bucket=lambda n: n)
    assert alone.tokens.shape == (1, 7)
    state = oracle.run_jax(table, alone, options, first_row=1)
    np.testing.assert_array_equal(state.canvas[0, :4], together.canvas[1, 1:5])


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_block_that_is_given_as_a_whole_is_stepped_over(cache):
    """It takes no call; the blocks around it are decoded."""
    options = options_with(length=3, block_length=3, steps=3, cache=cache)
    prompts = [[M, M, M, 1, 2, 3, M, M, M]]
    state = run_fixed([[1, 2, 3, 0, 0, 0, 4, 5, 0, 0, 0, 0]], options, prompts=prompts)
    assert state.canvas[0, :9].tolist() == [1, 2, 3, 1, 2, 3, 4, 5, 0]
    assert state.step == 6
