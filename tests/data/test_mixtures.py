"""Sources of several weights: which stored row each row of an epoch is."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_mdlm.data import draws
from jax_mdlm.data.batches import TrainBatches
from jax_mdlm.data.draws import choose_pairs, draw_epochs, mixed_rows
from jax_mdlm.data.examples import Part, SplitRows
from jax_mdlm.data.table import Table, make_table
from jax_mdlm.data.tokenizer import Tokenizer
from tests.data.conftest import dialogue, example, plain_config


def epoch_of(parts: list[Part], epoch: int, seed: int = 3) -> np.ndarray:
    rows = np.arange(sum(part.drawn for part in parts))
    return mixed_rows(parts, seed, np.full_like(rows, epoch), rows)


def test_without_weights_nothing_changes() -> None:
    parts = [Part("a", 5), Part("b", 0), Part("c", 7)]
    assert epoch_of(parts, 4).tolist() == list(range(12))


def test_weight_two_has_each_row_twice() -> None:
    for epoch in range(3):
        seen = Counter(epoch_of([Part("a", 6, 2.0), Part("b", 4)], epoch).tolist())
        assert seen == {**dict.fromkeys(range(6), 2), **dict.fromkeys(range(6, 10), 1)}


def test_a_quarter_visits_every_row_once_in_four_epochs() -> None:
    parts = [Part("a", 3), Part("b", 40, 0.25)]
    epochs = [epoch_of(parts, epoch)[3:] for epoch in range(8)]
    assert {len(epoch) for epoch in epochs} == {10}
    for begin in (0, 4):
        seen = np.concatenate(epochs[begin : begin + 4])
        assert sorted(seen.tolist()) == list(range(3, 43))
    assert not np.array_equal(np.concatenate(epochs[:4]), np.concatenate(epochs[4:]))


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    weights=st.lists(st.sampled_from([0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0]), min_size=4, max_size=4),
    seed=st.integers(0, 5),
)
def test_shares_and_evenness(sizes: list[int], weights: list[float], seed: int) -> None:
    """Oracle: over n epochs a row is seen the floor or the ceiling of its share."""
    parts = [Part(str(at), size, weights[at]) for at, size in enumerate(sizes)]
    number = 7
    seen = Counter[int]()
    for epoch in range(number):
        rows = epoch_of(parts, epoch, seed).tolist()
        assert len(rows) == sum(part.drawn for part in parts)
        seen.update(rows)
    begin = 0
    for part in parts:
        counts = [seen[row] for row in range(begin, begin + part.rows)]
        assert sum(counts) == number * part.drawn
        if part.rows:
            assert part.drawn == max(1, round(part.rows * part.weight))
            assert max(counts) - min(counts) <= 1
        begin += part.rows
    assert max(seen, default=0) < begin or not seen


def test_any_rows_of_any_epochs_in_one_call() -> None:
    """A batch asks for some rows, of two epochs where one ends in it."""
    parts = [Part("a", 9, 0.5), Part("b", 5), Part("c", 4, 1.5)]
    whole = np.stack([epoch_of(parts, epoch) for epoch in range(6)])
    draw = np.random.default_rng(0)
    epochs, rows = draw.integers(0, 6, 200), draw.integers(0, whole.shape[1], 200)
    found = mixed_rows(parts, 3, epochs, rows)
    np.testing.assert_array_equal(found, whole[epochs, rows])
    np.testing.assert_array_equal(mixed_rows(parts, 3, np.asarray(2), rows), whole[2, rows])


def mixture(symbols: Tokenizer, weights: list[float], **data: Any) -> tuple[Table, Any]:
    """Sources of 12 rows each; those of the first are dialogues of three answers."""
    rows = [dialogue(n + 1, 2, 1, 3, 2, 4) for n in range(12)]
    rows += [example(n + 1, 2) for n in range(12, 12 * len(weights))]
    parts = tuple(Part(str(at), 12, weight) for at, weight in enumerate(weights))
    origins = [str(number) for number in range(len(rows))]
    config = plain_config(length=64, max_labels=12, seed=2, **data)
    return make_table(SplitRows("toy", rows, origins, parts=parts), config, symbols), config


def test_the_copies_of_a_row_are_drawn_apart(symbols: Tokenizer) -> None:
    """Each has its own answer, and its own end padding."""
    table, config = mixture(symbols, [2.0], draw_end_padding=True, end_padding=20)
    rows = np.arange(24)
    equal = padded = 0
    for epoch in range(50):
        drawn = draw_epochs(table, config, np.full_like(rows, epoch), rows)
        answers = (drawn.pairs % 3).reshape(2, 12)
        np.testing.assert_array_equal(drawn.pairs[:12] // 3, drawn.pairs[12:] // 3)
        equal += int((answers[0] == answers[1]).sum())
        padded += int((drawn.end_padding[:12] == drawn.end_padding[12:]).sum())
    assert 0.25 < equal / 600 < 0.42  # a third
    assert 0.01 < padded / 600 < 0.1  # one in 21


def test_a_run_sees_the_shares(symbols: Tokenizer) -> None:
    """Through `TrainBatches`, over four epochs of 12 * (2 + 1 + 0.25) rows."""
    table, config = mixture(symbols, [2.0, 1.0, 0.25])
    assert len(table) == 39
    letter = symbols.encode("a")[0]
    batches = TrainBatches(table, config, batch_size=13)
    seen = Counter[int]()
    for _ in range(12):
        tokens = np.asarray(next(batches).tokens)
        seen.update((np.cumprod(tokens == letter, axis=1).sum(axis=1) - 1).tolist())
    batches.close()
    assert seen == {
        row: count for at, count in enumerate((8, 4, 1)) for row in range(12 * at, 12 * at + 12)
    }


def test_validation_has_every_row_once(symbols: Tokenizer) -> None:
    table, config = mixture(symbols, [1.0, 1.0])
    rows = np.arange(len(table))
    pairs = choose_pairs(table, config.seed, np.zeros_like(rows), rows)
    assert (np.searchsorted(table.first_pair, pairs, side="right") - 1).tolist() == rows.tolist()


@pytest.mark.parametrize("sources", [2, 4])
def test_orders_are_sorted_once_an_epoch(sources: int) -> None:
    """All orders of a step stay in the cache: to sort them for every batch takes longer."""
    parts = [Part(str(at), 500, 0.5) for at in range(sources)]
    draws._permutation.cache_clear()
    rows = np.arange(0, sources * 250, 7)
    for _ in range(20):
        draws.shuffled(3, np.zeros_like(rows), sources * 250, rows)
        mixed_rows(parts, 3, np.zeros_like(rows), rows)
    assert draws._permutation.cache_info().misses == sources + 1
