"""Places of slack by hand, against direct counts, and targets as the training step draws them."""

import dataclasses

import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from jax_mdlm.config import Config, ConfigError, DataConfig, ObjectiveConfig, SampleConfig
from jax_mdlm.config import TokenizerConfig as Tokens
from jax_mdlm.containers import SpecialIds
from jax_mdlm.data.tokenizer import load_tokenizer
from jax_mdlm.evaluation.scores import METRICS
from jax_mdlm.evaluation.tasks import Task
from jax_mdlm.experiments.slack_places import (
    LONGEST,
    START,
    Gap,
    Neighbour,
    Response,
    draw_targets,
    gaps,
    measure_places,
    of_answer,
    of_target,
    top,
)
from jax_mdlm.sampling import Answer

S, END, EOS = 24, 21, 22  # slack, terminator, end of text; smaller numbers are text
IDS = SpecialIds(mask=25, slack=S, pad=23, eos=EOS, terminator=END)


def response(*slots: int, calls: list[int] | None = None, behind: int = 0) -> Response:
    at = None if calls is None else np.array(calls)
    return Response(np.array(slots, int), behind, at, END)


def test_gaps_by_hand() -> None:
    found = list(gaps(response(S, 1, S, S, 2, 2, S), IDS))
    assert found == [Gap(START, 1, 1), Gap(1, 2, 2), Gap(2, 2, 0), Gap(2, END, 1)]
    assert list(gaps(response(), IDS)) == [Gap(START, END, 0)]


def test_a_response_ends_at_its_terminator() -> None:
    slots = np.array([1, S, 2, END, S, EOS])
    answer = Answer([1, 2], slots, np.array([0, 3, 1, 2, 4, 5]), np.zeros(6, bool), 6)
    found = of_answer(answer, IDS)
    assert found.slots.tolist() == [1, S, 2]
    assert found.behind == 1
    assert found.calls is not None
    assert found.calls.tolist() == [0, 3, 1]
    endless = dataclasses.replace(answer, response=np.array([1, S, 2, 3, S, 4]))
    assert of_answer(endless, IDS).slots.tolist() == [1, S, 2, 3, S, 4]


def test_a_target_is_its_frames() -> None:
    tokens = np.array([7, 8, S, 1, S, END, EOS, EOS])
    frames = np.array([0, 0, 1, 1, 1, 1, 0, 0], bool)
    assert of_target(tokens, frames, IDS).slots.tolist() == [S, 1, S]
    cut = of_target(np.array([7, 8, S, 1, S, 3, EOS, EOS]), frames, IDS)
    assert cut.slots.tolist() == [S, 1, S, 3], "a row that was cut has no terminator"


def test_measure_by_hand() -> None:
    """Two responses: `_ a _ _ b b _` and `a a`; one slack more behind the second terminator."""
    places = measure_places(
        [
            response(S, 1, S, S, 2, 2, S, calls=[6, 0, 2, 4, 1, 3, 6]),
            response(1, 1, calls=[0, 4], behind=1),
        ],
        IDS,
        bins=2,
    )
    assert (places.rows, places.slots, places.slack) == (2, 9, 4)
    assert places.share == 4 / 9
    # halves hold 3.5 + 1 slots each; slots 0, 2 and half of slot 3 are slack, half of 3 and slot 6
    np.testing.assert_allclose(places.position, [2.5 / 4.5, 1.5 / 4.5])
    assert places.runs.tolist() == [2 / 3, 1 / 3, 0, 0]
    assert places.per_gap == {"start": 1 / 2, "between": 2 / 3, "equal": 0, "tail": 1 / 2}
    assert places.tail_share == 1 / 4
    assert places.behind == 1 / 2
    usual = 3 / 7  # gaps with slack
    assert places.before == {
        START: Neighbour(2, 1, 1 / 2 / usual),
        1: Neighbour(3, 1, 1 / 3 / usual),
        2: Neighbour(2, 1, 1 / 2 / usual),
    }
    assert places.after == {
        1: Neighbour(3, 1, 1 / 3 / usual),
        2: Neighbour(2, 1, 1 / 2 / usual),
        END: Neighbour(2, 1, 1 / 2 / usual),
    }
    timing = places.timing
    assert timing is not None
    # slack at 6/6, 2/6, 4/6, 6/6; text at 0, 1/6, 3/6 and, in the second row, 0 and 4/4
    assert timing.slack.tolist() == [1 / 4, 3 / 4]
    assert timing.text.tolist() == [3 / 5, 2 / 5]
    assert timing.mean_slack == pytest.approx(18 / 24)
    assert timing.mean_text == pytest.approx((4 / 6 + 1) / 5)


def test_long_runs_are_counted_together() -> None:
    places = measure_places([response(*[S] * LONGEST, 1, *[S] * (LONGEST + 3), 2, S)], IDS)
    assert places.runs.tolist() == [1 / 3, 0, 0, 2 / 3]
    assert places.timing is None


slots = st.lists(st.sampled_from([1, 2, S]), max_size=8)


@given(st.lists(slots, min_size=1, max_size=5), st.integers(1, 7))
def test_position_against_a_fine_grid(rows: list[list[int]], bins: int) -> None:
    """Every response stretched to 1 and read at 840 points, a multiple of all lengths and bins."""
    places = measure_places([response(*row) for row in rows], IDS, bins=bins)
    points, inside, total = 840, np.zeros(bins), 0
    for row in filter(None, rows):
        fine = np.repeat([slot == S for slot in row], points // len(row))
        inside += len(row) * fine.reshape(bins, -1).mean(1)
        total += len(row)
    np.testing.assert_allclose(places.position, inside / max(total, 1), atol=1e-12)


@given(st.lists(slots, min_size=1, max_size=5))
def test_sums_agree(rows: list[list[int]]) -> None:
    places = measure_places([response(*row) for row in rows], IDS)
    text = sum(slot != S for row in rows for slot in row)
    for neighbours in (places.before, places.after):
        assert sum(one.gaps for one in neighbours.values()) == text + len(rows)
    filled = {sum(one.filled for one in n.values()) for n in (places.before, places.after)}
    assert len(filled) == 1
    np.testing.assert_allclose(places.position.mean(), places.share)


def test_no_slack_and_no_text() -> None:
    places = measure_places([response(1, 2)], IDS)
    assert places.share == 0
    assert np.isnan(places.tail_share)
    assert np.isnan(places.per_gap["equal"])
    assert np.isnan(places.before[1].lift)
    assert not places.runs.any()
    # only slack: neither a start nor a tail
    places = measure_places([response(S, S)], IDS)
    assert np.isnan(places.per_gap["start"])
    assert places.tail_share == 0
    empty = measure_places([response(calls=[])], IDS)
    assert (empty.slots, empty.share) == (0, 0)
    assert empty.timing is not None
    assert np.isnan(empty.timing.mean_text)


def test_top_leaves_rare_tokens_out() -> None:
    neighbours = {
        1: Neighbour(40, 10, 2.0),
        2: Neighbour(29, 29, 9.0),
        3: Neighbour(30, 20, 3.0),
        4: Neighbour(99, 50, 2.0),
    }
    assert [token for token, _ in top(neighbours, 2)] == [3, 1]
    assert [token for token, _ in top(neighbours, 9, least=1)] == [2, 3, 1, 4]


def test_what_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="places of slack need at least one response, got none"):
        measure_places([], IDS)
    with pytest.raises(ValueError, match="must be all decoded or all targets, got both"):
        measure_places([response(1), response(1, calls=[0])], IDS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    folder = epath.Path(tmp_path_factory.mktemp("tokens"))
    return load_tokenizer(Tokens("symbols"), folder, lambda: ["abc", "A B C"])


def make_config(**objective: object) -> Config:
    return Config(
        objective=ObjectiveConfig(**objective),
        data=DataConfig(template="plain", length=24, max_labels=12, tokenizer=Tokens("symbols")),
        sample=SampleConfig(batch_size=4),
    )


def make_task(count: int) -> Task:
    asked = [f"{'abc'[i % 3]}" for i in range(count)]
    return Task("toy", list(asked), [("A B B C A", "C")] * count, METRICS["exact"])


def test_targets_have_the_labels_and_separated_repeats(tokenizer) -> None:
    """10 rows, batches of 4: rows that fill up the last one do not count."""
    found = draw_targets(make_config(slack_max=0.5), make_task(10), tokenizer)
    assert len(found) == 10
    slack = tokenizer.ids.slack
    labels = tokenizer.encode("A B B C A")
    for one in found:
        assert [token for token in one.slots if token != slack] == labels
        assert one.calls is None
    places = measure_places(found, tokenizer.ids)
    assert places.per_gap["equal"] >= 1
    random = draw_targets(
        make_config(slack_max=0.5, separate_repeats=False), make_task(400), tokenizer
    )
    places = measure_places(random, tokenizer.ids)
    # Uniform placement: six gaps, all alike; 0 to 3 slacks a row, 1.5 on average.
    for share in places.per_gap.values():
        assert share == pytest.approx(0.25, abs=0.08)
    assert places.share == pytest.approx(1.5 / 6.5, abs=0.03)


def test_targets_of_messages_and_without_slack(tokenizer) -> None:
    task = make_task(1)
    said = [{"role": "user", "content": "a"}]
    task = dataclasses.replace(task, conversations=[said])
    (one,) = draw_targets(make_config(slack_max=0.0), task, tokenizer)
    assert one.slots.tolist() == tokenizer.encode("A B B C A")
    with pytest.raises(ConfigError, match="conversation: role of message 1 must be a string"):
        draw_targets(
            make_config(), dataclasses.replace(task, conversations=[[{"a": "b"}]]), tokenizer
        )


def test_targets_are_the_same_at_every_call(tokenizer) -> None:
    first, second = (
        draw_targets(make_config(slack_max=0.5), make_task(5), tokenizer) for _ in range(2)
    )
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a.slots, b.slots)


def test_a_pretraining_run_has_no_answers(tokenizer) -> None:
    config = make_config()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, pretraining=True))
    with pytest.raises(ConfigError, match="a run with data.pretraining=true has no answers"):
        draw_targets(config, make_task(2), tokenizer)
