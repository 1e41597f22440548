"""Edit distance against its recursion; the other metrics by hand and beside their packages."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mdlm.evaluation.scores import (
    METRICS,
    distinct,
    edit_distance,
    final_number,
    nearest,
    repetition,
)

symbols = st.lists(st.sampled_from("abc"), max_size=6)


def brute_force(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """The definition: the cheapest of all ways to edit."""

    @functools.cache
    def cost(i: int, j: int) -> int:
        if i == len(first) or j == len(second):
            return len(first) - i + len(second) - j
        change = cost(i + 1, j + 1) + (first[i] != second[j])
        return min(change, cost(i + 1, j) + 1, cost(i, j + 1) + 1)

    return cost(0, 0)


@settings(max_examples=300)
@given(symbols, symbols)
def test_edit_distance(first, second):
    assert edit_distance(first, second) == brute_force(tuple(first), tuple(second))


def test_edit_distance_of_words():
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == 3
    assert edit_distance("abc", "") == 3


def test_nearest_takes_the_shortest_of_equally_near_ones():
    assert nearest("ab", ["abc", "a"]) == (1, 1)
    with pytest.raises(
        ValueError, match=r"at least one reference and no empty one, got \['a', ''\]"
    ):
        nearest("a", ["a", ""])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 + 4 = 7 apples.\n#### 7", "7"),
        ("#### 1,234", "1234"),
        ("#### $70,000 dollars", "70000"),
        ("it costs 12.50 in all", "12.5"),
        ("#### -5", "-5"),
        ("5 apples, then 18.", "18"),
        ("#### 100", "100"),
        ("10.00", "10"),
        ("none", ""),
    ],
)
def test_final_number(text, number):
    assert final_number(text) == number


def score(metric, hypotheses, references):
    errors, units = METRICS[metric].score(hypotheses, references)
    return errors.tolist(), units.tolist()


def test_metrics_by_hand():
    assert score("symbols", ["A B", "A"], [("A C",), ("B C", "A B")]) == ([1, 1], [2, 2])
    assert score("characters", ["abc"], [("abd",)]) == ([1], [3])
    assert score("exact", ["a  b", "a"], [("a b",), ("b", "c")]) == ([0, 1], [1, 1])
    assert score("number", ["so 10", "so 10"], [("#### 100",), ("#### 10",)]) == ([1, 0], [1, 1])
    errors, units = METRICS["repetition"].score(["a b c d a b c d", "a"], [(), ()])
    np.testing.assert_allclose(errors, [1, 0])  # five 4-grams, one of them twice
    assert units.tolist() == [5, 0]


def test_chrf_is_the_packages():
    chrf = pytest.importorskip("sacrebleu.metrics.chrf").CHRF()
    text, references = "the cat sat", ("the cat sat down", "a cat")
    errors, units = METRICS["chrf"].score([text, text], [references, (text,)])
    np.testing.assert_allclose(
        errors, [1 - chrf.sentence_score(text, list(references)).score / 100, 0], atol=1e-9
    )
    assert units.tolist() == [1, 1]


def test_diversity_by_hand():
    assert distinct(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    assert distinct(["a"], 2) == 0
    assert repetition("a b c d e f") == 0
    assert repetition("a a a a a a") == pytest.approx(2 / 3)
    assert repetition("a b") == 0
