"""A model that comes back from an export is prompted as it was trained."""

import dataclasses
import json
from pathlib import Path

import pytest
from etils import epath

from jax_mdlm import convert
from jax_mdlm.config import (
    Config,
    ConfigError,
    DataConfig,
    MeshConfig,
    ObjectiveConfig,
    SampleConfig,
    TokenizerConfig,
)
from jax_mdlm.conversion.published import PROMPTING_KEY, prompted, prompting
from jax_mdlm.sample import main as sample
from jax_mdlm.workdir import load_config
from tests.models import save_run, with_vocabulary
from tests.sampling.standin import random_params
from tests.viewing.conftest import talking_config

PLAIN = DataConfig(
    template="plain", prompt_slots=7, length=32, max_labels=12, tokenizer=TokenizerConfig("symbols")
)


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """A run with a template and a prompt width of its own, decoded in a way of its own."""
    config = dataclasses.replace(
        talking_config(),
        objective=ObjectiveConfig(collapse="merge"),
        data=PLAIN,
        mesh=MeshConfig(),
        sample=SampleConfig(length=10, block_length=5, steps=4),
    )
    folder = epath.Path(tmp_path / "run")
    config = with_vocabulary(config, folder, ["abcde", "A B C"], max_length=32)
    save_run(folder, config, random_params(config.model), step=3)
    return tmp_path / "run"


def test_it_answers_as_before(
    letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same words get the same answers, without a flag."""
    folder, again = tmp_path / "folder", tmp_path / "again"
    convert.main(["export", str(letters), str(folder), "--dtype", "float32"])
    convert.main(["import", str(folder), str(again)])
    old, new = load_config(epath.Path(letters)), load_config(epath.Path(again))
    assert (new.data.template, new.data.prompt_slots) == ("plain", 7)
    assert new.sample == old.sample
    assert new.objective.collapse == "merge"
    capsys.readouterr()
    words = ["--show", "slack", "abc", "deed"]
    sample(["--workdir", str(letters), *words])
    before = capsys.readouterr().out
    sample(["--workdir", str(again), *words])
    assert capsys.readouterr().out == before
    twice = tmp_path / "twice"
    convert.main(["export", str(again), str(twice), "--dtype", "float32"])
    assert (twice / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_what_is_llada_s_needs_no_word() -> None:
    config = talking_config()
    assert prompting(config) == {}
    assert prompted(config, {}, "config.json") is config


def test_what_was_described_is_taken_over() -> None:
    base = talking_config()
    told = dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, pretraining=True),
        sample=dataclasses.replace(base.sample, length=16, block_length=8, steps=2),
    )
    settings = json.loads(json.dumps({PROMPTING_KEY: prompting(told)}))
    found = prompted(base, settings, "config.json")
    assert isinstance(found, Config)
    assert found == told


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("plain", "config.json: jax_mdlm_prompting must hold fields of data"),
        ({"data": {"seed": 1}}, "got {'data': {'seed': 1}}; correct or remove it"),
        ({"train": {}}, "must hold fields of data"),
        ({"data": {"template": "other"}}, "config.json: jax_mdlm_prompting is not a config: data."),
        ({"sample": {"length": 0}}, "sample.length must be at least 1, got 0"),
    ],
)
def test_other_values_are_refused(value: object, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        prompted(talking_config(), {PROMPTING_KEY: value}, "config.json")
    assert message in str(raised.value)
