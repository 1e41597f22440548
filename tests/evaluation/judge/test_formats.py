"""Every file that is written is read back equal, in the form that the official tools take."""

import json
from pathlib import Path

import pytest

from jax_mdlm.config import ConfigError
from jax_mdlm.data.examples import Message
from jax_mdlm.evaluation.judge import Judge, find_matches
from jax_mdlm.evaluation.judge.arena_hard import label, markdown_counts
from jax_mdlm.evaluation.judge.creative_writing import CreativeWriting, outcome_fields, read_pluses
from jax_mdlm.evaluation.judge.mt_bench import verdict as read_letter
from jax_mdlm.evaluation.judge.records import Comparison, DecodedTurns, Question
from jax_mdlm.evaluation.judge.wildbench import read_choice
from tests.evaluation.judge.rows import NAMES, answer_file, make, question_file, verdict

JUDGE = Judge("oracle", 9.0)


def both(tmp_path: Path, name: str):
    """A benchmark, its questions, and answers of two models."""
    benchmark = make(name)
    path = question_file(tmp_path, name)
    questions = benchmark.read_questions(str(path))
    files = [answer_file(tmp_path, benchmark, path, model) for model in ("ours", "theirs")]
    return benchmark, questions, [benchmark.read_answers(str(file)) for file in files]


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_read_back(tmp_path, name):
    benchmark, questions, (ours, _) = both(tmp_path, name)
    assert [answer.key for answer in ours] == [question.key for question in questions]
    assert all(answer.model == "ours" for answer in ours)
    assert all(
        answer.turns == tuple(f"ours, turn {i}: {'words ' * 100}ü" for i in range(len(q.turns)))
        for answer, q in zip(ours, questions)
    )
    again = tmp_path / "again.json"
    benchmark.write_answers(again, [answer.row for answer in ours])
    assert benchmark.read_answers(str(again)) == ours
    assert benchmark.read_own(str(again), "ours") == ours
    assert not list(tmp_path.glob("*.partial"))


def test_half_a_surrogate_pair_survives(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"uid": "u", "category": "c", "prompt": "a \\ud83d b \\ud83d\\ude00"}\n')
    file = answer_file(tmp_path, make("arena_hard"), path, "ours")
    (answer,) = make("arena_hard").read_answers(str(file))
    assert answer.row["messages"][0]["content"] == "a \ud83d b \U0001f600"


def test_arena_hard_answers_have_the_official_fields(tmp_path):
    _, _, (ours, _) = both(tmp_path, "arena_hard")
    row = json.loads((tmp_path / "ours.jsonl").read_text().splitlines()[0])
    assert list(row) == ["uid", "ans_id", "model", "messages", "tstamp", "metadata"]
    assert row["messages"] == [
        {"role": "user", "content": "what is a slot?"},
        {"role": "assistant", "content": {"answer": ours[0].turns[0]}},
    ]
    assert list(row["metadata"]) == ["token_len", "header_count", "list_count", "bold_count"]


def test_markdown_counts():
    text = "# a\n## b\n1. x\n- y\n* z\n**bold** __too__\n```\n# code\n- code\n```\n### c"
    counts = markdown_counts(text)
    assert counts["header_count"] == {"h1": 1, "h2": 1, "h3": 1, "h4": 0, "h5": 0, "h6": 0}
    assert counts["list_count"] == {"ordered": 1, "unordered": 2}
    assert counts["bold_count"] == {"**": 1, "__": 1}


def test_mt_bench_answers_have_the_official_fields(tmp_path):
    both(tmp_path, "mt_bench")
    row = json.loads((tmp_path / "ours.jsonl").read_text().splitlines()[0])
    assert list(row) == ["question_id", "answer_id", "model_id", "choices", "tstamp"]
    assert row["question_id"] == 81  # a number, as in the question file
    assert [(c["index"], len(c["turns"])) for c in row["choices"]] == [(0, 2)]


def test_wildbench_answers_have_the_official_fields(tmp_path):
    _, questions, _ = both(tmp_path, "wildbench")
    row = json.loads((tmp_path / "ours.json").read_text())[1]
    assert row["chat_history"] == ["hi", "hello", "name a colour"]
    assert questions[1].given == (Message("user", "hi"), Message("assistant", "hello"))
    assert {key: row[key] for key in ("generator", "dataset", "primary_tag", "model_input")} == {
        "generator": "ours",
        "dataset": "wild_bench",
        "primary_tag": "Planning",
        "model_input": "n/a",
    }
    assert row["configs"]["max_tokens"] == 8
    assert [*row["configs"]][:2] == ["engine", "repetition_penalty"]


def test_creative_writing_runs_are_found_by_the_official_command(tmp_path):
    """Run key, status and the judge's name decide whether it judges instead of generating."""
    benchmark = CreativeWriting(iterations=2, judge="j")
    path = question_file(tmp_path, "creative_writing")
    file = answer_file(tmp_path, benchmark, path, "ours")
    other = {"someone__else": {"creative_tasks": {}, "results": {"x": 1}}}
    file.write_text(json.dumps(json.loads(file.read_text()) | other))
    found = benchmark.read_own(str(file), "ours")
    assert [answer.key for answer in found] == ["0/1", "1/1", "2/1", "0/2", "1/2", "2/2"]
    benchmark.write_answers(file, [answer.row for answer in found])
    runs = json.loads(file.read_text())
    assert set(runs) == {"jax-mdlm__ours", "someone__else"}
    task = runs["jax-mdlm__ours"]["creative_tasks"]["2"]["1"]
    assert task["status"] == "generated"
    assert (task["judge_model"], task["iteration_index"]) == ("j", 2)
    assert task["base_prompt"] == "name a colour <SEED>"
    (seed,) = task["results_by_modifier"]
    assert seed == "seed 1b"
    assert benchmark.read_questions(str(path))[4].turns == ("name a colour seed 1b",)
    assert "--run-id jax-mdlm --iterations 2" in benchmark.hint


def test_short_creative_writing_counts_as_failed():
    benchmark = CreativeWriting()
    assert benchmark.shortest == 500
    for length, failed in ((499, True), (500, False)):
        row = {"prompt_id": "p", "writing_prompt": "w", "seed": "s", "iteration": 1}
        question = Question("p/1", (), ("w",), row)
        row = benchmark.answer_row(question, "m", DecodedTurns(("x" * length,), (1,)), {}, 1.0)
        result = row["results_by_modifier"]["s"]
        assert result["generation_failed"] is failed
        assert ("model_response" in result) is not failed


@pytest.mark.parametrize("name", NAMES)
def test_judgments_are_read_back(tmp_path, name):
    """A judge that knows who wrote what: question 0 for ours, 1 for theirs, 2 a tie."""
    benchmark, questions, answers = both(tmp_path, name)
    rows, expected = [], []
    for match in find_matches(benchmark, questions, *answers):
        number = [question.key for question in questions].index(match.question.key)
        winners = [("A", "B"), ("B", "A"), ("=", "=")][number]
        replies = tuple(verdict(name, winner) for winner in winners)
        rows += benchmark.judgment_rows(match, replies, JUDGE)
        expected += [(match.item, match.unit, [1.0, 0.0, 0.5][number])]
    path = tmp_path / "judgments.json"
    benchmark.write_judgments(path, rows)
    judgments = benchmark.read_judgments(str(path))
    assert judgments.rows == rows
    assert judgments.grades == ()
    found = {}
    for one in judgments.comparisons:
        outcome = one.outcome if one.model == "ours" else 1 - one.outcome
        assert {one.model, one.baseline} == {"ours", "theirs"}
        found.setdefault((one.question, one.unit), set()).add(outcome)
    assert found == {(item, unit): {outcome} for item, unit, outcome in expected}
    benchmark.write_judgments(path, judgments.rows)
    assert benchmark.read_judgments(str(path)) == judgments


@pytest.mark.parametrize("name", NAMES)
def test_prompts_show_both_orders(tmp_path, name):
    benchmark, questions, answers = both(tmp_path, name)
    matches = find_matches(benchmark, questions, *answers)
    assert len(matches) == (6 if name == "mt_bench" else 3)
    for match in matches:
        texts = [prompt[-1]["content"] for prompt in match.prompts]
        assert texts[0].index("ours, turn") < texts[0].index("theirs, turn")
        assert texts[1].index("theirs, turn") < texts[1].index("ours, turn")
        assert all(match.question.turns[0] in text for text in texts)
        second_turn = name == "mt_bench" and match.unit == "2"
        assert ("ours, turn 1" in texts[0]) is second_turn
        assert (match.question.turns[-1] in texts[0]) or name == "mt_bench"
    reference = matches[3 if name == "mt_bench" else 0].prompts[0][-1]["content"]
    assert ("blue\n\nb" in reference) is (name == "mt_bench")


def test_an_empty_answer_is_named(tmp_path):
    benchmark, questions, (ours, theirs) = both(tmp_path, "arena_hard")
    row = benchmark.answer_row(questions[0], "ours", DecodedTurns((" ",), (0,)), {}, 1.0)
    benchmark.write_answers(tmp_path / "empty.jsonl", [row])
    ours = benchmark.read_answers(str(tmp_path / "empty.jsonl"))
    (match,) = find_matches(benchmark, questions[:1], ours, theirs)
    assert "(this answer is empty)" in match.prompts[0][-1]["content"]


def test_arena_hard_games_stand_in_the_official_order(tmp_path):
    benchmark, questions, answers = both(tmp_path, "arena_hard")
    match = find_matches(benchmark, questions, *answers)[0]
    (row,) = benchmark.judgment_rows(match, ("[[A>B]]", "nothing"), JUDGE)
    assert [game["score"] for game in row["games"]] == [None, "A>B"]
    shown = row["games"][0]["prompt"][-1]["content"]
    assert shown.index("theirs, turn") < shown.index("ours, turn")  # the baseline is A
    assert (row["model"], row["baseline"], row["judge"]) == ("ours", "theirs", "oracle")
    assert row["category"] == "hard_prompt"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("I say [[A>B]], no: [[b>>a]]", "B>>A"),
        ("[A=B]", "A=B"),
        ("[[A]]", None),
        ("A>B", None),
        ("", None),
    ],
)
def test_arena_hard_labels(reply, expected):
    assert label(reply) == expected


def test_other_verdicts():
    assert [read_letter(text) for text in ("[[A]] no [[C]]", "A", "")] == ["C", None, None]
    assert read_choice('{"choice": "A++"}') == "A++"
    assert read_choice('so {"reason": "a "quote"", "choice" : "B+",}') == "B+"
    assert [read_choice(text) for text in ('{"choice": "A"}', '{"choice": 1}', "[]", "A++")] == [
        None
    ] * 4


def test_pluses_by_hand():
    reply = json.dumps({"writing_quality": "A0493+++", "coherence": "A0488++", "reasons": "A0493+"})
    assert read_pluses(reply) == (3 - 2, 2)  # the loser pays for coherence
    assert outcome_fields(reply, first_is_a=False) == {
        "order": "A0493:other / A0488:test",
        "judge_response": {"reply": reply},
        "outcome_for_test_model": 1.0,
        "plus_for_test": 2,
        "plus_for_other": 1,
        "plus_diff": 1,
        "plus_diff_normalized": 1 / 45,
        "plus_diff_blended": 1 / 45,
        "fraction_for_test": 0.5 + 1 / 90,
    }
    lost = outcome_fields(reply, first_is_a=True)
    assert (lost["outcome_for_test_model"], lost["fraction_for_test"]) == (0.0, 1 - (0.5 + 1 / 90))
    for broken in ("", "{", "{}", '{"writing_quality": "C++"}', '{"writing_quality": 3}', "[1]"):
        assert read_pluses(broken) is None
        assert outcome_fields(broken, first_is_a=True)["error"] == "no verdict in the judge's reply"


def write(tmp_path: Path, rows, name: str = "f.jsonl") -> str:
    path = tmp_path / name
    listed = name.endswith(".json")
    path.write_text(json.dumps(rows) if listed else "".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_official_mt_bench_judgments(tmp_path):
    """A win needs both orders; -1 and `error` are no verdicts."""
    single = {"model": "m", "judge": ["gpt-4", "single-v1"], "user_prompt": "p", "judgment": "j"}
    rows = [
        single | {"question_id": 81, "turn": 1, "score": 7, "tstamp": 1.0},
        single | {"question_id": 81, "turn": 2, "score": -1, "tstamp": 1.0},
    ]
    pairs = [("model_1", "model_1"), ("model_2", "model_2"), ("model_1", "tie")]
    pairs += [("model_1", "model_2"), ("tie", "tie"), ("model_1", "error")]
    rows += [
        {"question_id": i, "model_1": "m", "model_2": "n", "g1_winner": a, "g2_winner": b}
        | ({"turn": 2} if i else {})
        for i, (a, b) in enumerate(pairs)
    ]
    judgments = make("mt_bench").read_judgments(write(tmp_path, rows))
    assert [(grade.question, grade.score) for grade in judgments.grades] == [
        ("81", 7),
        ("81", None),
    ]
    assert [one.outcome for one in judgments.comparisons] == [1, 0, 0.5, 0.5, 0.5, None]
    assert [one.unit for one in judgments.comparisons] == ["1", *"22222"]


def test_official_wildbench_judgments(tmp_path):
    """Of the batch tools and of eval.py: scores and pairs; scores are strings there."""
    rows = [
        {"session_id": "s1", "model_test": "m", "score": "6", "parsed_result": {}},
        {"session_id": "s2", "generator": "m", "parsed_result": {"score": "8"}},
        {"session_id": "s3", "generator": "m", "parsed_result": {"N/A": "N/A"}},
        {"session_id": "s1", "model_A": "n", "model_B": "m", "winner": "m", "extent": 2},
        {"session_id": "s2", "model_A": "m", "model_B": "n", "winner": "tie", "extent": 0},
        {"session_id": "s3", "assignment": {"A": "m", "B": "n"}, "parsed_result": {"choice": "A+"}},
        {
            "session_id": "s4",
            "assignment": {"A": "m", "B": "n"},
            "parsed_result": {"choice": "N/A"},
        },
    ]
    judgments = make("wildbench").read_judgments(write(tmp_path, rows, "f.json"))
    assert [grade.score for grade in judgments.grades] == [6, 8, None]
    assert judgments.comparisons == (
        Comparison("s1", "", "n", "m", 0.0),
        Comparison("s2", "", "m", "n", 0.5),
        Comparison("s3", "", "m", "n", 1.0),
        Comparison("s4", "", "m", "n", None),
    )


def test_official_creative_writing_grades(tmp_path):
    """Scores of criteria where lower is better are turned; what is above 20 is not counted."""

    def task(status, scores):
        block = {"model_response": "x", "judge_scores": scores}
        known = {"prompt_id": "7", "iteration_index": 1, "test_model": "m"}
        return known | {"status": status, "results_by_modifier": {"s": block}}

    scores = {"Elegant Prose": 15.0, "Purple Prose": 5.0, "Coherent": 21, "Overwrought": 8}
    tasks = {"7": task("completed", scores), "8": task("completed", {}), "9": task("generated", {})}
    runs = {"r__m": {"test_model": "m", "creative_tasks": {"1": tasks}}}
    path = tmp_path / "runs.json"
    path.write_text(json.dumps(runs))
    judgments = make("creative_writing").read_judgments(str(path))
    assert [grade.score for grade in judgments.grades] == [
        pytest.approx(5 * (15 + 15 + 12) / 3),
        None,
    ]


MALFORMED = [
    ("arena_hard", "questions", {"uid": "u", "category": "c"}, "a string prompt, got nothing"),
    ("arena_hard", "questions", {"uid": None, "prompt": "p", "category": "c"}, "the id uid"),
    (
        "arena_hard",
        "answers",
        {"uid": "u", "model": "m", "messages": [{"content": "text"}]},
        r"a string messages\[-1\].content.answer, got nothing",
    ),
    (
        "arena_hard",
        "judgments",
        {"uid": "u", "model": "m", "baseline": "b", "games": [{"score": "A"}, {"score": "A=B"}]},
        r"a label such as A>B in games\[0\].score, got \"A\"",
    ),
    ("arena_hard", "judgments", {"uid": "u", "model": "m", "baseline": "b", "games": [1]}, "two"),
    ("mt_bench", "questions", {"question_id": 1, "turns": []}, "at least one text in turns"),
    ("mt_bench", "questions", {"question_id": 1, "turns": [3]}, r"a string turns\[0\], got 3"),
    ("mt_bench", "answers", {"question_id": 1, "model_id": "m", "choices": []}, "a list choices"),
    ("mt_bench", "judgments", {"question_id": 1, "model": "m", "score": True}, "the number score"),
    (
        "mt_bench",
        "judgments",
        {"question_id": 1, "model_1": "m", "g1_winner": "m", "g2_winner": "m"},
        'a winner out of model_1, model_2, tie, error, got "m"',
    ),
    ("wildbench", "answers", {"session_id": "s", "generator": "g", "output": []}, r"output\[0\]"),
    (
        "wildbench",
        "judgments",
        {"session_id": "s", "model_A": "a", "model_B": "b", "winner": "c"},
        'a winner out of a, b, tie, got "c"',
    ),
]


@pytest.mark.parametrize(("name", "kind", "row", "message"), MALFORMED)
def test_malformed_rows_name_file_and_place(tmp_path, name, kind, row, message):
    form = name == "wildbench" and kind != "questions"
    file = write(tmp_path, [row], "bad.json" if form else "bad.jsonl")
    place = "bad.json: entry 1: " if form else "bad.jsonl:1: "
    with pytest.raises(ConfigError, match=f"{place}.* must have .*{message}"):
        getattr(make(name), f"read_{kind}")(file)


def test_malformed_wildbench_questions(tmp_path):
    row = {"session_id": "s", "checklist": [], "primary_tag": "t"}
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    file = write(tmp_path, [row | {"conversation_input": talk}])
    with pytest.raises(ConfigError, match="a conversation_input that ends with the user, got"):
        make("wildbench").read_questions(file)
    file = write(tmp_path, [row | {"conversation_input": talk[:1]}], "list.json")
    assert make("wildbench").read_questions(file)[0].turns == ("a",)
    (tmp_path / "list.json").write_text(f"[{'9' * 5000}]")
    with pytest.raises(ConfigError, match=r"list.json must be JSON, it has a number too long"):
        make("wildbench").read_questions(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold questions, it is empty"),
        (b'{"uid": 1', r"f.jsonl:1 is not JSON \(.* at column 10\); correct the line"),
        (b"\n[1]\n", "f.jsonl:2 must be a JSON object, got list"),
        (b"\xff", r"f.jsonl:1 is not UTF-8 \(invalid start byte\)"),
        (b"[" * 100_000, "f.jsonl:1 is not JSON that can be read"),
        (b'{"uid": 1, "prompt": "p", "category": "c"}\n' * 2, "two questions have the key 1"),
    ],
)
def test_files_that_are_none(tmp_path, content, message):
    path = tmp_path / "f.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        make("arena_hard").read_questions(str(path))


def test_other_files_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match=r"no file .*none.jsonl; correct the path"):
        make("mt_bench").read_answers(str(tmp_path / "none.jsonl"))
    file = write(tmp_path, {"a": 1}, "f.json")
    with pytest.raises(ConfigError, match="must hold a JSON list, got dict"):
        make("wildbench").read_answers(file)
    with pytest.raises(ConfigError, match="a creative writing prompt file must have an object a"):
        make("creative_writing").read_questions(file)
    file = write(tmp_path, {"1": {"writing_prompt": "p", "seed_modifiers": []}}, "f.json")
    with pytest.raises(ConfigError, match="prompt 1: .* at least one of seed_modifiers"):
        make("creative_writing").read_questions(file)
