"""Length buckets: the plan against a plain loop, and rows that a bucket leaves as they are."""

import contextlib
import dataclasses
import itertools
from collections import Counter

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_mdlm.config import (
    DataConfig,
    ObjectiveConfig,
)
from jax_mdlm.containers import Batch
from jax_mdlm.data import order as order_module
from jax_mdlm.data.batches import TrainBatches, assemble
from jax_mdlm.data.draws import Drawn, draw_epochs
from jax_mdlm.data.examples import Message, pair
from jax_mdlm.data.order import BucketOrder, Queues, make_order
from jax_mdlm.data.table import Table, make_table
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.diffusion.slack import insert_slack
from jax_mdlm.sharding import Share
from tests.data.conftest import epoch_order, plain_config

ROWS = 150
BATCH = 4  # on the full canvas; 8 and 16 on the others


@pytest.fixture(scope="module")
def config() -> DataConfig:
    return plain_config(
        length=64,
        buckets=(16, 32, 64),
        max_labels=48,
        end_padding=5,
        draw_end_padding=True,
        seed=3,
    )


@pytest.fixture(scope="module")
def table(symbols: Tokenizer, make_rows, config: DataConfig) -> Table:
    """Lengths of all buckets, many repeats; every fifth row has a short and a long answer."""
    rng = np.random.default_rng(0)

    def text(longest: int) -> str:
        size = min(1 + int(rng.exponential(longest)), 40)
        return "".join(rng.choice(list("ab"), size, p=[0.8, 0.2]))

    rows = []
    for i in range(ROWS):
        if i % 5:
            rows.append(pair(text(4), text(6)))
        else:
            turns = [text(2), text(2), text(2), text(20)]
            roles = ["user", "assistant"] * 2
            rows.append(tuple(map(Message, roles, turns)))
    return make_table(make_rows(rows), config, symbols)


def loop(bucket: list[int], sizes: list[int]) -> tuple[list[tuple[int, list[int]]], list[int]]:
    """`Queues`, row by row."""
    queues: list[list[int]] = [[] for _ in sizes]
    batches = []
    for row, kind in enumerate(bucket):
        queues[kind].append(row)
        if len(queues[kind]) == sizes[kind]:
            batches.append((kind, queues[kind]))
            queues[kind] = []
    for kind, size in enumerate(sizes):
        queue = sorted(queues[kind] + (queues[kind - 1] if kind else []))
        while len(queue) >= size:
            batches.append((kind, queue[:size]))
            queue = queue[size:]
        queues[kind] = queue
    return batches, queues[-1]


@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=4).flatmap(
        lambda sizes: st.tuples(
            st.just(sizes), st.lists(st.integers(0, len(sizes) - 1), max_size=60)
        )
    ),
    st.integers(1, 60),
)
def test_an_epoch_is_packed_as_a_loop_would(case: tuple[list[int], list[int]], part: int) -> None:
    sizes, bucket = case
    queues = Queues(sizes)
    expected, left = loop(bucket, sizes)
    for _ in range(2):  # the second time as if it were the first
        batches = []
        for begin in range(0, len(bucket), part):
            batches += queues.put(np.array(bucket[begin : begin + part], int), begin)
        late, rest = queues.end()
        found = [(kind, rows.tolist()) for kind, rows in [*batches, *late]]
        assert (found, rest.tolist()) == (expected, left)


def walk(table: Table, config: DataConfig, objective: ObjectiveConfig, epochs: int):
    """Steps of some epochs: the whole plan as one loop over rows, lengths read off full batches."""
    sizes = [BATCH * config.length // length for length in config.buckets]
    left: list[tuple[int, int]] = []
    steps = []
    for epoch in range(epochs):
        order = epoch_order(config.seed, epoch, len(table))
        stream = left + [(epoch, int(row)) for row in order]
        kinds = []
        for number, row in stream:
            drawn = draw_epochs(table, config, np.array([number]), np.array([row]))
            needed = slots_of(table, config, objective, drawn)
            kinds.append(next((k for k, n in enumerate(config.buckets) if n >= needed), -1))
        kinds = [kind % len(sizes) for kind in kinds]
        batches, rest = loop(kinds, sizes)
        steps += [(kind, [stream[at] for at in rows]) for kind, rows in batches]
        left = [stream[at] for at in rest]
    return steps


def slots_of(table: Table, config: DataConfig, objective: ObjectiveConfig, drawn: Drawn) -> int:
    """Slots of one row with the most slack, counted on a canvas that cuts nothing."""
    wide = dataclasses.replace(config, length=4 * config.length)
    batch = assemble(table, drawn.pairs, wide, drawn.lengths, drawn.end_padding)
    count = int(batch.label_count[0])
    labels = batch.labels[0][:count].tolist()
    slack = 0
    if objective.slack_max > 0:
        slack = int(objective.slack_max * count) + 1
        if objective.separate_repeats and objective.collapse == "merge":
            slack = max(slack, sum(a == b for a, b in itertools.pairwise(labels)))
    return int(batch.valid[0].sum()) + slack


OBJECTIVES = [
    ObjectiveConfig(slack_max=0.5),
    ObjectiveConfig(slack_max=0.3, separate_repeats=False),
    ObjectiveConfig(slack_max=0.5, collapse="slack_only"),
    ObjectiveConfig(slack_max=0.0),
]


@pytest.mark.parametrize("part", [7, 64, 2**16])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=["merge", "random", "slack_only", "ce"])
def test_the_order_is_that_of_a_loop_over_rows(
    table: Table,
    config: DataConfig,
    objective: ObjectiveConfig,
    part: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(order_module, "_PART", part)
    order = make_order(table, config, objective, BATCH)
    steps = walk(table, config, objective, 4)
    assert {kind for kind, _ in steps} == {0, 1, 2}
    for step, (kind, rows) in enumerate(steps):
        owned = order.at(step)
        assert owned.bucket == order.buckets[kind]
        assert list(zip(owned.epochs.tolist(), owned.rows.tolist(), strict=True)) == rows


def test_every_row_once_per_epoch(table: Table, config: DataConfig) -> None:
    order = make_order(table, config, OBJECTIVES[0], BATCH)
    seen: Counter[tuple[int, int]] = Counter()
    for step in range(order.num_steps(5)):
        owned = order.at(step)
        seen.update(zip(owned.epochs.tolist(), owned.rows.tolist(), strict=True))
    assert set(seen.values()) == {1}
    per_epoch = Counter(epoch for epoch, _ in seen)
    assert [per_epoch[epoch] for epoch in range(4)] == [ROWS] * 4, "late by one epoch at most"


def test_a_rare_length_waits_for_the_end_of_its_epoch_only(
    symbols: Tokenizer, make_rows, config: DataConfig
) -> None:
    rows = [pair("a", "b")] * 47 + [pair("a" * 40, "b")]
    table = make_table(make_rows(rows), config, symbols)
    order = make_order(table, config, OBJECTIVES[0], BATCH)
    lengths = []
    for step in range(order.num_steps(3)):
        bucket, _, numbers = order.at(step)
        lengths += [bucket.length for row in numbers if row == 47]
    assert lengths == [64, 64, 64]


def test_without_buckets_steps_are_slices_of_the_permutations(
    table: Table, config: DataConfig
) -> None:
    plain = make_order(table, dataclasses.replace(config, buckets=()), OBJECTIVES[0], 8)
    single = make_order(table, dataclasses.replace(config, buckets=(64,)), OBJECTIVES[0], 8)
    assert not isinstance(plain, BucketOrder)
    assert isinstance(single, BucketOrder)
    stream = [
        (epoch, int(row)) for epoch in range(4) for row in epoch_order(config.seed, epoch, ROWS)
    ]
    for order in (plain, single):
        assert order.mean_rows == 8
        for step in (0, 1, 18, 19, 60, 2):
            bucket, epochs, rows = order.at(step)
            assert (bucket.rows, bucket.length, bucket.labels) == (8, 64, 48)
            found = list(zip(epochs.tolist(), rows.tolist(), strict=True))
            assert found == stream[8 * step : 8 * step + 8]
        for epochs in (0.3, 1, 2.5, 40):
            assert order.num_steps(epochs) == -(-int(epochs * ROWS) // 8)


def test_epochs_are_steps_whose_rows_add_up(table: Table, config: DataConfig) -> None:
    order = make_order(table, config, OBJECTIVES[0], BATCH)
    rows = np.cumsum([order.at(step).bucket.rows for step in range(80)])
    for epochs in (0.01, 0.5, 1, 2, 3.7):
        steps = order.num_steps(epochs)
        assert rows[steps - 1] >= epochs * ROWS
        assert steps == 1 or rows[steps - 2] < epochs * ROWS
    few = make_order(table, config, OBJECTIVES[0], 512)  # more rows than an epoch has
    assert few.num_steps(1) == 1
    assert few.at(0).bucket.rows == 512


@pytest.mark.parametrize("part", [40, 75, 2**16])
def test_the_mean_step_weighs_one(
    table: Table, config: DataConfig, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean over the steps of an epoch of (rows / mean rows)."""
    monkeypatch.setattr(order_module, "_PART", part)
    order = make_order(table, config, OBJECTIVES[0], BATCH)
    first = [kind for kind, _ in walk(table, config, OBJECTIVES[0], 1)]
    weights = [order.buckets[kind].rows / order.mean_rows for kind in first]
    assert np.mean(weights) == pytest.approx(1.0)
    assert len(set(weights)) == 3


def take(table: Table, config: DataConfig, count: int, **settings) -> list[Batch]:
    settings = {"objective": OBJECTIVES[0], "batch_size": BATCH, **settings}
    with contextlib.closing(TrainBatches(table, config, **settings)) as batches:
        return list(itertools.islice(batches, count))


@pytest.mark.parametrize("start", [0, 7, 23])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_resumed_and_shared_batches_are_those_of_one_run(
    table: Table, config: DataConfig, start: int, processes: int
) -> None:
    whole = take(table, config, start + 20)[start:]
    parts = [
        take(table, config, 20, share=Share((index,), processes), start_step=start)
        for index in range(processes)
    ]
    for step, expected in enumerate(whole):
        for name, value in vars(expected).items():
            found = np.concatenate([getattr(part[step], name) for part in parts])
            np.testing.assert_array_equal(found, value)
    assert len({batch.tokens.shape for batch in whole}) == 3


def test_a_step_may_be_asked_for_twice(table: Table, config: DataConfig) -> None:
    order = make_order(table, config, OBJECTIVES[0], BATCH)
    first = [order.at(step) for step in range(60)]
    for step in (59, 3, 40, 0, 20):
        np.testing.assert_array_equal(order.at(step).rows, first[step].rows)


def test_batches_have_the_same_number_of_slots(table: Table, config: DataConfig) -> None:
    shapes = {batch.tokens.shape: batch.labels.shape for batch in take(table, config, 30)}
    # 16 / 1.5 and 32 / 1.5 labels have room for their slack; the full canvas keeps max_labels
    assert shapes == {(16, 16): (16, 10), (8, 32): (8, 21), (4, 64): (4, 48)}


@pytest.mark.parametrize("objective", OBJECTIVES, ids=["merge", "random", "slack_only", "ce"])
def test_a_bucket_changes_nothing_about_a_row(
    table: Table, config: DataConfig, symbols: Tokenizer, objective: ObjectiveConfig
) -> None:
    """The same draw of slack on both canvases: frames, padding and separators are the same."""
    separates = objective.separate_repeats and objective.collapse == "merge"
    draw = jax.jit(
        lambda key, batch: insert_slack(
            key,
            batch,
            symbols.ids,
            slack_max=objective.slack_max,
            separate_repeats=separates,
        )
    )
    order = make_order(table, config, objective, BATCH)
    short = [owned for owned in map(order.at, range(30)) if owned.bucket.length < config.length]
    most = 0
    for number, (bucket, epochs, rows) in enumerate(short):
        pairs, lengths, padding = draw_epochs(table, config, epochs, rows)
        small = dataclasses.replace(config, length=bucket.length, max_labels=bucket.labels)
        batch = assemble(table, pairs, small, lengths, padding)
        full = assemble(table, pairs, config, lengths, padding)
        np.testing.assert_array_equal(batch.tokens, full.tokens[:, : bucket.length])
        np.testing.assert_array_equal(batch.labels, full.labels[:, : bucket.labels])
        np.testing.assert_array_equal(batch.label_count, full.label_count)
        np.testing.assert_array_equal(batch.valid.sum(1), full.valid.sum(1))
        for draws_of_slack in range(8):
            key = jax.random.fold_in(jax.random.key(number), draws_of_slack)
            here, there = draw(key, batch), draw(key, full)
            for name in ("frames", "response", "valid"):
                np.testing.assert_array_equal(
                    getattr(here, name).sum(1), getattr(there, name).sum(1)
                )
            if separates and objective.slack_max > 0:
                assert not touching(here, symbols.ids.slack).any()
            most = max(most, int(here.valid.sum(1).max() - bucket.length))
    assert most == 0, "some row fills its canvas"


def touching(augmented, slack_id: int) -> np.ndarray:
    """Rows in which two equal labels stand side by side; bool [B]."""
    tokens, frames = np.asarray(augmented.tokens), np.asarray(augmented.frames)
    pairs = frames[:, 1:] & frames[:, :-1] & (tokens[:, 1:] == tokens[:, :-1])
    return (pairs & (tokens[:, 1:] != slack_id)).any(axis=1)


def test_equal_neighbours_are_counted_with_the_terminator(symbols: Tokenizer, make_rows) -> None:
    """A text may end with the token that closes it."""
    texts = ["a", "aa", "aab", "baab", "abbb", "ba"]
    config = plain_config()
    table = make_table(make_rows([pair("b", text) for text in texts]), config, symbols)
    assert table.repeats.tolist() == [0, 1, 1, 1, 2, 0]
    ids = dataclasses.replace(symbols.ids, terminator=symbols.encode("a")[0])
    closing = dataclasses.replace(symbols, ids=ids)  # type: ignore
    table = make_table(make_rows([pair("b", text) for text in texts]), config, closing)
    assert table.repeats.tolist() == [1, 2, 1, 1, 2, 1]


def test_short_rows_of_pretraining_take_short_canvases(symbols: Tokenizer, make_rows) -> None:
    config = plain_config(
        pretraining=True,
        length=48,
        buckets=(12, 24, 48),
        max_labels=48,
        random_length_share=0.5,
        seed=1,
    )
    text = (Message("text", "ab" * 3200),)
    table = make_table(make_rows([text]), config, symbols, slack_max=0.5)
    batches = take(table, config, 40)
    assert {batch.tokens.shape[1] for batch in batches} == {12, 24, 48}
    order = make_order(table, config, OBJECTIVES[0], BATCH)
    steps = walk(table, config, OBJECTIVES[0], 2)
    for step, (kind, rows) in enumerate(steps):
        owned = order.at(step)
        assert (owned.bucket, owned.rows.tolist()) == (
            order.buckets[kind],
            [row for _, row in rows],
        )
