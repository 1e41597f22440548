"""Win rates and grades by hand, and matches that are judged in order, once, and go on."""

import threading

import numpy as np
import pytest

from jax_mdlm.config import ConfigError
from jax_mdlm.evaluation.intervals import bootstrap_mean
from jax_mdlm.evaluation.judge import (
    find_matches,
    judge_matches,
    mean_grades,
    not_judged,
    one_model,
    win_rates,
)
from jax_mdlm.evaluation.judge.client import RefusedRequest
from jax_mdlm.evaluation.judge.records import Comparison, Grade, ModelAnswer
from tests.evaluation.judge.rows import answer_file, make, question_file


def compared(*rows, pair=("m", "n")):
    return [Comparison(question, unit, *pair, outcome) for question, unit, outcome in rows]


def test_win_rate_by_hand():
    """Question values: a 3/4 (two parts), b 1/2 (two orders), c 0, d 1 (one part unread)."""
    rows = compared(
        ("a", "1", 1.0),
        ("a", "2", 0.5),
        ("b", "", 1.0),
        ("b", "", 0.0),
        ("c", "", 0.0),
        ("d", "1", 1.0),
        ("d", "2", None),
        ("e", "", None),
        ("e", "", 1.0),  # the other order alone does not count
    )
    (rate,) = win_rates(rows)
    assert (rate.model, rate.baseline, rate.questions, rate.left_out) == ("m", "n", 4, 2)
    assert rate.rate.value == 2.25 / 4
    assert rate.rate.ends is None  # four questions
    (many,) = win_rates([one for n in range(30) for one in compared((f"q{n}", "", float(n > 9)))])
    assert many.rate == bootstrap_mean(np.repeat([0.0, 1.0], [10, 20]))
    assert many.rate.low < many.rate.value < many.rate.high


def test_pairs_are_turned_one_way():
    rows = compared(("a", "", 1.0)) + compared(("a", "", 0.0), ("b", "", 0.0), pair=("n", "m"))
    rows += compared(("a", "", 0.5), pair=("x", "m"))
    first, second = win_rates(rows)
    assert (first.model, first.rate.value, first.questions) == ("m", 1.0, 2)
    assert (second.model, second.baseline) == ("x", "m")
    turned = win_rates(rows, "m")
    assert [(one.model, one.baseline, one.rate.value) for one in turned] == [
        ("n", "m", 0.0),
        ("x", "m", 0.5),
    ]
    (only,) = win_rates(rows, "x")
    assert (only.model, only.baseline, only.rate.value) == ("m", "x", 0.5)


def test_errors_of_win_rates():
    with pytest.raises(ConfigError, match="--baseline z must be one of the models compared: m, n"):
        win_rates(compared(("a", "", 1.0)), "z")
    with pytest.raises(ConfigError, match="a verdict on m and n, none could be read of 2"):
        win_rates(compared(("a", "1", None), ("b", "", None)))


def test_grades_by_hand():
    """Both turns of a question are one value."""
    grades = [Grade("a", "m", 2.0), Grade("a", "m", 4.0), Grade("b", "m", 9.0)]
    grades += [Grade("c", "m", None), Grade("a", "n", 1.0)]
    first, second = mean_grades(grades)
    assert first.grade == bootstrap_mean(np.array([3.0, 9.0]))
    assert (first.questions, first.left_out) == (2, 1)
    assert (second.model, second.grade.value) == ("n", 1.0)
    with pytest.raises(ConfigError, match="graded an answer of m, none of 1 has a grade"):
        mean_grades(grades[3:])


@pytest.fixture
def matches(tmp_path):
    benchmark = make("mt_bench")
    path = question_file(tmp_path, "mt_bench")
    files = [answer_file(tmp_path, benchmark, path, model) for model in ("ours", "theirs")]
    answers = [benchmark.read_answers(str(file)) for file in files]
    return find_matches(benchmark, benchmark.read_questions(str(path)), *answers)


def names(matches):
    return [(match.item, match.unit) for match in matches]


def test_what_is_judged_is_not_judged_again(matches):
    done = compared(("81", "2", 1.0), pair=("theirs", "ours"))
    done += compared(("83", "1", None), pair=("ours", "theirs"))
    done += compared(("82", "1", 1.0), pair=("ours", "others"))
    assert names(not_judged(matches, done)) == [
        ("81", "1"),
        ("82", "1"),
        ("82", "2"),
        ("83", "2"),
    ]


def test_matches_are_judged_side_by_side_and_come_in_order(matches):
    together = threading.Barrier(3, timeout=10)

    def ask(messages):
        together.wait()  # only three requests at once get through
        return messages[-1]["content"]

    judged = list(judge_matches(matches, ask, parallel=3))
    assert names(match for match, _ in judged) == names(matches)
    assert all(
        replies == tuple(prompt[-1]["content"] for prompt in match.prompts)
        for match, replies in judged
    )


def test_a_failure_keeps_what_came_before(matches):
    asked = []

    def ask(messages):
        asked.append(messages)
        if len(asked) == 4:
            raise ConfigError("gone")
        return "r"

    judged = judge_matches(matches, ask, parallel=1)
    assert [match.item for match, _ in (next(judged), judged)[:1]] == ["81"]
    with pytest.raises(ConfigError, match="gone"):
        next(judged)
    assert len(asked) <= 2 * 4  # the failed match, the one before, and two that were under way


def test_a_refused_conversation_does_not_stop_the_others(matches):
    def ask(messages):
        if "what is a slot?" in messages[-1]["content"]:
            raise RefusedRequest("too long")
        return "r"

    judged = list(judge_matches(matches, ask, parallel=2))
    assert [replies for _, replies in judged] == [("", "")] * 2 + [("r", "r")] * 4


@pytest.mark.parametrize("count", [1, 2, 6])
def test_when_all_are_refused_it_is_not_about_them(matches, count):
    def ask(messages):
        raise RefusedRequest("no such model")

    judged = judge_matches(matches[:count], ask, parallel=1)
    with pytest.raises(RefusedRequest, match="no such model"):
        next(judged)


def test_answers_must_fit_the_questions(tmp_path):
    benchmark = make("mt_bench")
    path = question_file(tmp_path, "mt_bench")
    questions = benchmark.read_questions(str(path))
    answers = benchmark.read_answers(str(answer_file(tmp_path, benchmark, path, "ours")))
    with pytest.raises(ConfigError, match="question 83 must have an answer of ours, it has none"):
        find_matches(benchmark, questions, answers, answers[:2])
    short = ModelAnswer("81", "theirs", ("one",), {})
    with pytest.raises(ConfigError, match="of theirs to question 81 must have 2 turns, it has 1"):
        find_matches(benchmark, questions, answers, [short])


def test_one_model_of_a_file():
    answers = [ModelAnswer("1", "m", ("x",), {}), ModelAnswer("1", "n", ("y",), {})]
    assert one_model(answers, "f", "n") == answers[1:]
    assert one_model(answers[:1], "f", None) == answers[:1]
    with pytest.raises(ConfigError, match="one of its models after #; it holds: m, n; write FILE#"):
        one_model(answers, "f", None)
    with pytest.raises(ConfigError, match="--answers f needs answers of z; it holds: m, n"):
        one_model(answers, "f", "z")
    with pytest.raises(ConfigError, match="f must hold answers, it is empty"):
        one_model([], "f", None)
