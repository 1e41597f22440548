"""The list of settings: complete, with a sentence each, and equal to the page of the documents."""

import dataclasses
from pathlib import Path

import pytest

from jax_mdlm import command, train
from jax_mdlm.config import Config, text

PAGE = Path(__file__).parent.parent / "docs" / "api" / "config.md"


def paths(section: object, prefix: str = "") -> list[str]:
    found = []
    for field in dataclasses.fields(section):  # pyright: ignore[reportArgumentType]
        value = getattr(section, field.name)
        path = f"{prefix}{field.name}"
        found += paths(value, f"{path}.") if dataclasses.is_dataclass(value) else [path]
    return found


def test_every_setting_is_listed_with_a_sentence() -> None:
    listed = [one for _, settings in text.list_settings(Config()) for one in settings]
    assert sorted(one.path for one in listed) == sorted(paths(Config()))
    assert [one.path for one in listed if not one.sentence or not one.kind] == []
    assert all(sentence for sentence, _ in text.list_settings(Config()))


@pytest.mark.parametrize("name", command.shipped_configs())
def test_what_is_listed_is_what_a_flag_takes(name: str) -> None:
    """Every line, given back as a flag, changes nothing."""
    config = command.parse_config(name, [])
    flags = [
        f"--config.{one.path}={one.value}"
        for _, settings in text.list_settings(config)
        for one in settings
    ]
    assert command.parse_config(name, flags) == config


def test_comments_above_and_beside_a_field_are_one_sentence() -> None:
    listed = {one.path: one for _, settings in text.list_settings(Config()) for one in settings}
    assert listed["data.length"] == text.SettingLine(
        "data.length", "whole number", "4096", "L, slots of the canvas"
    )
    assert listed["sample.factor"].sentence.startswith("commit n slots while the n-th has")
    assert listed["init.source"].sentence.startswith("A folder of published weights (local, gs://")
    assert listed["sample.weights"].kind == "full or int8 or int4"
    assert listed["data.buckets"].kind == "ints with commas between"


def test_the_command_prints_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["--settings", "--config", "chat", "--config.train.steps=7"])
    shown = capsys.readouterr().out
    assert "  train.steps=7   (whole number)\n      updates; 0 = from epochs\n" in shown
    assert "  data.source=dialogues   (text)\n" in shown
    assert max(len(line) for line in shown.splitlines() if line.startswith("      ")) <= 100
    with pytest.raises(SystemExit):
        train.main([])
    assert "required: --config" in capsys.readouterr().err


def test_the_page_is_that_list() -> None:
    """After a change: `python -m jax_mdlm.train --settings markdown`, between its two headings."""
    page = PAGE.read_text()
    begin, end = page.index("## All of them\n\n"), page.index("## Reading and checking")
    shown = page[begin:end].removeprefix("## All of them\n\n").rstrip("\n") + "\n"
    assert shown == text.settings_as_markdown(Config())
