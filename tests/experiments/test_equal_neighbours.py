"""Lost and gained repeats by hand, alignment against all alignments, and the report's shares."""

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mdlm.experiments.repeats import RepeatCounts, Stretch, align, compare, runs, summarise

texts = st.text(alphabet="01", max_size=6)


def test_runs() -> None:
    assert runs("1100720") == [("1", 2), ("0", 2), ("7", 1), ("2", 1), ("0", 1)]
    assert runs("") == []


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        # exact, lost, gained, runs, repeats, lost runs, gained runs
        ("100", "100", (True, False, False, 2, 1, 0, 0)),
        ("100", " 100\n", (True, False, False, 2, 1, 0, 0)),
        ("100", "10", (False, True, False, 2, 1, 1, 0)),
        ("1000", "100", (False, True, False, 2, 1, 1, 0)),
        ("10", "100", (False, False, True, 2, 0, 0, 1)),
        ("1100", "1000", (False, True, True, 2, 2, 1, 1)),
        ("5500+4500", "550+450", (False, True, False, 6, 3, 2, 0)),
        # another mistake beside it: wrong, not "lost", but the run is counted
        ("1007", "109", (False, False, False, 3, 1, 1, 0)),
        ("1007", "10", (False, False, False, 3, 1, 1, 0)),
        ("100", "", (False, False, False, 2, 1, 0, 0)),
        ("100", "200", (False, False, False, 2, 1, 0, 0)),
        ("7", "77", (False, False, True, 1, 0, 0, 1)),
    ],
)
def test_compare_by_hand(reference: str, hypothesis: str, expected: tuple) -> None:
    assert compare(reference, hypothesis) == RepeatCounts(*expected)


@given(texts, texts)
def test_lost_and_gained_are_what_the_collapsed_texts_say(reference: str, hypothesis: str) -> None:
    """The definition in other words: equal once runs are cut to one, and a run shorter, longer."""
    counts = compare(reference, hypothesis)
    collapsed = [re.sub(r"(.)\1+", r"\1", text) for text in (reference, hypothesis)]
    lengths = [[len(run) for run in re.findall(r"0+|1+", t)] for t in (reference, hypothesis)]
    same = collapsed[0] == collapsed[1]
    pairs = list(zip(*lengths))
    assert counts.lost == (same and any(a > b for a, b in pairs))
    assert counts.gained == (same and any(a < b for a, b in pairs))
    assert counts.exact == (reference == hypothesis)
    assert counts.exact == (same and not counts.lost and not counts.gained)


def distance(
    first: list[Stretch], second: list[Stretch], pairs: tuple[tuple[int, int], ...]
) -> int:
    """Edits of an alignment: pairs that differ, and what is in no pair."""
    changed = sum(first[i].character != second[j].character for i, j in pairs)
    return changed + len(first) + len(second) - 2 * len(pairs)


def cheapest(first: list[Stretch], second: list[Stretch]) -> dict[int, int]:
    """Over all monotone alignments: equal pairs -> fewest edits."""
    found: dict[int, int] = {}
    for size in range(min(len(first), len(second)) + 1):
        for left in itertools.combinations(range(len(first)), size):
            for right in itertools.combinations(range(len(second)), size):
                pairs = tuple(zip(left, right))
                equal = sum(first[i].character == second[j].character for i, j in pairs)
                edits = distance(first, second, pairs)
                found[equal] = min(found.get(equal, edits), edits)
    return found


@settings(max_examples=150)
@given(st.text(alphabet="012", max_size=5), st.text(alphabet="012", max_size=5))
def test_alignment_is_one_of_the_cheapest(reference: str, hypothesis: str) -> None:
    first, second = runs(reference), runs(hypothesis)
    pairs = align(first, second)
    assert all(run.character == other.character for run, other in pairs)
    found = cheapest(first, second)
    assert found[len(pairs)] == min(found.values())
    # in order, each run once
    at = -1
    for run, _ in pairs:
        at = next(i for i in range(at + 1, len(first)) if first[i] == run)


def counts(references: list[str], hypotheses: list[str]) -> list[RepeatCounts]:
    return [compare(*pair) for pair in zip(references, hypotheses)]


def test_report_by_hand() -> None:
    references = ["100", "2255", "70", "12"]
    report = summarise([counts(references, ["10", "2255", "700", "12"])])
    assert (report.rows, report.rows_with) == (4, 2)
    assert report.exact.value == 2 / 4
    assert report.exact_with is not None
    assert report.exact_without is not None
    assert report.lost is not None
    assert report.exact_with.value == 1 / 2
    assert report.exact_without.value == 1 / 2
    assert report.lost.value == 1 / 2
    assert report.gained.value == 1 / 4
    assert report.lost_runs == 1 / 3  # of 00, 22, 55
    assert report.gained_runs == 1 / 8
    assert report.exact.low < 0.5 < report.exact.high


def test_training_seeds_are_averaged_row_by_row() -> None:
    references = ["100", "11"]
    seeds = [counts(references, ["10", "11"]), counts(references, ["100", "11"])]
    report = summarise(seeds)
    assert report.lost is not None
    assert report.lost.value == report.lost_runs == 1 / 4
    assert report.exact.value == 3 / 4
    assert report.exact_without is None
    assert report.rows == 2


def test_what_cannot_be_summarised() -> None:
    with pytest.raises(ValueError, match="repeats need at least one row, got none"):
        summarise([])
    seeds = [counts(["100"], ["100"]), counts(["123"], ["100"])]
    with pytest.raises(ValueError, match="held against the same references, in order"):
        summarise(seeds)
