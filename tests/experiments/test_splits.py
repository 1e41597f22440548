"""Where a source has no such rows: what each task of `evaluate` names is a way that works."""

import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from jax_mdlm import evaluate as flags
from jax_mdlm.config import Config, ConfigError, DataConfig
from jax_mdlm.data import catalogue
from jax_mdlm.evaluate import main
from jax_mdlm.evaluation import likelihood
from jax_mdlm.experiments import intervention, repeats, slack
from tests.data.test_catalogue import ToyQuestions

TASKS = {"intervention": intervention, "slack": slack, "likelihood": likelihood}
NO_TEST = "has no test split; score what was held out with --split validation, or give rows with"


class Found(Exception):
    """A task has its rows; what it makes of them is tested elsewhere."""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> epath.Path:
    folder = epath.Path(tmp_path_factory.mktemp("prepared"))
    catalogue.prepare_builder(ToyQuestions, folder)
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": f"p{n}", "response": "r"}) for n in range(40)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def ask(data_dir: epath.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`evaluate TASK WORDS` of a run with this data, as far as its rows: what it refuses, or ""."""

    def found(*_: Any, **__: Any) -> None:
        raise Found

    def ask(task: str, data: DataConfig, *words: str) -> str:
        config = dataclasses.replace(
            Config(), data=dataclasses.replace(data, data_dir=str(data_dir))
        )
        opened = types.SimpleNamespace(
            config=config, path=data_dir, end_padding=0, tokenizer=types.SimpleNamespace(ids=None)
        )
        opened.encode = opened.decode = found
        module = {"repeats": repeats, **TASKS}.get(task)
        for name, stand_in in (
            ("open_model", lambda *_: opened),
            *((name, found) for name in ("make_table", "draw_targets", "check_same_rows")),
        ):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, stand_in)
        try:
            main([task, "--workdir=x", *words])
        except ConfigError as error:
            return str(error)
        except Found:
            return ""
        raise AssertionError(f"{task} asked for no rows")

    return ask


CHAT = DataConfig()
TOY = DataConfig(source="toy_questions", prompt_field="question", response_field="answer")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("data", [CHAT, TOY], ids=lambda data: data.source)
def test_no_test_split(task: str, data: DataConfig, rows: Path, ask: Any) -> None:
    data = dataclasses.replace(data, files=str(rows))
    assert ask(task, data, "--split=test") == f"data.source={data.source} {NO_TEST} --file " + (
        "ROWS.jsonl"
    )
    assert not ask(task, data, "--split", "validation")
    assert not ask(task, data, "--file", str(rows))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("data", [CHAT, TOY], ids=lambda data: data.source)
def test_nothing_was_held_out(task: str, data: DataConfig, rows: Path, ask: Any) -> None:
    data = dataclasses.replace(data, files=str(rows), validation_percent=0.0)
    said = ask(task, data, "--split=validation")
    assert said.endswith(
        "must hold rows to be scored, it holds none; give rows with --file ROWS.jsonl"
    )
    assert not ask(task, data, "--file", str(rows))


@pytest.mark.parametrize("task", TASKS)
def test_the_rows_of_a_run_are_gone(task: str, rows: Path, ask: Any) -> None:
    """Its settings name them, and cannot be changed any more."""
    said = ask(task, DataConfig(files="gone.jsonl"), "--split=validation")
    assert said.endswith("correct the path, or give rows with --file ROWS.jsonl")
    assert not ask(task, DataConfig(files="gone.jsonl"), "--file", str(rows))


@pytest.mark.parametrize("task", [*TASKS, "repeats"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_source_with_both_splits(task: str, split: str, ask: Any) -> None:
    assert not ask(task, DataConfig(source="numbers"), "--split", split)


def test_repeats_of_other_sources(rows: Path, ask: Any) -> None:
    assert "; give rows with --file (" in ask("repeats", CHAT)
    assert not ask("repeats", CHAT, "--file", str(rows))


def test_no_task_is_forgotten() -> None:
    """All that take rows by --split: of these, `pronunciations` has a source of its own."""
    (tasks,) = (a for a in flags.make_parser()._actions if isinstance(a.choices, dict))
    assert isinstance(tasks.choices, dict)
    known = {name for name, task in tasks.choices.items() if "--split" in task.format_help()}
    assert known == {*TASKS, "repeats", "pronunciations", "sweep"}
