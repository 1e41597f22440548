"""Batches: one integer is the position, whatever the number of processes."""

import contextlib
import itertools
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.containers import Batch
from jax_mdlm.data import draws
from jax_mdlm.data.batches import TrainBatches, assemble, evaluation_batches
from jax_mdlm.data.draws import choose_pairs, end_paddings, random_lengths
from jax_mdlm.data.table import Table, make_table
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.sharding import Share
from tests.data.conftest import dialogue, epoch_order, example, plain_config

ROWS = 30


@pytest.fixture(scope="module")
def config() -> DataConfig:
    return plain_config(length=64, max_labels=12, seed=7)


@pytest.fixture(scope="module")
def table(symbols: Tokenizer, make_rows, config: DataConfig) -> Table:
    """Row i has i + 1 letters in its prompt; every third row is a dialogue of three answers."""
    rows = [
        dialogue(i + 1, 1, 1, 2, 1, 3) if i % 3 == 0 else example(i + 1, 1 + i % 5)
        for i in range(ROWS)
    ]
    return make_table(make_rows(rows), config, symbols)


def take(iterator, count: int) -> list[Batch]:
    with contextlib.closing(iterator):
        return list(itertools.islice(iterator, count))


def join(batches: list[Batch]) -> dict[str, Any]:
    return {
        name: np.concatenate([np.asarray(getattr(batch, name)) for batch in batches])
        for name in vars(batches[0])
    }


def rows_of(batch: Batch, symbols: Tokenizer) -> list[int]:
    """Numbers of the rows: the length of the first run of letters a in the prompt."""
    letter = symbols.encode("a")[0]
    runs = np.cumprod(np.asarray(batch.tokens) == letter, axis=1).sum(axis=1)
    return [int(run) - 1 for run in runs]


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 5])
def test_batches_do_not_depend_on_the_processes(
    table: Table, config: DataConfig, processes: int, start: int
) -> None:
    """B = 8 over 30 rows: batch 3 holds rows of two epochs."""
    parts = [
        take(
            TrainBatches(
                table,
                config,
                batch_size=8,
                share=Share((index,), processes),
                start_step=start,
            ),
            6,
        )
        for index in range(processes)
    ]
    alone = take(TrainBatches(table, config, batch_size=8), start + 6)[start:]
    for step, expected in enumerate(alone):
        found = join([part[step] for part in parts])
        for name, value in vars(expected).items():
            np.testing.assert_array_equal(found[name], value)


def test_a_restored_position_continues_bitwise(table: Table, config: DataConfig) -> None:
    whole = take(TrainBatches(table, config, batch_size=8), 12)
    taken = take(TrainBatches(table, config, batch_size=8), 5)
    taken += take(TrainBatches(table, config, batch_size=8, start_step=5), 7)
    for name, value in join(whole).items():
        np.testing.assert_array_equal(join(taken)[name], value)


def test_every_row_once_per_epoch_in_a_new_order(
    table: Table, config: DataConfig, symbols: Tokenizer
) -> None:
    batches = take(TrainBatches(table, config, batch_size=8), 15)  # 120 rows are four epochs
    seen = [row for batch in batches for row in rows_of(batch, symbols)]
    epochs = [seen[i : i + ROWS] for i in range(0, 4 * ROWS, ROWS)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(ROWS))
    assert len(set(map(tuple, epochs))) == 4
    other = take(
        TrainBatches(table, plain_config(length=64, max_labels=12, seed=8), batch_size=30), 1
    )
    assert rows_of(other[0], symbols) != epochs[0]


def test_a_batch_may_be_larger_than_the_data(
    table: Table, config: DataConfig, symbols: Tokenizer
) -> None:
    (batch,) = take(TrainBatches(table, config, batch_size=3 * ROWS), 1)
    assert sorted(rows_of(batch, symbols)) == sorted(list(range(ROWS)) * 3)


def test_the_turn_cut_is_uniform_and_drawn_per_epoch(table: Table, config: DataConfig) -> None:
    """Chi-square over 3 answers, 2 degrees of freedom: 13.8 is passed once in a thousand."""
    epochs = np.repeat(np.arange(400), ROWS)
    rows = np.tile(np.arange(ROWS), 400)
    turns = (choose_pairs(table, config.seed, epochs, rows) - table.first_pair[rows]).reshape(
        400, -1
    )
    assert not turns[:, 1::3].any()  # one answer only
    counts = np.stack([np.bincount(column, minlength=3) for column in turns[:, ::3].T])
    expected = 400 / 3
    statistic = ((counts - expected) ** 2 / expected).sum(axis=1)
    assert (statistic < 13.8).all()
    # neither the row nor the epoch alone decides
    assert all(len(set(column)) == 3 for column in turns[:, ::3].T)
    assert len({tuple(row) for row in turns[:, ::3]}) > 300


def test_the_draws_are_uniform_and_fixed_for_ever() -> None:
    """A resumed run must see the same rows after an upgrade of anything."""
    assert epoch_order(0, 0, 10) == [0, 1, 9, 4, 2, 3, 6, 8, 7, 5]
    values = draws.uniform(3, draws.TURN, np.asarray(5), np.arange(20_000))
    assert values.min() >= 0
    assert values.max() < 1
    counts, _ = np.histogram(values, bins=20, range=(0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # 19 degrees of freedom, one in a thousand
    for other in (
        draws.uniform(4, draws.TURN, np.asarray(5), np.arange(20_000)),
        draws.uniform(3, draws.CUT, np.asarray(5), np.arange(20_000)),
        draws.uniform(3, draws.TURN, np.asarray(6), np.arange(20_000)),
    ):
        assert abs(np.corrcoef(values, other)[0, 1]) < 0.03


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 17, 100, 1000, 4097, 2**18 + 1])
def test_an_order_that_is_not_stored_has_every_row_once(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draws, "_SORTED", 0)
    first, second = epoch_order(7, 0, count), epoch_order(7, 1, count)
    assert sorted(first) == sorted(second) == list(range(count))
    assert count < 8 or first != second
    # Places are computed alone, in any company, of several epochs at once.
    places = np.array([count - 1, 0, count // 2, 0])
    epochs = np.array([1, 0, 0, 1])
    expected = [(first, second)[e][p] for e, p in zip(epochs, places, strict=True)]
    assert draws.shuffled(7, epochs, count, places).tolist() == expected


def test_an_order_that_is_not_stored_is_even_and_fixed_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(draws, "_SORTED", 0)
    assert epoch_order(0, 0, 10) == [6, 2, 9, 0, 8, 1, 7, 3, 5, 4]
    # Where each of 12 rows stands, over many epochs: 11 degrees of freedom, one in a thousand.
    orders = np.array([epoch_order(1, epoch, 12) for epoch in range(6000)])
    for row in range(12):
        places = np.bincount(np.argmax(orders == row, axis=1), minlength=12)
        assert ((places - 500) ** 2 / 500).sum() < 40
    # Neighbours of a long order are as far from each other as of any shuffle.
    long = np.array(epoch_order(2, 0, 50_000))
    assert abs(np.corrcoef(long[1:], long[:-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(long, np.arange(50_000))[0, 1]) < 0.02
    assert abs(np.abs(np.diff(long)).mean() / (50_000 / 3) - 1) < 0.02


def test_the_first_slot_is_uniform() -> None:
    first = [epoch_order(0, epoch, 6)[0] for epoch in range(3000)]
    counts = np.bincount(first, minlength=6)
    assert ((counts - 500) ** 2 / 500).sum() < 20.5  # 5 degrees of freedom, one in a thousand


def test_pretraining_cuts_a_share_of_the_rows(symbols: Tokenizer, make_rows) -> None:
    config = plain_config(
        pretraining=True, length=10, max_labels=10, random_length_share=0.25, seed=1
    )
    table = make_table(make_rows([example(5, 4)] * 400), config, symbols)
    assert len(table) == 400
    rows = np.tile(np.arange(400), 50)
    epochs = np.repeat(np.arange(50), 400)
    lengths = random_lengths(table, config, epochs, rows, rows)
    short = np.bincount(lengths, minlength=11)
    # a cut row has 1 to 10 tokens, each as often: 20,000 * 0.25 / 10 = 500 of each
    assert short[0] == 0
    assert ((short[1:10] - 500) ** 2 / 500).sum() < 27.9  # 9 degrees of freedom
    (batch,) = take(TrainBatches(table, config, batch_size=400), 1)
    np.testing.assert_array_equal(batch.response.sum(axis=1), batch.label_count)
    np.testing.assert_array_equal(batch.valid, batch.response)
    assert 60 < (batch.label_count < 10).sum() < 120
    for evaluated in evaluation_batches(table, config, batch_size=400):
        assert (evaluated.label_count == 10).all()


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize(("limit", "count"), [(0, ROWS), (10, 10), (100, ROWS)])
def test_evaluation_takes_the_rows_in_order(
    table: Table, config: DataConfig, symbols: Tokenizer, processes: int, limit: int, count: int
) -> None:
    parts = [
        list(
            evaluation_batches(
                table,
                config,
                batch_size=8,
                limit=limit,
                share=Share((index,), processes),
            )
        )
        for index in range(processes)
    ]
    batches = [join(list(group)) for group in zip(*parts, strict=True)]
    assert len(batches) == -(-count // 8)
    whole: dict[str, Any] = {
        name: np.concatenate([b[name] for b in batches]) for name in batches[0]
    }
    assert rows_of(Batch(**whole), symbols)[:count] == list(range(count))
    assert (whole["label_count"][:count] > 0).all()
    assert (whole["label_count"][count:] == 0).all()
    assert not whole["response"][count:].any()
    assert whole["valid"].any(axis=1).all()
    pairs = choose_pairs(table, config.seed, np.zeros(count, int), np.arange(count))
    expected = assemble(table, pairs, config)
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(whole[name][:count], value)


def test_shares_need_not_be_neighbours(table: Table, config: DataConfig) -> None:
    """Parts 0 and 2 of 4, as on a host whose chips are a square of the mesh."""
    (whole,) = take(TrainBatches(table, config, batch_size=8), 1)
    (own,) = take(TrainBatches(table, config, batch_size=8, share=Share((0, 2), 4)), 1)
    for name, value in vars(whole).items():
        np.testing.assert_array_equal(getattr(own, name), value[[0, 1, 4, 5]])


def test_a_batch_must_be_shared_evenly(table: Table, config: DataConfig) -> None:
    message = r"a batch must be divisible by the mesh's 3 batch shards, got 8 rows; change train\."
    with pytest.raises(ConfigError, match=message):
        TrainBatches(table, config, batch_size=8, share=Share((0,), 3))
    with pytest.raises(ConfigError, match=message):
        next(evaluation_batches(table, config, batch_size=8, share=Share((0,), 3)))


def test_drawn_end_padding_is_uniform_and_depends_on_row_and_epoch_only() -> None:
    config = DataConfig(end_padding=4, draw_end_padding=True)
    rows = np.arange(5000)
    first = end_paddings(config, np.zeros_like(rows), rows)
    counts = np.bincount(first, minlength=5)
    assert len(counts) == 5
    assert chisquare(counts).pvalue > 1e-4
    np.testing.assert_array_equal(first[7:9], end_paddings(config, np.zeros(2), rows[7:9]))
    assert (first != end_paddings(config, np.ones_like(rows), rows)).mean() > 0.7
    fixed = end_paddings(DataConfig(end_padding=4), np.zeros_like(rows), rows)
    assert set(fixed) == {4}
