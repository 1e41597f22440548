"""`evaluate likelihood`: rows and questions end to end on a tiny run."""

import json
import math

import jax
import numpy as np
import pytest

from jax_mdlm.config import ConfigError
from jax_mdlm.data.chat import render_prompt
from jax_mdlm.evaluate import main
from jax_mdlm.evaluation import likelihood
from jax_mdlm.likelihood import log_likelihood, marginal_log_likelihood
from jax_mdlm.opening import open_model


def run(workdir, capsys, *words):
    main(["likelihood", f"--workdir={workdir}", *map(str, words)])
    return capsys.readouterr().out


@pytest.fixture
def opened(workdir):
    return open_model(workdir)


def score(opened, rows, samples):
    sample = opened.config.sample
    return log_likelihood(
        opened.params,
        opened.config.model,
        rows,
        opened.tokenizer.ids,
        jax.random.key(sample.seed),
        samples=samples,
        layout=opened.layout,
    )


def rows_of(opened, rows_file, padding):
    ids, rows = opened.tokenizer.ids, []
    for line in rows_file.read_text().splitlines():
        row = json.loads(line)
        prompt = render_prompt(opened.tokenizer, row["prompt"], opened.template)
        response = [*opened.tokenizer.encode(row["response"]), ids.terminator]
        rows.append((prompt, response + [ids.eos] * padding))
    return rows


def test_rows_of_a_file(workdir, rows_file, opened, capsys):
    words = ["--file", rows_file, "--samples=6", "--end-padding=2", "--marginal", "--json"]
    record = json.loads(run(workdir, capsys, *words))
    expected = score(opened, rows_of(opened, rows_file, 2), 6)
    for row, one in zip(record["rows"], expected, strict=True):
        assert row["log_likelihood"] == pytest.approx(one.value, abs=1e-3)
        assert row["standard_error"] == pytest.approx(one.standard_error, abs=1e-3)
    tokens = [len(response) for _, response in rows_of(opened, rows_file, 0)]
    assert [row["tokens"] for row in record["rows"]] == tokens
    assert record["tokens"] == sum(tokens)
    total = -sum(one.value for one in expected) / sum(tokens)
    assert record["nats_per_token"] == pytest.approx(total, abs=1e-3)
    assert record["bits_per_token"] == pytest.approx(total / math.log(2), abs=1e-3)
    error = math.hypot(*[one.standard_error for one in expected]) / sum(tokens)
    assert record["standard_error"] == pytest.approx(error, abs=1e-4)
    low, high = record["interval"]
    assert low < total - error < total + error < high
    assert (record["end_padding"], record["truncated"], record["dropped"]) == (2, 0, 0)

    marginal = marginal_log_likelihood(
        opened.params,
        opened.config.model,
        rows_of(opened, rows_file, 0),
        opened.tokenizer.ids,
        frames=opened.config.sample.length,
        collapse=opened.config.objective.collapse,
        layout=opened.layout,
    )
    np.testing.assert_allclose([row["marginal"] for row in record["rows"]], marginal, atol=1e-3)
    mean = -sum(marginal) / sum(tokens)
    assert record["marginal_nats_per_token"] == pytest.approx(mean, abs=1e-3)
    assert record["without_alignment"] == 0


def test_the_text_and_a_limit(workdir, rows_file, capsys):
    """End padding as in the training: the canvas is filled up with EOS."""
    words = ["--file", rows_file, "--samples=4", "--limit=2", "--marginal"]
    lines = run(workdir, capsys, *words, "--config.sample.length=2", *SMALL).splitlines()
    assert lines[0] == f"2 rows of {rows_file}, 5 response tokens"
    assert "nats a token at most (drawing alone, 95 %: " in lines[1]
    # "A B" and its terminator have no room in two slots.
    assert "single step, all alignments: " in lines[2]
    assert lines[2].endswith("; 1 rows without an alignment")


SMALL = ["--config.sample.block_length=2", "--config.sample.steps=2"]


def test_no_row_has_an_alignment(workdir, rows_file, capsys):
    words = ["--file", rows_file, "--samples=4", "--limit=1", "--marginal", "--end-padding=0"]
    text = run(workdir, capsys, *words, "--config.sample.length=2", *SMALL)
    assert "single step, all alignments: no row fits; 1 rows without an alignment" in text


def test_choices(workdir, opened, tmp_path, capsys):
    questions = [
        {"prompt": "ab", "choices": ["A B", "A", "E E E"], "answer": 0},
        {"prompt": "cad", "choices": ["C", "D E A"], "answer": 1},
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, questions)) + "\n\n")
    ids, rows = opened.tokenizer.ids, []
    for question in questions:
        prompt = render_prompt(opened.tokenizer, question["prompt"], opened.template)
        for choice in question["choices"]:
            rows.append((prompt, [*opened.tokenizer.encode(choice), ids.terminator]))
    values = [one.value for one in score(opened, rows, 31)]  # exact

    words = ["--choices", "--file", file, "--end-padding=0", "--samples=31"]
    record = json.loads(run(workdir, capsys, *words, "--json"))
    plain, normalised = [], []
    for question, row in zip(questions, record["rows"], strict=True):
        own, values = values[: len(question["choices"])], values[len(question["choices"]) :]
        np.testing.assert_allclose(row["log_likelihoods"], own, atol=1e-3)
        assert row["standard_errors"] == [0.0] * len(own)
        per_character = np.divide(own, [len(choice) for choice in question["choices"]])
        assert row["chosen"] == np.argmax(own)
        assert row["chosen_normalised"] == np.argmax(per_character)
        plain.append(np.argmax(own) == question["answer"])
        normalised.append(np.argmax(per_character) == question["answer"])
    assert record["accuracy"] == np.mean(plain)
    assert record["accuracy_normalised"] == np.mean(normalised)
    lines = run(workdir, capsys, *words, "--limit=1").splitlines()
    assert lines[0] == f"1 questions of {file}"
    assert lines[1].startswith("accuracy ")
    assert lines[2].startswith("accuracy, by nats per character ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--file=x", "--samples=1"], "--samples must be at least 2, got 1: one draw has no"),
        (["--split=test", "--choices"], "--choices reads questions from --file, without --split"),
        (["--file=x", "--choices", "--marginal"], "from --file, without --marginal; leave it out"),
        (["--file=/no/where", "--choices"], "--file: no file /no/where; correct the path"),
        (["--file=/dev/null", "--choices"], "/dev/null is empty; give a file with one JSON"),
        (["--file=/no/where"], "no file /no/where; correct the path"),
    ],
)
def test_refusals(workdir, words, message):
    with pytest.raises(ConfigError, match=message):
        main(["likelihood", f"--workdir={workdir}", *words])


def test_blank_lines_are_no_questions(workdir, tmp_path):
    (tmp_path / "blank.jsonl").write_text("\n \n")
    with pytest.raises(ConfigError, match=r"blank\.jsonl is empty; give a file with one JSON"):
        main(
            [
                "likelihood",
                f"--workdir={workdir}",
                f"--file={tmp_path / 'blank.jsonl'}",
                "--choices",
            ]
        )


def test_a_question_that_does_not_fit_is_named(workdir, tmp_path):
    file = tmp_path / "questions.jsonl"
    rows = [{"prompt": prompt, "choices": ["A", "B"], "answer": 0} for prompt in ("a", "a" * 40)]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        ConfigError, match=r"questions.jsonl:2 with 43 tokens of its prompt and a choice must fit m"
    ):
        main(["likelihood", f"--workdir={workdir}", f"--file={file}", "--choices"])


def test_rows_without_room_are_refused_before_they_are_scored(workdir, tmp_path, monkeypatch):
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"prompt": "a", "response": "a b " * 99}))
    monkeypatch.setattr(likelihood, "log_likelihood", None)
    with pytest.raises(ConfigError, match=r"it does not; add it, or more room where the row was c"):
        main(["likelihood", f"--workdir={workdir}", f"--file={file}", "--marginal"])
