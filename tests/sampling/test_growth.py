"""Blocks that are appended until a terminator comes or the limit is reached."""

import numpy as np

from jax_mdlm.sampling import AboveThreshold, SampleOptions, make_canvas
from jax_mdlm.sampling.loop import max_calls
from tests.sampling import oracle, standin
from tests.sampling.making import changed, make_options
from tests.sampling.oracle import run_fixed
from tests.sampling.standin import IDS

EOS, END = IDS.eos, IDS.terminator
PROMPTS = [[1, 2, 3, 4, 5, 6], [0], [2, 2]]


def options_with(**changes) -> SampleOptions:
    plain = {"length": 3, "limit": 9, "block_length": 3, "steps": 3, "ids": IDS}
    return make_options(**{**plain, "collapse": "slack_only", **changes})


def test_a_row_grows_until_its_text_is_closed():
    """Closed in the first block, in the second, never: each row gets what it needs."""
    text = [
        [1, END, 2, 3, 3, 3, 4, 4, 4],
        [1, 2, 3, 4, 5, EOS, 3, 3, 3],
        [1, 2, 3, 4, 5, 0, 1, 2, 3],
    ]
    state = run_fixed(text, options_with())
    want = [
        [1, END, 2, *[EOS] * 6],
        [1, 2, 3, 4, 5, EOS, *[EOS] * 3],
        [1, 2, 3, 4, 5, 0, 1, 2, 3],
    ]
    np.testing.assert_array_equal(state.canvas, want)
    at = np.asarray(state.committed_at)
    np.testing.assert_array_equal((at >= 0).sum(axis=1), [3, 6, 9])
    assert (at[0, 3:] == -1).all()
    assert (at[1, 6:] == -1).all()
    assert state.step == 9
    assert state.done.all()


def test_no_block_is_appended_once_all_texts_are_closed():
    text = [[1, END, 2, 3, 3, 3, 4, 4, 4], [EOS, 2, 3, 4, 5, 0, 3, 3, 3]]
    assert run_fixed(text, options_with()).step == 3
    # With the stop, the rows end at the second call.
    assert run_fixed(text, options_with(early_stop=True)).step == 2


def test_growth_starts_behind_the_last_visible_block():
    """Two blocks at first; a terminator in the first one does not take the second one away."""
    options = options_with(length=6, limit=12, steps=6)
    text = [[1, END, 2, 3, 4, 5, 0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 0, END, 1, 1, 2, 2, 2]]
    state = run_fixed(text, options)
    want = [[1, END, 2, 3, 4, 5, *[EOS] * 6], [1, 2, 3, 4, 5, 0, END, 1, 1, *[EOS] * 3]]
    np.testing.assert_array_equal(state.canvas, want)


def test_appended_blocks_take_the_share_without_the_remainder():
    """5 calls over two blocks: 3 and 2; every block behind them gets 2."""
    options = options_with(length=6, limit=12, steps=5, suppress_eos=True)
    state = run_fixed([[1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0]], options)
    at = np.asarray(state.committed_at[0]).reshape(4, 3)
    assert [len(set(block)) for block in at.tolist()] == [3, 2, 2, 2]
    assert state.step == 9
    canvas = make_canvas([[]], options, max_length=64)
    assert max_calls(options, canvas.region) == 9


def test_what_is_hidden_is_not_attended_to():
    """Up to the first appended block a row is decoded as if no more could come."""
    table = standin.tables(5)
    table.place[:, [END, EOS]] = -30
    options = options_with(length=6, limit=18, block_length=6, steps=6)
    plain = changed(options, limit=0)
    long, short = (
        make_canvas(PROMPTS, each, max_length=64, bucket=lambda n: n) for each in (options, plain)
    )
    assert long.tokens.shape[1] == short.tokens.shape[1] + 12
    got = oracle.run_jax(table, long, options)
    want = oracle.run_jax(table, short, plain)
    np.testing.assert_array_equal(got.canvas[:, :12], want.canvas)
    np.testing.assert_array_equal(got.committed_at[:, :12], want.committed_at)
    assert (got.step, want.step) == (18, 6)


def test_rows_that_fill_a_batch_up_do_not_grow():
    options = options_with(strategy=AboveThreshold(1e-6), suppress_eos=True)
    table = standin.tables(1)
    table.place[:, [END, EOS]] = -30
    canvas = make_canvas([[1], [2]], options, max_length=64, rows=4, bucket=lambda n: n)
    state = oracle.run_jax(table, canvas, options)
    assert state.step == 3
    assert (state.committed_at[:2, 1:] >= 0).all()
    np.testing.assert_array_equal(state.canvas[2:], canvas.tokens[2:])
    assert (state.committed_at[2:] == -1).all()


def test_the_limit_is_the_length_where_it_is_not_set():
    options = options_with(limit=0)
    canvas = make_canvas([[1]], options, max_length=64)
    assert canvas.region.length == canvas.region.limit == 3
    state = oracle.run_jax(standin.tables(0), canvas, options)
    assert state.step == 3
