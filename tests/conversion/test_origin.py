"""Training that begins from published weights, and what an export of it holds."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from jax_mdlm import conversion, convert, train
from jax_mdlm.config import Config, ConfigError, TokenizerConfig, config_to_json
from jax_mdlm.workdir import load_config
from tests.conversion import folders
from tests.training.conftest import tiny_config

pytestmark = pytest.mark.slow

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
        f"def get_config(preset=''):\n    return from_json({config_to_json(settings)!r}, 'tiny')\n"
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


@pytest.fixture(scope="module")
def origins(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model in all that `init.from` names: published weights, their import, a training run."""
    folder = tmp_path_factory.mktemp("origins")
    folders.write_folder(folder / "published", **SIZES)
    convert.main(["import", str(folder / "published"), str(folder / "imported")])
    start(config_file, folder / "trained", folder / "published", "--config.mesh.fsdp=8")
    return {name: folder / name for name in ("published", "imported", "trained")}


@pytest.mark.parametrize("kind", ["published", "imported", "trained"])
def test_another_network_is_refused_with_flags_to_paste(
    config_file: Path, origins: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """Also what no shape shows: RoPE's base and the norms' epsilon. The flags, pasted, work."""
    other = ["--config.model.mlp=25", "--config.model.rope_theta=1e4", "--config.model.norm_eps=1"]
    run, mesh = tmp_path / "run", "--config.mesh.fsdp=8"
    with pytest.raises(ConfigError) as caught:
        start(config_file, run, origins[kind], *other, mesh)
    text = str(caught.value)
    flags = "--config.model.mlp=24 --config.model.rope_theta=500000.0 --config.model.norm_eps=1e-05"
    assert text == (
        f"init.from={origins[kind]} holds another model; add {flags} "
        "(this run has mlp=25, rope_theta=10000.0, norm_eps=1.0)"
    )
    assert not (run / "config.json").exists()  # not claimed: corrected settings may use it
    start(config_file, run, origins[kind], *other, mesh, *flags.split())
    assert load_config(epath.Path(run)).model.mlp == 24


def test_a_mesh_that_does_not_divide_is_refused(
    config_file: Path, origins: dict[str, Path], tmp_path: Path
) -> None:
    message = r"model has 2 heads, which mesh axis tensor=8 does not div"
    with pytest.raises(ConfigError, match=message):
        start(config_file, tmp_path / "run", origins["published"], "--config.mesh.tensor=8")


@pytest.mark.parametrize("kind", ["published", "imported", "trained"])
@pytest.mark.parametrize("longer", [False, True])
def test_more_slots_than_the_origin_has_seen_are_warned_about(
    config_file: Path,
    origins: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    longer: bool,
) -> None:
    most = load_config(epath.Path(origins[kind])).model.max_length if kind == "trained" else 128
    flag = f"--config.model.max_length={most + longer}"
    capsys.readouterr()
    start(config_file, tmp_path / "run", origins[kind], flag, "--config.mesh.fsdp=8")
    line = (
        f"warning: model.max_length={most + 1} is more than the {most} slots that "
        f"init.from={origins[kind]} was made for: positions beyond them are new to it\n"
    )
    assert (line in capsys.readouterr().err) == longer
