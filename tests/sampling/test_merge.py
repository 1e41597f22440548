"""The merge rule and the stop rule: one hand-made case per clause, then the oracle's loop."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mdlm.sampling import loop
from tests.reference import sampler_row as reference
from tests.sampling.oracle import plain_settings
from tests.sampling.standin import IDS

MASK, SLACK, PAD, EOS, END = IDS.mask, IDS.slack, IDS.pad, IDS.eos, IDS.terminator
HEADER = 6  # in IDS.never_merged
merge, stop_at_terminator, closings = (
    jax.jit(rule, static_argnames="ids")
    for rule in (loop.merge, loop.stop_at_terminator, loop.closings)
)


SLOTS = 10  # one shape for all cases: one compilation


def row_of(tokens: list[int]) -> np.ndarray:
    """[1, 10]; filled up with padding."""
    return np.asarray([tokens + [PAD] * (SLOTS - len(tokens))])


def slots_of(kinds: str, wanted: str) -> np.ndarray:
    """bool [1, 10]; `g` given by the caller, `c` committed, `m` masked, `p` padding."""
    return np.asarray([[letter == wanted for letter in kinds.ljust(SLOTS, "p")]])


@pytest.mark.parametrize(
    ("row", "kinds", "want"),
    [
        pytest.param([1, 1], "cc", [1, SLACK], id="the right-hand one of a pair"),
        pytest.param([1, 1, 1], "ccc", [1, SLACK, SLACK], id="all pairs at once"),
        pytest.param([1, 1, 2, 2], "cccc", [1, SLACK, 2, SLACK], id="two pairs"),
        pytest.param([1, SLACK, 1], "ccc", [1, SLACK, 1], id="slack separates"),
        pytest.param([1, MASK, 1], "cmc", [1, MASK, 1], id="a mask separates"),
        pytest.param([MASK, MASK], "mm", [MASK, MASK], id="masks are no pair"),
        pytest.param([SLACK, SLACK], "cc", [SLACK, SLACK], id="slack stays slack"),
        pytest.param([1, 1], "gc", [1, 1], id="never across the prompt's edge"),
        pytest.param([1, 1, 1], "gcc", [1, 1, SLACK], id="behind the prompt's edge"),
        pytest.param([1, 1], "gg", [1, 1], id="never inside the prompt"),
        pytest.param([2, 1, 1], "gcg", [2, 1, 1], id="never a slot the caller gave"),
        pytest.param([1, 1, 1], "cgc", [1, 1, 1], id="given text in the middle"),
        pytest.param([EOS, EOS], "cc", [EOS, EOS], id="eos"),
        pytest.param([END, END], "cc", [END, END], id="terminator"),
        pytest.param([PAD, PAD], "cc", [PAD, PAD], id="padding"),
        pytest.param([HEADER, HEADER], "cc", [HEADER, HEADER], id="other special tokens"),
        pytest.param([PAD, PAD, 3, 3], "ppcc", [PAD, PAD, 3, SLACK], id="left padding"),
    ],
)
def test_merge(row, kinds, want):
    got = merge(row_of(row), slots_of(kinds, "c"), ids=IDS)
    np.testing.assert_array_equal(got, row_of(want))


def test_merge_keeps_rows_apart():
    got = merge(np.asarray([[2, 1], [1, 2]]), np.ones((2, 2), bool), ids=IDS)
    np.testing.assert_array_equal(got, [[2, 1], [1, 2]])


@pytest.mark.parametrize(
    ("row", "kinds", "want"),
    [
        pytest.param([1, END, MASK], "ccm", [1, END, EOS], id="terminator"),
        pytest.param([1, EOS, MASK], "ccm", [1, EOS, EOS], id="eos"),
        pytest.param([MASK, END, MASK], "mcm", [MASK, END, MASK], id="a mask before it"),
        pytest.param([END, 2, MASK], "gcm", [END, 2, MASK], id="one that the caller gave"),
        pytest.param([END, 2, MASK], "ccm", [END, 2, EOS], id="text behind it stays"),
        pytest.param([1, 2, MASK], "ccm", [1, 2, MASK], id="none"),
        pytest.param([END, MASK, END, MASK], "cmcm", [END, EOS, END, EOS], id="the first counts"),
        pytest.param([END, MASK, 2, MASK], "cmgm", [END, MASK, 2, MASK], id="text yet to come"),
        pytest.param([END, 2, END, MASK], "cgcm", [END, 2, END, EOS], id="behind all given text"),
        pytest.param([END, MASK, PAD], "cmp", [END, EOS, PAD], id="right padding is no text"),
    ],
)
def test_stop_at_terminator(row, kinds, want):
    got = stop_at_terminator(row_of(row), slots_of(kinds, "c"), slots_of(kinds, "g"), ids=IDS)
    np.testing.assert_array_equal(got, row_of(want))


def test_closings():
    got = closings(row_of([END, EOS, 1, END, EOS, PAD]), slots_of("cccgmc", "c"), ids=IDS)
    assert np.flatnonzero(got[0]).tolist() == [0, 1]


# Committed or given slots of any token, and masks.
SLOT = st.one_of(
    st.tuples(st.sampled_from("cg"), st.sampled_from([0, 1, 1, SLACK, EOS, END, HEADER])),
    st.just(("m", MASK)),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(SLOT, min_size=SLOTS, max_size=SLOTS))
def test_both_equal_the_loop(slots):
    """Given text anywhere; first the merge, then the stop, as in a call."""
    kinds, tokens = (list(part) for part in zip(*slots))
    row = reference.Row(
        canvas=np.asarray(tokens),
        given=np.asarray([kind == "g" for kind in kinds]),
        committed_at=np.asarray([0 if kind == "c" else -1 for kind in kinds]),
        score=np.zeros(SLOTS),
    )
    committed, fixed = np.asarray([row.committed_at >= 0]), np.asarray([row.given])
    merged = merge(np.asarray([tokens]), committed, ids=IDS)
    reference.merge(row, plain_settings())
    np.testing.assert_array_equal(merged, [row.canvas])
    stopped = stop_at_terminator(merged, committed, fixed, ids=IDS)
    reference.stop(row, 1, plain_settings())
    np.testing.assert_array_equal(stopped, [row.canvas])
