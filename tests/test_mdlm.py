"""The door: what a stranger loads, from wherever it is kept, answers as the command does."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from etils import epath

import jax_mdlm
from jax_mdlm import conversion, convert, model
from jax_mdlm.config import (
    ConfigError,
    DataConfig,
    MeshConfig,
    ObjectiveConfig,
    SampleConfig,
    TokenizerConfig,
)
from jax_mdlm.evaluate import main as evaluate
from jax_mdlm.mdlm import Mdlm
from jax_mdlm.sample import main as sample
from jax_mdlm.sampling import AtRandom
from tests.models import save_run, with_vocabulary
from tests.sampling.standin import random_params
from tests.viewing.conftest import talking_config

PROMPTS = ["abc", "dea", "a"]
SNIPPET = """
import jax_mdlm, sys
model = jax_mdlm.load(sys.argv[1])
print(*model.generate(sys.argv[2:]), sep="\\n")
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `slack_only` run with a template, prompt width and decoding of its own."""
    data = DataConfig(
        template="plain",
        prompt_slots=7,
        length=32,
        max_labels=12,
        end_padding=4,
        tokenizer=TokenizerConfig("symbols"),
    )
    config = dataclasses.replace(
        talking_config(),
        objective=ObjectiveConfig(collapse="slack_only"),
        data=data,
        mesh=MeshConfig(),
        sample=SampleConfig(length=10, block_length=5, steps=4, batch_size=2),
    )
    folder = epath.Path(tmp_path_factory.mktemp("door")) / "run"
    config = with_vocabulary(config, folder, ["abcde", "A B C"], max_length=32)
    save_run(folder, config, random_params(config.model), step=3)
    return Path(folder)


@pytest.fixture(scope="module")
def published(run: Path) -> Path:
    """The run as PyTorch users load it."""
    folder = run.parent / "published"
    convert.main(["export", str(run), str(folder), "--dtype", "float32"])
    return folder


@pytest.fixture(scope="module")
def door(run: Path) -> Mdlm:
    return jax_mdlm.load(run)


def printed(workdir: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """What `sample` says to the prompts."""
    sample(["--workdir", str(workdir), "--json", *words, *PROMPTS])
    return [json.loads(line)["response"] for line in capsys.readouterr().out.splitlines()]


def test_a_run_answers_as_the_command(
    door: Mdlm, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = door.generate(PROMPTS)
    assert said == printed(run, capsys)
    assert len(set(said)) > 1
    assert (door.step, door.options.collapse) == (3, "slack_only")


def test_published_weights_answer_as_their_import(
    published: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Template, prompt width, map and decoding come with the folder: nobody passes them."""
    loaded = jax_mdlm.load(published)
    again = run.parent / "again"
    convert.main(["import", str(published), str(again)])
    capsys.readouterr()
    assert loaded.generate(PROMPTS) == printed(again, capsys) == printed(run, capsys)
    assert loaded.options.collapse == "slack_only"
    assert loaded.template.slots == 7


@pytest.mark.parametrize("which", ["run", "published"])
def test_five_lines_from_an_empty_directory(
    which: str, door: Mdlm, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(which)
    done = subprocess.run(
        [sys.executable, "-c", SNIPPET, str(folder), *PROMPTS],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    assert done.stdout.splitlines() == door.generate(PROMPTS)


def test_settings(door: Mdlm, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the path or later: another object over the same parameters."""
    quick = door.with_settings(steps=2, temperature=1.0, seed=5)
    assert quick.params is door.params
    assert door.settings.steps == 4
    flags = [f"--config.sample.{word}" for word in ("steps=2", "temperature=1.0", "seed=5")]
    assert quick.generate(PROMPTS) == printed(run, capsys, *flags)
    loaded = jax_mdlm.load(run, steps=2, temperature=1.0, seed=5)
    assert loaded.generate(PROMPTS) == quick.generate(PROMPTS)


def test_a_strategy_of_ones_own(door: Mdlm) -> None:
    """It may be an object; a name takes it back, other settings keep it."""
    own = door.with_settings(strategy=AtRandom())
    named = door.with_settings(strategy="random")
    assert own.options == named.options
    assert own.generate(PROMPTS) == named.generate(PROMPTS) != door.generate(PROMPTS)
    assert own.with_settings(steps=2).options.strategy == AtRandom()
    assert own.with_settings(strategy="confidence").options == door.options


def test_int8(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = jax_mdlm.load(run, weights="int8")
    assert loaded.generate(PROMPTS) == printed(run, capsys, "--config.sample.weights=int8")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stepz": 2}, "stepz must be a setting of the sampler, it is none; did you mean steps"),
        ({"steps": 0}, "sample.steps must"),
        ({"weights": "int8"}, "sample.weights and mesh settings say how parameters are read"),
    ],
)
def test_settings_that_cannot_be_used(door: Mdlm, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        door.with_settings(**settings)


def test_prompts_of_every_form(door: Mdlm) -> None:
    """A text, messages, ids; what a prompt gets does not depend on what stands beside it."""
    (text,) = door.generate(["abc"])
    messages = [{"role": "user", "content": "abc"}]
    assert door.generate(["dea", "abc", messages, door.encode("abc")])[1:] == [text] * 3
    assert door.chat(messages) == text
    assert door.generate([]) == []
    with pytest.raises(ConfigError, match=r"prompts must be a list, got one text; write \['abc'\]"):
        door.generate("abc")
    with pytest.raises(ConfigError, match="holds '!', which the tokenizer does not know"):
        door.generate(["a!"])


def test_a_stream_ends_with_the_answer(door: Mdlm) -> None:
    frames = list(door.stream("abc"))
    (answer,) = door.answers(["abc"])
    np.testing.assert_array_equal(frames[-1].answer.response, answer.response)
    calls = [frame.answer.calls for frame in frames]
    assert calls == list(range(1, answer.calls + 1))
    assert frames[0].block == range(5) or frames[0].block == range(5, 10)


def test_logits_are_the_networks(door: Mdlm, run: Path) -> None:
    canvas = [[*door.encode("abc"), *[door.tokenizer.ids.mask] * 5]]
    config = door.config.model
    params, _ = conversion.load(run)
    expected = model.apply(params, np.asarray(canvas), config)
    np.testing.assert_allclose(door.logits(canvas), expected, atol=1e-5)
    with pytest.raises(ConfigError, match=r"must be \[B, L\] with L at most model.max_length=32"):
        door.logits([[1] * 33])


def test_a_likelihood_is_that_of_the_command(
    door: Mdlm, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With terminator and end padding, as the rows were learned."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "abc", "response": "A B"}\n')
    words = ["--workdir", str(run), "--file", str(rows), "--samples=8", "--json"]
    evaluate(["likelihood", *words])
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    found = door.log_likelihood("abc", "A B", samples=8)
    assert found.value == pytest.approx(row["log_likelihood"], rel=1e-6)
    assert found.standard_error == pytest.approx(row["standard_error"], rel=1e-5)


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        jax_mdlm.load(tmp_path / "nothing")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="GGUF"):
        jax_mdlm.load(tmp_path)


def test_the_package_starts_nothing() -> None:
    code = "import sys, jax_mdlm\nassert 'jax' not in sys.modules\nprint(jax_mdlm.__version__)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        _ = jax_mdlm.lod  # pyright: ignore
