import collections
import functools
import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from jax_mdlm.diffusion import collapse_tokens, insert_slack
from tests.diffusion.rows import IDS, batch_of
from tests.reference import ctc as reference

insert = functools.partial(
    jax.jit, static_argnums=2, static_argnames=("slack_max", "separate_repeats")
)(insert_slack)

LENGTH, MOST = 24, 8
text = st.lists(st.integers(5, 7), min_size=0, max_size=MOST - 1)


def _augment(seed, rows, length=LENGTH, most=MOST, *, slack_max, separate, end_padding=0):
    batch = batch_of(rows, length, most, end_padding=end_padding)
    augmented = insert(
        jax.random.key(seed), batch, IDS, slack_max=slack_max, separate_repeats=separate
    )
    return batch, jax.tree.map(np.asarray, augmented)


def _check_row(batch, augmented, i):
    """What must hold for every row, whatever was drawn; returns the frames' tokens."""
    length = batch.tokens.shape[1]
    response = np.flatnonzero(batch.response[i])
    if len(response) == 0:
        np.testing.assert_array_equal(augmented.tokens[i], batch.tokens[i])
        np.testing.assert_array_equal(augmented.valid[i], batch.valid[i])
        assert not augmented.frames[i].any()
        assert not augmented.response[i].any()
        return []
    start, count = response[0], batch.label_count[i]
    padding = len(response) - count
    for name in ("tokens", "response", "valid"):
        before, after = getattr(batch, name)[i], getattr(augmented, name)[i]
        np.testing.assert_array_equal(after[:start], before[:start])
    frames = augmented.frames[i].sum()
    assert frames >= count
    end = min(start + frames + padding, length)
    slots = np.arange(length)
    np.testing.assert_array_equal(augmented.frames[i], (slots >= start) & (slots < start + frames))
    np.testing.assert_array_equal(augmented.response[i], (slots >= start) & (slots < end))
    np.testing.assert_array_equal(augmented.valid[i, start:], augmented.response[i, start:])
    assert (augmented.tokens[i, start + frames : end] == IDS.eos).all()
    assert (augmented.tokens[i, end:] == IDS.pad).all()
    inside = augmented.tokens[i, start : start + frames].tolist()
    if count:
        assert inside[-1] == batch.labels[i, count - 1]  # never after the terminator
    return inside


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    rows=st.lists(st.tuples(st.lists(st.integers(5, 7), max_size=6), text), min_size=3, max_size=3),
    seed=st.integers(0, 2**31 - 1),
    end_padding=st.sampled_from([0, 3, 30]),
    separate=st.booleans(),
)
def test_insert_then_collapse_is_the_identity(rows, seed, end_padding, separate):
    rows = [(prompt, [*answer, IDS.terminator]) for prompt, answer in rows]
    batch, augmented = _augment(
        seed, rows, slack_max=0.9, separate=separate, end_padding=end_padding
    )
    for i, (prompt, answer) in enumerate(rows):
        inside = _check_row(batch, augmented, i)
        assert collapse_tokens(inside, IDS, "slack_only") == answer
        repeats = sum(a == b for a, b in itertools.pairwise(answer))
        if separate and repeats <= LENGTH - len(prompt) - len(answer):
            assert collapse_tokens(inside, IDS, "merge") == answer


@pytest.mark.parametrize("separate", [False, True])
def test_every_placement_is_reached_equally_often(separate):
    """Rows that drew two slacks: every choice of their slots before the last label."""
    answer = [5, 5, 6, IDS.terminator]
    num_rows = 6000
    seen = collections.Counter()
    _, augmented = _augment(3, [([7], answer)] * num_rows, 7, 4, slack_max=1.0, separate=separate)
    for row, frames in zip(augmented.tokens, augmented.frames, strict=True):
        if frames.sum() == 6:
            seen[tuple(row[frames].tolist())] += 1
    # C(5, 2) places of two slacks; with one fixed between the 5s, C(4, 1) places of the other.
    num_places = 4 if separate else math.comb(5, 2)
    if separate:
        assert all(collapse_tokens(row, IDS, "merge") == answer for row in seen)
    assert len(seen) == num_places
    expected = sum(seen.values()) / num_places
    assert expected > 150
    chi_square = sum((count - expected) ** 2 / expected for count in seen.values())
    assert chi_square < {3: 16.3, 9: 27.9}[num_places - 1]  # 99.9%


def test_number_of_slacks_is_a_rounded_uniform_share():
    num_rows, count, share = 20000, 8, 1.3
    rows = [([], [5, 6] * (count // 2))] * num_rows
    _, augmented = _augment(4, rows, slack_max=share, separate=False)
    slack = augmented.frames.sum(axis=1) - count
    exact = np.array([0.0] * 16)  # of n = round(x), x ~ U(0, share * count): triangles around n
    x = (np.arange(200000) + 0.5) / 200000 * share * count
    below = np.floor(x).astype(int)
    np.add.at(exact, below, 1 - (x - below))
    np.add.at(exact, below + 1, x - below)
    exact = exact / exact.sum() * num_rows
    seen = np.bincount(slack, minlength=16)
    possible = exact > 5
    assert seen[~possible].sum() < 15
    chi_square = ((seen - exact)[possible] ** 2 / exact[possible]).sum()
    assert chi_square < 40


def test_end_padding_keeps_its_length_as_far_as_there_is_room():
    prompts = np.repeat([0, 4, 11, 16, 20], 100)  # 20, 16, 9, 4 and 0 slots of room
    rows = [([5] * int(size), [5, 6, 7, IDS.terminator]) for size in prompts]
    batch, augmented = _augment(5, rows, slack_max=2.0, separate=False, end_padding=5)
    for i in range(len(rows)):
        _check_row(batch, augmented, i)
    slack = augmented.frames.sum(axis=1) - 4
    padding = augmented.response.sum(axis=1) - augmented.frames.sum(axis=1)
    room = LENGTH - 4 - prompts
    np.testing.assert_array_equal(padding, np.minimum(np.minimum(5, room), room - slack))
    most = [slack[prompts == size].max() for size in (0, 4, 11, 16, 20)]
    assert most == [8, 8, 8, 4, 0]


def test_separators_that_do_not_fit_are_dropped_and_the_row_is_placed_at_random():
    answer = [5, 5, 5, IDS.terminator]  # two separators
    rows = [([], answer)] * 300 + [([6], answer)] * 300
    batch, augmented = _augment(6, rows, 6, 4, slack_max=1.0, separate=True)
    placed = [tuple(_check_row(batch, augmented, i)) for i in range(len(rows))]
    assert set(placed[:300]) == {(5, 1, 5, 1, 5, 4)}  # as many separators as there is room
    assert len(set(placed[300:])) == 5  # room for one: nowhere, or at any of four places


def test_no_slack_share_leaves_the_batch_as_it_is():
    rows = [([5], [6, 6, IDS.terminator]), None, ([], [7])]
    batch, augmented = _augment(7, rows, slack_max=0.0, separate=True, end_padding=2)
    np.testing.assert_array_equal(augmented.tokens, batch.tokens)
    np.testing.assert_array_equal(augmented.response, batch.response)
    np.testing.assert_array_equal(augmented.valid, batch.valid)
    assert augmented.frames.sum(axis=1).tolist() == [3, 0, 1]


def test_rows_without_labels_or_without_response():
    rows = [None, ([5, 6], []), ([], [])]
    batch, augmented = _augment(8, rows, slack_max=0.9, separate=True, end_padding=4)
    for i in range(len(rows)):
        _check_row(batch, augmented, i)
    assert not augmented.frames.any()
    assert augmented.response.sum(axis=1).tolist() == [0, 4, 4]
    assert augmented.tokens.dtype == batch.tokens.dtype == np.int32


@hypothesis.given(tokens=st.lists(st.integers(5, 7) | st.just(1), max_size=12))
@pytest.mark.parametrize("collapse", ["merge", "slack_only"])
def test_collapse_is_the_map_of_the_reference(tokens, collapse):
    expected = reference.collapse(tokens, IDS.slack, collapse)
    assert tuple(collapse_tokens(tokens, IDS, collapse)) == expected
    assert tuple(collapse_tokens(np.array(tokens, np.int32), IDS, collapse)) == expected


def test_special_tokens_are_never_merged():
    tokens = [5, 5, 4, 4, 1, 1, 3, 3]
    assert collapse_tokens(tokens, IDS, "merge") == [5, 4, 4, 3, 3]
    assert collapse_tokens(tokens, IDS, "slack_only") == [5, 5, 4, 4, 3, 3]
