"""Local tasks through lm-eval itself, without a network; the oracle is the sampler called directly.

Half of the documents have as reference what the model really answers, or prefers; the others do
not. Every score is then 1/2, if and only if each request reached the model as it should have.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import pytest

from jax_mdlm.config import ConfigError
from jax_mdlm.data.chat import render_prompt
from jax_mdlm.evaluation.harness import tasks as harness
from jax_mdlm.evaluation.harness.responder import Responder
from jax_mdlm.evaluation.harness.tasks import language_model
from jax_mdlm.likelihood import Estimate, log_likelihood
from tests.evaluation.harness.conftest import TASKS

pytest.importorskip("lm_eval", reason="needs the extra `eval`: pip install -e '.[eval]'")

WORDS = ["abc", "fade", "cab", "abcdefgh", "hgfe", "deaf"]
CHOICES = ["A B", "C", "D E"]
EXAMPLE = {"letters": "bed", "answer": "B E D"}


@pytest.fixture
def write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[str]
) -> Callable[[str, list[dict]], None]:
    """Writes rows where the task files look for them: in the current folder."""
    monkeypatch.chdir(tmp_path)

    def write_rows(name: str, rows: list[dict]) -> None:
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write_rows("spell_train.jsonl", [EXAMPLE])
    return write_rows


def evaluate(responder: Responder, *names: str, **flags: Any) -> dict[str, Any]:
    manager = harness.open_tasks(names, [str(TASKS)])
    loaded = harness.load_tasks(manager, names, allow_code=False)
    responder = dataclasses.replace(responder, chat=flags.get("chat", False))
    model = language_model(responder, name="letters", settings={"step": 3})
    tasks = [task for name in names for task in loaded[name]]
    usual = {"num_fewshot": None, "chat": False, "limit": None, "allow_code": False}
    return harness.run(model, tasks, manager, **{**usual, **flags})


def answers(responder: Responder, prompts: list[list[int]]) -> list[str]:
    found = responder.model.decode(prompts, batch_size=4)
    return [responder.model.tokenizer.decode(answer.tokens) for answer in found]


def estimates(responder: Responder, rows: list[tuple[list[int], list[int]]]) -> list[Estimate]:
    return log_likelihood(
        responder.model.params,
        responder.model.config.model,
        rows,
        responder.model.tokenizer.ids,
        jax.random.key(responder.model.settings.seed),
        samples=responder.samples,
        batch_size=responder.model.settings.batch_size,
    )


def spelling(texts: Sequence[str]) -> list[dict]:
    """Every second document has the model's own answer."""
    assert len(set(texts)) > 2
    return [
        {"letters": word, "answer": text if number % 2 else f"{text} A"}
        for number, (word, text) in enumerate(zip(WORDS, texts))
    ]


def choosing(responder: Responder) -> list[dict]:
    """Every second document has the continuation that the model finds likeliest."""
    encode = responder.model.tokenizer.encode
    rows = [(encode(word), encode(choice)) for word in WORDS for choice in CHOICES]
    values = iter([estimate.value for estimate in estimates(responder, rows)])
    documents = []
    for number, word in enumerate(WORDS):
        likelihoods = [next(values) for _ in CHOICES]
        best = likelihoods.index(max(likelihoods))
        gold = best if number % 2 else (best + 1) % len(CHOICES)
        documents.append({"letters": word, "choices": CHOICES, "gold": gold})
    return documents


def test_three_tasks_offline(responder, write, no_network):
    encode = responder.model.tokenizer.encode
    shown = f"{EXAMPLE['letters']} {EXAMPLE['answer']}"
    write("spell.jsonl", spelling(answers(responder, [encode(f"{shown} {w}") for w in WORDS])))
    first_five = [
        " ".join(text.split()[:5]) for text in answers(responder, [encode(w) for w in WORDS])
    ]
    last = [(re.findall("[A-H]+", text) or ["[invalid]"])[-1] for text in first_five]
    assert len({*last}) > 1
    documents = [
        {"letters": word, "answers": ["never", text if number % 2 else "nor this"]}
        for number, (word, text) in enumerate(zip(WORDS, last))
    ]
    write("several.jsonl", documents)
    write("choose.jsonl", choosing(responder))

    results = evaluate(responder, "trio")
    assert results["results"]["spell"]["exact_match,none"] == 0.5
    assert results["results"]["several"]["exact_match,last_word"] == 0.5
    assert results["results"]["choose"]["acc,none"] == 0.5
    assert results["n-shot"] == {"spell": 1, "several": 0, "choose": 0}
    assert results["config"]["step"] == 3
    assert results["config"]["mean_standard_error_of_log_likelihood"] >= 0
    assert no_network == []


def test_chat_template_with_examples_as_turns(responder, write):
    prompts = [
        render_prompt(
            responder.model.tokenizer,
            [
                {"role": "user", "content": EXAMPLE["letters"]},
                {"role": "assistant", "content": EXAMPLE["answer"]},
                {"role": "user", "content": word},
            ],
            responder.model.template,
        )
        for word in WORDS
    ]
    write("spell.jsonl", spelling(answers(responder, prompts)))
    results = evaluate(responder, "spell", chat=True)
    assert results["results"]["spell"]["exact_match,none"] == 0.5


def test_flags_reach_lm_eval(responder, write):
    encode = responder.model.tokenizer.encode
    texts = answers(responder, [encode(word) for word in WORDS])
    write("spell.jsonl", spelling(texts))
    results = evaluate(responder, "spell", num_fewshot=0, limit=4)
    assert results["results"]["spell"]["exact_match,none"] == 0.5
    assert results["n-shot"] == {"spell": 0}
    assert results["n-samples"]["spell"] == {"original": 6, "effective": 4}


def test_likelihood_of_whole_texts(responder, write):
    texts = ["abc A B C", "fade D"]
    write("whole.jsonl", [{"text": text} for text in texts])
    encode = responder.model.tokenizer.encode
    found = estimates(responder, [([], encode(text)) for text in texts])
    words = sum(len(text.split()) for text in texts)
    expected = math.exp(-sum(estimate.value for estimate in found) / words)
    results = evaluate(responder, "whole")
    assert results["results"]["whole"]["word_perplexity,none"] == pytest.approx(expected)


def test_tables_and_json_of_several_runs(responder, write):
    write("choose.jsonl", choosing(responder))
    write("whole.jsonl", [{"text": "abc A"}])
    joined = harness.join_results([evaluate(responder, "choose"), evaluate(responder, "whole")])
    table = harness.tables(joined)
    cells = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()]
    assert any(line[1] == "choose" and "acc" in line and "0.5000" in line for line in cells[2:])
    assert "word_perplexity" in table
    kept = json.loads(harness.as_json(joined))
    assert set(kept["results"]) == {"choose", "whole"}
    assert [one["step"] for one in kept["config"]] == [3, 3]


def test_requests_are_named_for_caches(responder):
    model = language_model(responder, name="letters", settings={})
    assert re.fullmatch("letters-[0-9a-f]{12}", model.tokenizer_name)
    assert model.chat_template(True) == responder.template_text()
    assert model.chat_template(False) == ""


def test_members():
    manager = harness.open_tasks(["trio"], [str(TASKS)])
    assert harness.task_members(manager, "trio") == {"trio", "spell", "several", "choose"}
    assert harness.task_members(manager, "spell") == {"spell"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["spel"], r"task spel is known neither .* did you mean spell\?"),
        (["xxxxxxxx"], r"task xxxxxxxx is known neither to lm-eval nor in --include; give its"),
        (["code"], r"task code executes code that the model wrote.* add --allow-code"),
        (["far"], r"task far needs data that cannot be had \(.*nobody/nothing.*\); a stock task"),
        (["spell"], r"task spell needs data that cannot be had \(FileNotFoundError: .*spell_train"),
        (["broken"], r"task broken cannot be loaded \(.*generate_untl.*\); correct its file"),
    ],
)
def test_refusals(local_only, no_network, tmp_path, monkeypatch, names, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        harness.load_tasks(harness.open_tasks(names, [str(TASKS)]), names, allow_code=False)
    assert "\n" not in str(caught.value)
    assert no_network == []


def test_refuses_a_task_named_twice(responder, write):
    write("spell.jsonl", [EXAMPLE])
    write("several.jsonl", [{"letters": "a", "answers": ["A"]}])
    write("choose.jsonl", [{"letters": "a", "choices": CHOICES, "gold": 0}])
    names = ["trio", "spell"]
    manager = harness.open_tasks(names, [str(TASKS)])
    with pytest.raises(ConfigError, match=r"task spell must be run once, .* trio and to spell"):
        harness.load_tasks(manager, names, allow_code=False)


def test_refuses_a_folder_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match=r"--include .*/none must be a folder"):
        harness.open_tasks(["spell"], [str(tmp_path / "none")])
