"""A run that begins from a model: for every pair of origin and data, ids keep their meaning."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from jax_mdlm import convert, train
from jax_mdlm.config import Config, ConfigError, DataConfig, TokenizerConfig, config_to_json
from jax_mdlm.conversion import open_origin
from jax_mdlm.data.tokenizer import read_tokenizer, same_tokens
from jax_mdlm.training.claim import claim
from jax_mdlm.workdir import load_config
from tests.conversion import folders
from tests.training.conftest import tiny_config, write_rows

NONE = TokenizerConfig(kind="huggingface")  # leaves it to `init.from`
TRAINED = {
    "symbols": TokenizerConfig(kind="symbols"),
    "bpe": TokenizerConfig(kind="bpe", vocab_size=300),
    "sentencepiece": TokenizerConfig(kind="sentencepiece", vocab_size=300),
}
ORIGINS = (*TRAINED, "published", "imported", "exported", "lora")
SOURCES = {
    "chat_jsonl": DataConfig(files="others.jsonl", length=64, max_labels=40),
    "numbers": DataConfig(source="numbers", length=64, max_labels=40),
    "pronunciations": DataConfig(
        source="pronunciations",
        split="train[:200]",
        validation_split="validation[:50]",
        length=64,
        max_labels=40,
    ),
    "dialogues": DataConfig(
        source="dialogues",
        split="train[:50]",
        validation_split="validation[:20]",
        length=64,
        max_labels=40,
    ),
}
SIZES: dict[str, Any] = {
    "layers": 2,
    "embed": 16,
    "heads": 2,
    "kv_heads": 2,
    "mlp": 24,
    "vocab": 64,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, and others in whose words a tokenizer of their own would number otherwise."""
    root = tmp_path_factory.mktemp("inherit")
    write_rows(root / "rows.jsonl")
    words = [a + b for a in "edcba" for b in "eeabcd"]
    rows = [{"prompt": word, "response": " ".join(word.upper() * 3)} for word in words]
    (root / "others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def settings(root: Path, data: DataConfig, tokenizer: TokenizerConfig, **origin: str) -> Config:
    """The tiny model on these rows; what a user writes in a config file."""
    tiny = tiny_config("", steps=1, save_every=1)
    files = f"{root / data.files}" if data.files else ""
    data = dataclasses.replace(
        data,
        files=files,
        template="plain",
        data_dir=str(root / "prepared"),
        validation_percent=10.0,
        tokenizer=tokenizer,
    )
    model = dataclasses.replace(tiny.model, max_length=64)
    init = dataclasses.replace(tiny.init, **origin)
    mesh = dataclasses.replace(tiny.mesh, fsdp=8)
    return dataclasses.replace(tiny, data=data, model=model, init=init, mesh=mesh)


def run(root: Path, name: str, config: Config, *flags: str) -> Path:
    """Trains one step; the work directory."""
    file, workdir = root / f"{name}.py", root / name
    file.write_text(
        "from jax_mdlm.config import from_json\n"
        f"def get_config(preset=''):\n    return from_json({config_to_json(config)!r}, 'tiny')\n"
    )
    train.main(["--config", str(file), "--workdir", str(workdir), *flags])
    return workdir


@pytest.fixture(scope="module")
def origins(root: Path) -> dict[str, Path]:
    rows = DataConfig(files="rows.jsonl", length=64, max_labels=40)
    found = {kind: run(root, kind, settings(root, rows, own)) for kind, own in TRAINED.items()}
    folders.write_folder(root / "published", **SIZES)
    convert.main(["import", str(root / "published"), str(root / "imported")])
    convert.main(["export", str(found["bpe"]), str(root / "exported")])
    found |= {name: root / name for name in ("published", "imported", "exported")}
    lora = settings(root, rows, NONE, source=str(found["bpe"]))
    found["lora"] = run(root, "lora", lora, "--config.lora.rank=2")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", ORIGINS)
def test_ids_mean_what_they_meant(
    root: Path,
    origins: dict[str, Path],
    tmp_path: Path,
    name: str,
    source: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The tokenizer comes along whatever the rows are, and one with a closed vocabulary says so."""
    origin = open_origin(str(origins[name]))
    config = settings(root, SOURCES[source], NONE, source=origin.path)
    told = origin.told
    assert told is not None
    theirs = read_tokenizer(told.data.tokenizer, origin.tokenizer)
    if name == "symbols" and source != "chat_jsonl":
        with pytest.raises(ConfigError, match="which the tokenizer does not know"):
            claim(config, epath.Path(tmp_path))
        return
    config, corpus = claim(config, epath.Path(tmp_path))
    assert same_tokens(corpus.tokenizer, theirs)
    assert corpus.tokenizer.ids == theirs.ids
    assert config.data.tokenizer.kind == told.data.tokenizer.kind
    assert config.objective.collapse == "merge"
    assert config.model.vocab_size == told.model.vocab_size
    said = capsys.readouterr().err
    kind = config.data.tokenizer.kind
    assert f"begins from {origin.path}: parameters, tokenizer ({kind}) and special ids" in said
    assert said.count("begins from") == 1


@pytest.mark.parametrize("name", ORIGINS)
@pytest.mark.parametrize("kind", TRAINED)
def test_a_tokenizer_of_the_rows_own_is_not_trained(
    root: Path, origins: dict[str, Path], tmp_path: Path, name: str, kind: str
) -> None:
    """Naming the origin's kind takes its tokenizer; another kind is refused, with both names."""
    origin = open_origin(str(origins[name]))
    assert origin.told is not None
    asked = dataclasses.replace(TRAINED[kind], vocab_size=1000)
    config = settings(root, SOURCES["chat_jsonl"], asked, source=origin.path)
    theirs = origin.told.data.tokenizer
    if theirs.kind == kind:
        _, corpus = claim(config, epath.Path(tmp_path))
        assert same_tokens(corpus.tokenizer, read_tokenizer(theirs, origin.tokenizer))
        return
    with pytest.raises(ConfigError) as raised:
        claim(config, epath.Path(tmp_path))
    assert str(raised.value) == (
        f"init.from={origin.path} gives its parameters another meaning than these settings: "
        f"data.tokenizer.kind={theirs.kind} there, {kind} here; set "
        f"--config.data.tokenizer.kind={theirs.kind}, or train without init.from"
    )
    assert not (tmp_path / "config.json").exists()


def test_all_that_contradicts_is_named_at_once(
    root: Path, origins: dict[str, Path], tmp_path: Path
) -> None:
    config = settings(root, SOURCES["chat_jsonl"], TRAINED["symbols"], source=str(origins["bpe"]))
    objective = dataclasses.replace(config.objective, collapse="slack_only")
    data = dataclasses.replace(
        config.data,
        template="llada",
        tokenizer=dataclasses.replace(config.data.tokenizer, mask_id=9),
    )
    config = dataclasses.replace(config, objective=objective, data=data)
    with pytest.raises(ConfigError) as raised:
        claim(config, epath.Path(tmp_path))
    assert str(raised.value) == (
        f"init.from={origins['bpe']} gives its parameters another meaning than these settings: "
        "data.tokenizer.kind=bpe there, symbols here; data.template=plain there, llada here; "
        "objective.collapse=merge there, slack_only here; set --config.data.tokenizer.kind=bpe "
        "--config.data.template=plain --config.objective.collapse=merge, or train without init.from"
    )
    published = settings(
        root,
        SOURCES["chat_jsonl"],
        dataclasses.replace(NONE, mask_id=9),
        source=str(origins["published"]),
    )
    with pytest.raises(ConfigError, match=r"data\.tokenizer\.mask_id=60 there, 9 here; set"):
        claim(published, epath.Path(tmp_path))


def test_weights_that_were_never_trained_here_take_any_template(
    root: Path, origins: dict[str, Path], tmp_path: Path
) -> None:
    """A Base model has none; slack is new to it, so either collapse map is."""
    for name in ("published", "imported"):
        config = settings(root, SOURCES["chat_jsonl"], NONE, source=str(origins[name]))
        objective = dataclasses.replace(config.objective, collapse="slack_only")
        got, _ = claim(
            dataclasses.replace(config, objective=objective), epath.Path(tmp_path / name)
        )
        assert (got.data.template, got.objective.collapse) == ("plain", "slack_only")


def test_a_tokenizer_by_path_must_have_the_same_tokens(
    root: Path, origins: dict[str, Path], tmp_path: Path
) -> None:
    """A copy of it may be named; another one is refused although its size is the same."""
    given = dataclasses.replace(NONE, path=str(origins["exported"]))
    config = settings(root, SOURCES["chat_jsonl"], given, source=str(origins["bpe"]))
    _, corpus = claim(config, epath.Path(tmp_path / "a"))
    own = load_config(epath.Path(origins["bpe"])).data.tokenizer
    assert same_tokens(
        corpus.tokenizer, read_tokenizer(own, epath.Path(origins["bpe"]) / "tokenizer")
    )
    other = dataclasses.replace(NONE, path=str(origins["published"]))
    config = settings(root, SOURCES["chat_jsonl"], other, source=str(origins["bpe"]))
    with pytest.raises(ConfigError) as raised:
        claim(config, epath.Path(tmp_path / "b"))
    assert str(raised.value) == (
        f"data.tokenizer.path={origins['published']} must have the tokens of "
        f"init.from={origins['bpe']}, it has others, so that ids would change their meaning; leave "
        "data.tokenizer.path empty to take that tokenizer over"
    )


@pytest.mark.parametrize("tokenizer", [NONE, *TRAINED.values()], ids=lambda one: one.kind)
def test_weights_without_a_tokenizer_need_theirs(
    root: Path, tmp_path: Path, tokenizer: TokenizerConfig
) -> None:
    folders.write_folder(tmp_path / "in", **SIZES)
    for file in tmp_path.glob("in/*token*"):
        file.unlink()
    config = settings(root, SOURCES["chat_jsonl"], tokenizer, source=str(tmp_path / "in"))
    with pytest.raises(ConfigError) as raised:
        claim(config, epath.Path(tmp_path / "run"))
    said = f"init.from={tmp_path / 'in'} has no tokenizer"
    if tokenizer is NONE:
        flag = "--config.data.tokenizer.path=FOLDER"
        assert str(raised.value) == f"{said}; name its model's with {flag} (or a hub id)"
        return
    assert str(raised.value) == (
        f"{said}, and one that is trained from these rows would give other meanings to its ids; "
        "set --config.data.tokenizer.kind=huggingface and --config.data.tokenizer.path=FOLDER, the "
        "tokenizer that its weights were trained with"
    )


def test_a_run_that_took_over_resumes_with_the_same_words(
    root: Path, origins: dict[str, Path], tmp_path: Path
) -> None:
    """Also where its origin is gone, and with a flag for it or without."""
    origin = tmp_path / "origin"
    origins["bpe"].rename(origin)
    try:
        config = settings(root, SOURCES["chat_jsonl"], NONE, source=str(origin))
        workdir = run(tmp_path, "next", config)
    finally:
        origin.rename(origins["bpe"])
    for source in (str(origin), ""):
        again = dataclasses.replace(config, init=dataclasses.replace(config.init, source=source))
        got, _ = claim(again, epath.Path(workdir))
        assert got.data == load_config(epath.Path(workdir)).data
    kept = [path / "tokenizer" / "tokenizer.json" for path in (workdir, origins["bpe"])]
    assert kept[0].read_bytes() == kept[1].read_bytes()


def test_a_refused_attempt_leaves_no_tokenizer_that_wins(root: Path, tmp_path: Path) -> None:
    """The first attempt fails after its tokenizer was trained; the second asks for another size."""
    rows = DataConfig(files="rows.jsonl", length=64, max_labels=40)
    config = settings(root, rows, TRAINED["bpe"])
    model = dataclasses.replace(config.model, vocab_size=100)
    with pytest.raises(ConfigError, match=r"model\.vocab_size must hold the tokenizer's"):
        claim(dataclasses.replace(config, model=model), epath.Path(tmp_path))
    assert (tmp_path / "tokenizer" / "tokenizer.json").exists()
    larger = dataclasses.replace(TRAINED["bpe"], vocab_size=270)
    _, corpus = claim(settings(root, rows, larger), epath.Path(tmp_path))
    assert corpus.tokenizer.vocab_size == 270


def test_fewer_steps_than_were_made_change_nothing(
    root: Path, origins: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = origins["symbols"]
    rows = DataConfig(files="rows.jsonl", length=64, max_labels=40)
    config = settings(root, rows, TRAINED["symbols"])
    run(root, "symbols", config, "--config.train.steps=3")
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    capsys.readouterr()
    run(root, "symbols", config, "--config.train.steps=2", "--config.train.log_every=7")
    assert capsys.readouterr().err.endswith(
        f"nothing to do: {workdir} has made 3 steps, more than train.steps=2; nothing was changed\n"
    )
    after = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    assert after == before


def test_what_may_change_between_the_parts_of_a_run(root: Path, origins: dict[str, Path]) -> None:
    """Steps, reports, evaluation, saves, decoding, mesh; the rest names the way on."""
    workdir = origins["sentencepiece"]
    rows = DataConfig(files="rows.jsonl", length=64, max_labels=40)
    config = settings(root, rows, TRAINED["sentencepiece"])
    changed = dataclasses.replace(
        config.train,
        steps=9,
        log_every=3,
        evaluate_every=2,
        evaluate_rows=5,
        save_every=4,
        keep_checkpoints=7,
        keep_every=2,
        tensorboard=True,
    )
    sample = dataclasses.replace(config.sample, steps=8)
    claim(dataclasses.replace(config, train=changed, sample=sample), epath.Path(workdir))
    other = dataclasses.replace(config.optimizer, learning_rate=1e-4)
    with pytest.raises(ConfigError) as raised:
        claim(dataclasses.replace(config, optimizer=other), epath.Path(workdir))
    assert str(raised.value) == (
        f"work directory {workdir} was made by another config: optimizer.learning_rate=0.01 there, "
        "0.0001 here; use the same settings, or begin a run of its own from it: another --workdir "
        f"and --config.init.from={workdir}"
    )


def test_parameters_come_along(root: Path, origins: dict[str, Path], tmp_path: Path) -> None:
    """With a rate of 0 a run on other rows is the origin, slack's row included."""
    from jax_mdlm import conversion

    config = settings(root, SOURCES["chat_jsonl"], NONE, source=str(origins["bpe"]))
    still = dataclasses.replace(config.optimizer, learning_rate=0.0, final_learning_rate=0.0)
    workdir = run(tmp_path, "next", dataclasses.replace(config, optimizer=still))
    left, right = (conversion.load(path)[0] for path in (workdir, origins["bpe"]))
    jax.tree.map(np.testing.assert_array_equal, left, right)
