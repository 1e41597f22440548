"""`evaluate judge` from a run to a win rate, with random parameters and a stub for a judge."""

import json

import pytest
from etils import epath

from jax_mdlm.config import (
    Config,
    ConfigError,
    DataConfig,
    ModelConfig,
    SampleConfig,
    TokenizerConfig,
)
from jax_mdlm.data.examples import Message
from jax_mdlm.data.tokenizer import load_tokenizer
from jax_mdlm.evaluate import main
from jax_mdlm.mdlm import Mdlm
from tests.evaluation.judge.rows import NAMES, answer_file, make, question_file, verdict
from tests.evaluation.judge.stub import serve
from tests.models import save_run
from tests.sampling.standin import random_params

TEXTS = ["what is masked is filled in, a few slots at a time"]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    """A run with random parameters and a byte-level tokenizer: any question can be asked."""
    model = ModelConfig(
        vocab_size=300,
        embed=16,
        layers=1,
        heads=2,
        kv_heads=2,
        head_dim=8,
        mlp=24,
        max_length=256,
        compute_dtype="float32",
        remat="none",
    )
    tokenizer = TokenizerConfig("bpe", vocab_size=300)
    sample = SampleConfig(length=4, block_length=4, steps=4, temperature=1.0, batch_size=2)
    config = Config(
        model=model,
        data=DataConfig(length=256, max_labels=64, tokenizer=tokenizer),
        sample=sample,
    )
    folder = epath.Path(tmp_path_factory.mktemp("run"))
    load_tokenizer(tokenizer, folder / "tokenizer", lambda: TEXTS)
    save_run(folder, config, random_params(model), step=7)
    return folder


def answers(workdir, name, questions, output, *more, model="tiny"):
    flags = ["--benchmark", name, "--questions", str(questions), "--workdir", str(workdir)]
    main(["judge", "answers", *flags, "--model", model, "--output", str(output), *more])
    benchmark = make(name)
    return [answer.turns for answer in benchmark.read_own(str(output), model)]


@pytest.mark.parametrize("name", NAMES)
def test_answers(workdir, tmp_path, capsys, name):
    questions = question_file(tmp_path, name)
    output = tmp_path / "new" / "out.json"
    turns = answers(workdir, name, questions, output)
    assert [len(one) for one in turns] == [2 if name == "mt_bench" else 1] * 3
    assert len(set(turns)) > 1
    err = capsys.readouterr().err
    assert f"3 of 3 questions answered in {output}" in err
    assert ("3 answers have fewer than 500 characters" in err) is (name == "creative_writing")
    hints = ("arena-hard-v2.0/model_answer/tiny.jsonl", "mt_bench/model_answer/tiny.jsonl")
    hints += ("--local_result_file", "--run-id jax-mdlm")
    assert hints[NAMES.index(name)] in err


def test_a_list_that_is_interrupted_ends_like_one_that_is_not(workdir, tmp_path):
    """Batches of two: one question is left of the second batch, and one of the first."""
    questions = question_file(tmp_path, "mt_bench")
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    expected = answers(workdir, "mt_bench", questions, whole)
    for limit in (1, 2):
        assert (
            answers(workdir, "mt_bench", questions, part, "--limit", str(limit))
            == (expected[:limit])
        )
    kept = part.read_text()
    assert answers(workdir, "mt_bench", questions, part) == expected
    assert part.read_text().startswith(kept)
    before = part.read_text()
    answers(workdir, "mt_bench", questions, part)
    assert part.read_text() == before


def test_the_second_turn_sees_the_first_answer(workdir, tmp_path, monkeypatch):
    talks, encode = [], Mdlm.encode

    def spy(self, talk):
        talks.append(list(talk))
        return encode(self, talk)

    monkeypatch.setattr(Mdlm, "encode", spy)
    questions = question_file(tmp_path, "mt_bench")
    ((first, _),) = answers(workdir, "mt_bench", questions, tmp_path / "o.jsonl", "--limit", "1")
    asked = Message("user", "what is a slot?")
    again = Message("user", "and now shorter")
    assert talks == [[asked], [asked, Message("assistant", first), again]]


def test_what_was_said_before_is_asked_with(workdir, tmp_path, monkeypatch):
    talks, encode = [], Mdlm.encode
    monkeypatch.setattr(Mdlm, "encode", lambda *a: talks.append(a[1]) or encode(*a))
    questions = question_file(tmp_path, "wildbench")
    answers(workdir, "wildbench", questions, tmp_path / "o.json", "--limit", "2")
    assert [[message.content for message in talk[:-1]] for talk in talks] == [
        ["what is a slot?"],
        ["hi", "hello", "name a colour"],
    ]


def test_answers_are_not_mixed(workdir, tmp_path):
    questions = question_file(tmp_path, "arena_hard")
    output = tmp_path / "out.jsonl"
    answers(workdir, "arena_hard", questions, output, "--limit", "1")
    with pytest.raises(ConfigError, match=r"begun with other settings \(steps=4 there, 2 here\)"):
        answers(workdir, "arena_hard", questions, output, "--config.sample.steps=2")
    with pytest.raises(ConfigError, match="must hold answers of other, it has one of tiny"):
        answers(workdir, "arena_hard", questions, output, model="other")
    rows = questions.read_text().splitlines(keepends=True)
    questions.write_text("".join(rows[1:]))
    with pytest.raises(ConfigError, match="answer 1 must be to question u1, it is to u0"):
        answers(workdir, "arena_hard", questions, output)
    questions.write_text("".join(rows))
    (tmp_path / "out.jsonl.settings.json").unlink()
    with pytest.raises(ConfigError, match="settings.json does not say how they were made"):
        answers(workdir, "arena_hard", questions, output)


def test_questions_that_do_not_fit(workdir, tmp_path):
    questions = question_file(tmp_path, "mt_bench")
    row = json.loads(questions.read_text().splitlines()[0])
    row["turns"] = ["short", "x " * 300]
    questions.write_text(json.dumps(row) + "\n")
    output = tmp_path / "out.jsonl"
    with pytest.raises(
        ConfigError, match="question 81, turn 2 with .* or leave its answer empty with"
    ):
        answers(workdir, "mt_bench", questions, output)
    ((first, second),) = answers(workdir, "mt_bench", questions, output, "--too-long", "empty")
    assert first
    assert second == ""


def test_the_batch_size_changes_no_answer(workdir, tmp_path):
    """Though the temperature is 1, and one question is left out, and one has a turn less."""
    questions = question_file(tmp_path, "mt_bench")
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    rows[0]["turns"] = ["x " * 300, "what is a slot?"]
    rows[1]["turns"] = rows[1]["turns"][:1]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = []
    for size in (2, 3):
        more = ("--too-long", "empty", f"--config.sample.batch_size={size}")
        output = tmp_path / f"{size}.jsonl"
        found.append(answers(workdir, "mt_bench", questions, output, *more))
    assert found[0] == found[1]
    assert [len(turns) for turns in found[0]] == [2, 1, 2]
    assert found[0][0] == ("", "")
    assert all(found[0][2])


def compare(name, url, tmp_path, *more):
    """Ours against theirs; the output."""
    benchmark, questions = make(name), question_file(tmp_path, name)
    files = [str(answer_file(tmp_path, benchmark, questions, model)) for model in ("o", "t")]
    output = tmp_path / "judgments.json"
    flags = ["--benchmark", name, "--questions", str(questions), "--output", str(output)]
    flags += ["--answers", files[0], "--answers", f"{files[1]}#t", "--judge-model", "stub"]
    main(["judge", "compare", *flags, "--url", url, "--timeout", "5", *more])
    return output


def knows(name):
    """A judge that finds o better, but for the second question, where it prefers what is A."""

    def reply(messages):
        text = messages[-1]["content"]
        first_is_a = text.index("o, turn") < text.index("t, turn")
        return verdict(name, "A" if first_is_a or "name a colour" in text else "B")

    return reply


@pytest.mark.parametrize("name", NAMES)
def test_compare_and_report(tmp_path, capsys, name):
    script = [{"status": 429, "headers": {"Retry-After": "0"}}] * (name == "arena_hard")
    with serve(script, knows(name)) as stub:
        output = compare(name, stub.url, tmp_path, "--parallel", "2")
        asked = len(stub.requests)
        assert asked == len(script) + 2 * (6 if name == "mt_bench" else 3)
        before = output.read_text()
        compare(name, stub.url, tmp_path)
        assert len(stub.requests) == asked
        assert output.read_text() == before
    capsys.readouterr()
    main(["judge", "report", "--benchmark", name, "--judgments", str(output), "--json"])
    (rate,) = json.loads(capsys.readouterr().out)["win_rates"]
    assert rate["win_rate"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert (rate["model"], rate["baseline"], rate["questions"]) == ("o", "t", 3)
    main(["judge", "report", "--benchmark", name, "--judgments", str(output), "--baseline", "o"])
    none = "(no interval: 3 questions, at least 25 are needed)"
    text = f"t against o: win rate 16.7 % {none}, 3 questions"
    assert capsys.readouterr().out.strip() == text


def test_compare_keeps_what_was_judged(tmp_path, capsys):
    """The server fails for good in the second match; the next run asks only for the rest."""
    script = [{}, {}, {}, {"status": 401, "body": "expired"}]
    with serve(script, knows("arena_hard")) as stub:
        with pytest.raises(ConfigError, match="status 401, expired"):
            compare("arena_hard", stub.url, tmp_path, "--parallel", "1", "--attempts", "1")
        kept = (tmp_path / "judgments.json").read_text()
        assert len(kept.splitlines()) == 1
        stub.requests.clear()
        stub.script.clear()
        output = compare("arena_hard", stub.url, tmp_path)
        assert len(stub.requests) == 4
        assert output.read_text().startswith(kept)
        with pytest.raises(ConfigError, match=r"other settings \(temperature=0.0 there, 1.0 here"):
            compare("arena_hard", stub.url, tmp_path, "--temperature", "1")


def test_unread_verdicts_are_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-9 ")

    def reply(messages):
        text = messages[-1]["content"]
        return "hm" if "name a colour" in text else verdict("mt_bench", "=")

    with serve((), reply) as stub:
        more = ["--key-env", "JUDGE_KEY", "--max-tokens", "50", "--limit", "2"]
        output = compare("mt_bench", stub.url, tmp_path, *more)
    assert stub.requests[0]["headers"]["Authorization"] == "Bearer sk-9"
    assert stub.requests[0]["body"]["max_tokens"] == 50
    assert "4 matches judged" in (err := capsys.readouterr().err)
    assert "2 rows without a verdict" in err
    main(["judge", "report", "--benchmark", "mt_bench", "--judgments", str(output)])
    none = "(no interval: 1 question, at least 25 are needed)"
    text = f"o against t: win rate 50.0 % {none}, 1 questions, 2 without a verdict left out"
    assert capsys.readouterr().out.strip() == text


def test_report_of_grades(tmp_path, capsys):
    row = {"model": "m", "judge": ["gpt-4", "single-v1"], "tstamp": 1.0}
    rows = [row | {"question_id": i, "turn": 1, "score": score} for i, score in ((1, 4), (2, -1))]
    path = tmp_path / "gpt-4_single.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    flags = ["judge", "report", "--benchmark", "mt_bench", "--judgments", str(path)]
    main(flags)
    none = "(no interval: 1 question, at least 25 are needed)"
    text = f"m: grade 4.00 {none} (1 to 10), 1 questions, 1 without a verdict left out"
    assert capsys.readouterr().out.strip() == text
    main([*flags, "--json"])
    (grade,) = json.loads(capsys.readouterr().out)["grades"]
    assert (grade["grade"], grade["scale"], grade["left_out"]) == (4.0, "1 to 10", 1)


def test_iterations(workdir, tmp_path):
    questions = question_file(tmp_path, "creative_writing")
    output = tmp_path / "runs.json"
    more = ("--iterations", "2", "--official-judge", "j", "--limit", "4")
    assert len(answers(workdir, "creative_writing", questions, output, *more)) == 4
    answers(workdir, "creative_writing", questions, output, "--limit", "1", model="org/two")
    runs = json.loads(output.read_text())
    assert list(runs) == ["jax-mdlm__tiny", "jax-mdlm__org_two"]
    assert runs["jax-mdlm__tiny"]["judge_model"] == "j"
    assert list(runs["jax-mdlm__tiny"]["creative_tasks"]["2"]) == ["0"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--answers", "x"], "--answers must be given twice, got 3"),
        (["--iterations", "2"], "--iterations is for creative_writing only, got arena_hard"),
        (["--parallel", "0"], "--parallel must be at least 1, got 0"),
        (["--attempts", "0"], "--attempts must be at least 1, got 0"),
        (["--timeout", "0"], "--timeout must be above 0 seconds, got 0"),
        (["--key-env", "NO_SUCH_KEY"], "--key-env NO_SUCH_KEY must name a variable with the key"),
        (["--output", "gs://b/o"], "--output must be a local file, got gs://b/o"),
        (["--output", "."], "--output must be a file, . is a directory"),
        (
            ["--config.sample.steps=3"],
            "judge compare has no settings of a run, got --config.sample",
        ),
    ],
)
def test_errors_of_compare(tmp_path, more, message):
    with pytest.raises(ConfigError, match=message):
        compare("arena_hard", "http://127.0.0.1:1/v1", tmp_path, *more)


def test_other_errors(tmp_path):
    benchmark, questions = make("arena_hard"), question_file(tmp_path, "arena_hard")
    file = str(answer_file(tmp_path, benchmark, questions, "o"))
    flags = ["--benchmark", "arena_hard", "--questions", str(questions), "--output", "o.jsonl"]
    flags += ["--answers", file, "--answers", file, "--judge-model", "j", "--url", "http://h/v1"]
    with pytest.raises(ConfigError, match="--answers must be of two models, both are of o"):
        main(["judge", "compare", *flags])
    with pytest.raises(ConfigError, match="no file none.jsonl; correct the path"):
        main(["judge", "compare", *["none.jsonl" if flag == file else flag for flag in flags]])
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    report = ["judge", "report", "--benchmark", "arena_hard", "--judgments", str(empty)]
    with pytest.raises(ConfigError, match="must hold judgments, it has none; judge first"):
        main(report)
    with pytest.raises(ConfigError, match="judge report has no settings of a run, got --config"):
        main([*report, "--config.sample.steps=3"])
    flags = [
        "--benchmark",
        "creative_writing",
        "--questions",
        "q",
        "--workdir",
        "w",
        "--model",
        "m",
    ]
    with pytest.raises(ConfigError, match="--iterations must be at least 1, got 0"):
        main(["judge", "answers", *flags, "--output", "o", "--iterations", "0"])
    broken = tmp_path / "judgments.json.settings.json"
    broken.write_text("[")
    with pytest.raises(ConfigError, match="judgments.json.settings.json must be readable JSON"):
        compare("arena_hard", "http://127.0.0.1:1/v1", tmp_path)
    blocked = tmp_path / "empty.jsonl" / "o.jsonl"
    with pytest.raises(ConfigError, match="must be in a folder, but"):
        compare("arena_hard", "http://127.0.0.1:1/v1", tmp_path, "--output", str(blocked))
