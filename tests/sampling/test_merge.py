"""The merge rule and the stop rule, one hand-made case per clause."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_mdlm.sampling.loop import merge, stop_at_terminator
from tests.sampling.standin import IDS

MASK, SLACK, PAD, EOS, END = IDS.mask, IDS.slack, IDS.pad, IDS.eos, IDS.terminator
HEADER = 6  # in IDS.never_merged


def committed_of(given: str) -> jnp.ndarray:
    """`g` given by the caller, `c` committed, `m` masked."""
    return jnp.asarray([[letter == "c" for letter in given]])


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
        pytest.param([PAD, PAD, 3, 3], "ggcc", [PAD, PAD, 3, SLACK], id="left padding"),
    ],
)
def test_merge(row, kinds, want):
    got = merge(jnp.asarray([row]), committed_of(kinds), IDS)
    np.testing.assert_array_equal(got, [want])


def test_merge_keeps_rows_apart():
    got = merge(jnp.asarray([[2, 1], [1, 2]]), jnp.ones((2, 2), bool), IDS)
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
    ],
)
def test_stop_at_terminator(row, kinds, want):
    got = stop_at_terminator(jnp.asarray([row]), committed_of(kinds), IDS)
    np.testing.assert_array_equal(got, [want])
