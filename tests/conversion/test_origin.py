"""Training that begins from published weights, and what an export of it holds."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from jax_mdlm import conversion, convert, train
from jax_mdlm.config import Config, ConfigError, TokenizerConfig, to_json
from jax_mdlm.workdir import load_config
from tests.conversion import folders
from tests.training.conftest import tiny_config

SIZES = {"layers": 2, "embed": 16, "heads": 2, "kv_heads": 2, "mlp": 24, "vocab": 64}
WTE = "model.transformer.wte.weight"


def without_tokenizer(config: Config) -> Config:
    """As in the shipped configs: that of `init.from`."""
    data = dataclasses.replace(config.data, tokenizer=TokenizerConfig(kind="huggingface"))
    return dataclasses.replace(config, data=data)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file as users write them."""
    folder = tmp_path_factory.mktemp("config")
    folders.write_rows(folder / "rows.jsonl")
    settings = without_tokenizer(tiny_config(str(folder / "rows.jsonl"), steps=1, save_every=1))
    file = folder / "tiny.py"
    file.write_text(
        "from jax_mdlm.config import from_json\n"
        f"def get_config(preset=''):\n    return from_json({to_json(settings)!r}, 'tiny')\n"
    )
    return file


def start(config_file: Path, workdir: Path, source: Path, *more: str) -> None:
    flags = [f"--config.init.from={source}", *more]  # model.vocab_size=0: the source's rows
    train.main(["--config", str(config_file), "--workdir", str(workdir), *flags])


@pytest.mark.parametrize("mesh", ["--config.mesh.fsdp=8", "--config.mesh.tensor=2"])
def test_a_run_begins_from_published_weights(config_file: Path, tmp_path: Path, mesh: str) -> None:
    """With a rate of 0 the first checkpoint is the source, but for the slack row."""
    tensors = folders.write_folder(tmp_path / "in", dtype="bfloat16", **SIZES)
    still = ("--config.optimizer.learning_rate=0", "--config.optimizer.final_learning_rate=0")
    start(config_file, tmp_path / "run", tmp_path / "in", mesh, *still)
    convert.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--dtype", "float32"])
    back = folders.read_weights(tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    slack = settings["slack_token_id"]
    assert settings["slack_collapse"] == "merge"
    for name, tensor in tensors.items():
        wide = tensor.astype(np.float32)
        if name in (WTE, "model.transformer.ff_out.weight"):
            mean = np.delete(wide, slack, 0).mean(0)
            np.testing.assert_allclose(back[name][slack], mean, atol=1e-6)
            wide[slack] = back[name][slack]
        np.testing.assert_array_equal(back[name], wide, err_msg=name)
    for name in folders.BESIDE:  # the export loads the way its source did
        assert (tmp_path / "out" / name).read_bytes() == folders.BESIDE[name]
    assert settings["auto_map"] == {"AutoModel": "modeling_llada.LLaDAModelLM"}


def test_a_source_that_knows_slack_keeps_its_row(config_file: Path, tmp_path: Path) -> None:
    said = {"jax_mdlm_prompting": {"data": {"template": "plain"}}}
    tensors = folders.write_folder(
        tmp_path / "in", slack_token_id=6, slack_collapse="merge", **said, **SIZES
    )
    still = ("--config.optimizer.learning_rate=0", "--config.optimizer.final_learning_rate=0")
    start(config_file, tmp_path / "a", tmp_path / "in", "--config.mesh.fsdp=8", *still)
    params, _ = conversion.load(tmp_path / "a")
    np.testing.assert_array_equal(np.asarray(params["wte"]), tensors[WTE])
    start(
        config_file,
        tmp_path / "b",
        tmp_path / "in",
        "--config.mesh.fsdp=8",
        "--config.init.slack_row=mean",
        *still,
    )
    other, _ = conversion.load(tmp_path / "b")
    changed = (np.asarray(other["wte"]) != tensors[WTE]).any(1)
    assert changed.sum() == 1


def test_an_import_is_an_origin_too(config_file: Path, tmp_path: Path) -> None:
    """The same parameters, cast to the run's dtype, and the same files beside the export."""
    folders.write_folder(tmp_path / "in", dtype="bfloat16", **SIZES)
    convert.main(["import", str(tmp_path / "in"), str(tmp_path / "imported")])
    start(config_file, tmp_path / "a", tmp_path / "in", "--config.mesh.fsdp=8")
    start(config_file, tmp_path / "b", tmp_path / "imported", "--config.mesh.fsdp=8")
    left, right = (conversion.load(tmp_path / name)[0] for name in "ab")
    jax.tree.map(np.testing.assert_array_equal, left, right)
    kept = [folders.hashes(tmp_path / name / "source") for name in "ab"]
    assert kept[0] == kept[1]
    assert set(folders.BESIDE) < kept[0].keys()


def test_its_tokenizer_is_used_and_remembered(config_file: Path, tmp_path: Path) -> None:
    """`kind=huggingface` without a path means the tokenizer of `init.from`, also on resuming."""
    folders.write_folder(tmp_path / "in", **SIZES)
    flags = ["--config.mesh.fsdp=8"]
    start(config_file, tmp_path / "run", tmp_path / "in", *flags)
    kept, given = (tmp_path / name / "tokenizer.json" for name in ("run/tokenizer", "in"))
    assert kept.read_bytes() == given.read_bytes()
    assert load_config(epath.Path(tmp_path / "run")).data.tokenizer.mask_id == 60
    epath.Path(tmp_path / "in").rmtree()  # a run that goes on does not need its source
    base = ["--config", str(config_file), "--workdir", str(tmp_path / "run"), *flags]
    train.main([*base, "--config.train.steps=2"])
    convert.main(["export", str(tmp_path / "run"), str(tmp_path / "out")])
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["slack_token_id"] == 64 - len(folders.SPECIAL) + 2


def test_an_export_of_a_model_trained_here_describes_itself(
    config_file: Path, tmp_path: Path
) -> None:
    """No source: published keys from the config, a tokenizer that transformers loads."""
    from transformers import PreTrainedTokenizerFast

    base = ["--config", str(config_file), "--workdir", str(tmp_path / "run")]
    train.main([*base, "--config.mesh.fsdp=8", "--config.data.tokenizer.kind=symbols"])
    convert.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--dtype", "float32"])
    source = conversion.open_source(tmp_path / "out")
    params, config = conversion.load(tmp_path / "run")
    again, same = conversion.load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert source.settings["slack_collapse"] == "merge"
    assert (same.embed, same.layers, same.rope_theta) == (
        config.embed,
        config.layers,
        config.rope_theta,
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    slack = source.settings["slack_token_id"]
    assert tokenizer.convert_ids_to_tokens(slack) == "<SLACK>"
    assert tokenizer.decode([slack], skip_special_tokens=True) == ""
    assert tokenizer.mask_token_id == source.settings["mask_token_id"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--config.model.mlp=25", "--config.model.rope_theta=1e4"],
            r"in holds another model; set --config.model.mlp=24 \(got 25\), "
            r"--config.model.rope_theta=500000.0 \(got 10000.0\)",
        ),
        (["--config.mesh.tensor=8"], r"model has 2 heads, which mesh axis tensor=8 does not div"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(
    config_file: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    folders.write_folder(tmp_path / "in", **SIZES)
    with pytest.raises(ConfigError, match=message):
        start(config_file, tmp_path / "run", tmp_path / "in", *flags)
    # the directory is not claimed: corrected settings may use it
    assert "mesh" in flags[0] or not (tmp_path / "run" / "config.json").exists()
