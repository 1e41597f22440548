"""Imports without a tokenizer, or with one that lacks an id: remedies that are named are taken."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from etils import epath

from jax_mdlm import convert, train
from jax_mdlm.config import ConfigError
from jax_mdlm.data.corpus import tokenizer_folder
from jax_mdlm.evaluate import main as evaluate
from jax_mdlm.sample import main as sample
from jax_mdlm.viewing.dialogue import open_dialogue
from jax_mdlm.workdir import load_config
from tests.conversion import folders

ROOT = Path(__file__).parent.parent.parent
SIZES = {"layers": 2, "embed": 16, "heads": 2, "kv_heads": 2, "mlp": 24, "vocab": 64}
QUICK = ["--config.sample.length=8", "--config.sample.block_length=8", "--config.sample.steps=4"]
RESERVED = 64 - len(folders.SPECIAL) + 2


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole`: published weights; `bare`: without tokenizer; `no-slack`: no token for slack."""
    folder = tmp_path_factory.mktemp("places")
    for name in ("whole", "bare", "no-slack"):
        folders.write_folder(folder / name, **SIZES)
    for path in (folder / "bare").glob("*token*.json"):
        path.unlink()
    for path in (folder / "no-slack").glob("*token*.json"):
        path.write_text(path.read_text().replace("<|reserved_token_0|>", "<|free|>"))
    for name in ("whole", "bare", "no-slack"):
        convert.main(["import", str(folder / name), str(folder / f"{name}.run")])
    lines = [f'{{"prompt": "w1 w{number}", "response": "w3"}}\n' for number in range(40)]
    (folder / "rows.jsonl").write_text("".join(lines))
    return folder


def rows(places: Path, workdir: Path, *flags: str) -> None:
    words = ["--workdir", str(workdir), "--file", str(places / "rows.jsonl"), "--limit=1"]
    evaluate(["likelihood", *words, "--samples=2", *flags])


DOORS: dict[str, Callable[..., object]] = {
    "sample": lambda places, workdir, *flags: sample(
        ["--workdir", str(workdir), *QUICK, *flags, "w1 w2"]
    ),
    "dialogue": lambda places, workdir, *flags: open_dialogue(workdir, [*QUICK, *flags]),
    "evaluate": rows,
}


def flag_in(text: str) -> str:
    (flag,) = re.findall(r"--config\.data\.tokenizer\.\w+(?==)", text)
    return flag


@pytest.mark.parametrize("door", DOORS)
def test_published_weights_without_one_are_sampled_from(
    places: Path, door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are: the folder stays as it was, programs are in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before, cache = folders.hashes(places / "bare"), jax.config.jax_compilation_cache_dir
    with pytest.raises(ConfigError) as caught:
        DOORS[door](places, places / "bare")
    DOORS[door](places, places / "bare", f"{flag_in(str(caught.value))}={places / 'whole'}")
    assert folders.hashes(places / "bare") == before
    assert jax.config.jax_compilation_cache_dir == f"{tmp_path}/jax_mdlm/compilation_cache"
    jax.config.update("jax_compilation_cache_dir", cache)


@pytest.mark.parametrize("door", DOORS)
def test_the_flag_that_is_named_is_taken(places: Path, door: str) -> None:
    """And nothing is kept: another tokenizer can be named the next time."""
    workdir = places / "bare.run"
    with pytest.raises(ConfigError) as caught:
        DOORS[door](places, workdir)
    assert str(caught.value) == (
        f"work directory {workdir} has no tokenizer; name its model's with "
        "--config.data.tokenizer.path=FOLDER (or a hub id), or import the model again with "
        "tokenizer.json beside its weights"
    )
    before = folders.hashes(workdir)
    DOORS[door](places, workdir, f"{flag_in(str(caught.value))}={places / 'whole'}")
    assert not tokenizer_folder(epath.Path(workdir)).exists()
    after = folders.hashes(workdir)
    assert before.items() <= after.items()
    assert all(name.startswith("compilation_cache") for name in after.keys() - before.keys())


def test_it_answers_as_with_the_tokenizer_beside_it(
    places: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DOORS["sample"](places, places / "whole.run")
    expected = capsys.readouterr().out
    for name in ("bare.run", "bare"):
        flag = f"--config.data.tokenizer.path={places / 'whole'}"
        DOORS["sample"](places, places / name, flag)
        assert capsys.readouterr().out == expected
    DOORS["sample"](places, places / "whole")
    assert capsys.readouterr().out == expected
    assert expected.startswith("w1 w2 -> ")


@pytest.mark.parametrize("kind", ["", ".run"])
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("field", ["path=x", "kind=bpe", "slack_id=3"])
def test_a_tokenizer_that_is_there_stays(places: Path, door: str, field: str, kind: str) -> None:
    name = field.partition("=")[0]
    with pytest.raises(
        ConfigError,
        match=rf"^--config.data.tokenizer.{name} cannot be changed here: the model has the "
        "tokenizer that it was trained with; leave it out$",
    ):
        DOORS[door](places, places / f"whole{kind}", f"--config.data.tokenizer.{field}")


@pytest.mark.parametrize("kind", ["", ".run"])
@pytest.mark.parametrize("door", DOORS)
def test_an_id_that_the_tokenizer_lacks_is_taken(places: Path, door: str, kind: str) -> None:
    """The id and nothing else: which files are read is fixed."""
    workdir = places / f"no-slack{kind}"
    with pytest.raises(ConfigError, match=r"the tokenizer has no slack token .*; set an") as caught:
        DOORS[door](places, workdir)
    DOORS[door](places, workdir, f"{flag_in(str(caught.value))}={RESERVED}")
    with pytest.raises(ConfigError, match=r"tokenizer.path cannot be changed here"):
        DOORS[door](places, workdir, "--config.data.tokenizer.path=x")


@pytest.mark.parametrize("name", ["bare", "bare.run"])
@pytest.mark.parametrize("door", DOORS)
def test_another_models_tokenizer_is_refused(
    places: Path, tmp_path: Path, door: str, name: str
) -> None:
    """Its ids have no rows; a lookup would take the last row for all of them."""
    folders.write_folder(tmp_path / "other", **SIZES | {"vocab": 70})
    with pytest.raises(
        ConfigError, match=rf"{name} has 64 rows of the vocabulary, the tokenizer 70 ids; name its"
    ):
        DOORS[door](places, places / name, f"--config.data.tokenizer.path={tmp_path / 'other'}")


@pytest.mark.parametrize("origin", ["bare", "bare.run"])
def test_training_from_it_says_what_is_missing(places: Path, tmp_path: Path, origin: str) -> None:
    """Published weights and an import of them alike; the flag that is named is taken."""
    flags = [
        f"--config.init.from={places / origin}",
        f"--config.data.files={places / 'rows.jsonl'}",
        *(f"--config.model.{name}={SIZES[name]}" for name in SIZES if name != "vocab"),
        *("--config.model.vocab_size=64", "--config.model.head_dim=8"),
        *("--config.model.max_length=32", "--config.data.length=32", "--config.data.buckets="),
        *("--config.train.steps=1", "--config.train.batch_size=8", "--config.data.max_labels=8"),
    ]
    words = ["--config", "llada_ctc", "--workdir", str(tmp_path / "run"), *flags]
    with pytest.raises(ConfigError) as caught:
        train.main(words)
    assert str(caught.value) == (
        f"init.from={places / origin} has no tokenizer; name its model's with "
        "--config.data.tokenizer.path=FOLDER (or a hub id)"
    )
    train.main([*words, f"{flag_in(str(caught.value))}={places / 'whole'}"])
    config = load_config(epath.Path(tmp_path / "run"))
    assert config.data.tokenizer.path == str(places / "whole")
    kept = json.loads((tmp_path / "run" / "tokenizer" / "tokenizer.json").read_text())
    assert "<|mdm_mask|>" in json.dumps(kept)
