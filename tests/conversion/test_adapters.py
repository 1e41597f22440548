"""What leaves a LoRA run: merged weights, a PEFT folder, parameters for another run."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import jax_mdlm
from jax_mdlm import conversion, model, train
from jax_mdlm.config import ConfigError, LoraConfig, TokenizerConfig, config_to_json
from jax_mdlm.convert import main as convert
from tests.conversion import folders
from tests.conversion.adapted import (
    HEAD,
    PEFT,
    ROWS,
    SIZES,
    SLACK,
    WTE,
    by_hand,
    read,
    tokens,
    unmerged,
)
from tests.training.conftest import tiny_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rank 3, all matrices, float32; every run here makes three steps."""
    folder = tmp_path_factory.mktemp("config")
    folders.write_rows(folder / "rows.jsonl")
    tiny = tiny_config(str(folder / "rows.jsonl"), steps=3, save_every=3, evaluate_rows=2)
    config = dataclasses.replace(
        tiny,
        model=dataclasses.replace(tiny.model, heads=4, kv_heads=2, head_dim=4),
        data=dataclasses.replace(tiny.data, tokenizer=TokenizerConfig(kind="huggingface")),
        lora=LoraConfig(rank=3, alpha=6.0),
    )
    file = folder / "tiny.py"
    file.write_text(
        "from jax_mdlm.config import from_json\n"
        f"def get_config(preset=''):\n    return from_json({config_to_json(config)!r}, 'tiny')\n"
    )
    return file


def start(config_file: Path, workdir: Path, *flags: str) -> Path:
    train.main(["--config", str(config_file), "--workdir", str(workdir), *flags])
    return workdir


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "in"
    folders.write_folder(folder, **SIZES)
    return folder


@pytest.fixture(scope="module")
def run(config_file: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "run"
    return start(config_file, workdir, f"--config.init.from={source}", "--config.mesh.fsdp=8")


@pytest.fixture(scope="module")
def merged(run: Path) -> Path:
    convert(["export", str(run), str(run.parent / "merged"), "--dtype", "float32"])
    return run.parent / "merged"


@pytest.fixture(scope="module")
def adapter(run: Path) -> Path:
    convert(["export", str(run), str(run.parent / "peft"), "--adapter"])
    return run.parent / "peft"


# --- merged ---


def test_merged_weights_compute_what_the_run_did(run: Path, merged: Path) -> None:
    params, config = conversion.load(merged)
    want = model.apply(unmerged(run), jnp.asarray(tokens()), config)
    got = model.apply(params, jnp.asarray(tokens()), config)
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)
    read, _ = conversion.load(run)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), read, params)


def test_every_matrix_and_the_slack_rows_moved_and_no_other(source: Path, merged: Path) -> None:
    before, after = folders.read_weights(source), folders.read_weights(merged)
    for name, tensor in before.items():
        if name in (WTE, HEAD):
            moved = np.flatnonzero((tensor != after[name]).any(axis=1))
            assert moved.tolist() == [SLACK]
        else:
            assert np.array_equal(tensor, after[name]) == ("norm" in name or "ln_f" in name), name
    mean = np.delete(before[WTE], SLACK, 0).mean(0)
    assert np.abs(after[WTE][SLACK] - mean).max() > 1e-3, "trained from the mean embedding on"


def test_boxes_cut_anywhere_merge_alike(run: Path, merged: Path, monkeypatch) -> None:
    """The export reads a large matrix in boxes of its outputs."""
    monkeypatch.setattr("jax_mdlm.conversion.boxes._MOST_BYTES", 256)
    monkeypatch.setattr("jax_mdlm.conversion.boxes._LEAST_CHUNK", 128)
    convert(["export", str(run), str(run.parent / "cut"), "--dtype", "float32"])
    whole, cut = folders.read_weights(merged), folders.read_weights(run.parent / "cut")
    for name, tensor in whole.items():
        np.testing.assert_allclose(cut[name], tensor, atol=1e-6, err_msg=name)


def test_another_run_begins_from_the_merged_parameters(
    config_file: Path, run: Path, merged: Path, tmp_path: Path
) -> None:
    still = ("--config.optimizer.learning_rate=0", "--config.optimizer.final_learning_rate=0")
    flags = (f"--config.init.from={run}", "--config.lora.rank=0", "--config.train.steps=1", *still)
    params, _ = conversion.load(start(config_file, tmp_path / "next", *flags))
    want, _ = conversion.load(merged)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), params, want)


def test_inspect_tells_the_frozen_from_the_trained(run: Path) -> None:
    found = conversion.inspect(run)
    assert found["format"] == "work directory, of a LoRA run"
    assert found["parameters"] == sum(x.size for x in jax.tree.leaves(conversion.load(run)[0]))
    assert found["adapters"]["tensors"] == 2 * 7 + 2
    assert found["adapters"]["dtypes"] == {"float32": 16}


# --- with a base in int8 ---


@pytest.fixture(scope="module")
def narrow(config_file: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "run"
    flags = (f"--config.init.from={source}", "--config.mesh.fsdp=4", "--config.mesh.tensor=2")
    return start(config_file, workdir, *flags, "--config.lora.base=int8")


@pytest.fixture(scope="module")
def narrow_merged(narrow: Path) -> Path:
    convert(["export", str(narrow), str(narrow.parent / "out"), "--dtype", "float32"])
    return narrow.parent / "out"


def by_definition(tensor: np.ndarray, axis: int) -> np.ndarray:
    """Rounded to 255 steps between plus and minus the largest value along an axis."""
    scale = np.abs(tensor).max(axis=axis, keepdims=True) / np.float32(127)
    return np.round(tensor / scale) * scale


def test_what_is_frozen_is_the_rounded_source(
    narrow: Path, narrow_merged: Path, source: Path
) -> None:
    """Read over a mesh of 4 x 2, a layer at a time; slack's row began as the mean of the others."""
    convert(["export", str(narrow), str(narrow.parent / "peft"), "--adapter"])
    before, after = folders.read_weights(source), folders.read_weights(narrow_merged)
    given = load_file(narrow.parent / "peft" / "adapter_model.safetensors")
    for name, tensor in before.items():
        module = PEFT + name.removesuffix(".weight")
        # PyTorch has [out, in], and a table's rows: a scale belongs to a row of either.
        quantised = not (name == HEAD or "norm" in name or "ln_f" in name)
        want = by_definition(tensor, 1) if quantised else tensor.copy()
        if f"{module}.lora_A.weight" in given:
            want += 2.0 * given[f"{module}.lora_B.weight"] @ given[f"{module}.lora_A.weight"]
        if f"{module}{ROWS}" in given:
            want[SLACK] = given[f"{module}{ROWS}"]
        np.testing.assert_allclose(after[name], want, atol=1e-6, err_msg=name)
        assert np.abs(want - tensor).max() > 1e-3 or not quantised
    mean = np.delete(by_definition(before[WTE], 1), SLACK, 0).mean(0)
    base = unmerged(narrow)["wte"].weight.merged("float32")[SLACK]
    np.testing.assert_allclose(base, mean, atol=np.abs(mean).max() / 254 * 1.001)


def test_it_is_read_merged_as_the_run_computes_it(narrow: Path, narrow_merged: Path) -> None:
    params, config = conversion.load(narrow)
    want = model.apply(unmerged(narrow), jnp.asarray(tokens()), config)
    got = model.apply(params, jnp.asarray(tokens()), config)
    np.testing.assert_allclose(got, want, atol=2e-5, rtol=1e-5)
    found = conversion.inspect(narrow)
    assert found["parameters"] == sum(x.size for x in jax.tree.leaves(params))
    assert found["dtypes"] == {"float32": 4, "int8": 8}
    assert found["bytes"] < 2 * found["parameters"]
    short = {"length": 8, "block_length": 8, "steps": 4}
    run, folder = jax_mdlm.load(narrow, **short), jax_mdlm.load(narrow_merged, **short)
    assert run.generate(["abc", "d"]) == folder.generate(["abc", "d"])
    own, other = (one.log_likelihood([5, 6, 7], [8, 9, 8], samples=8) for one in (run, folder))
    assert own.value == pytest.approx(other.value, rel=1e-4)


def test_the_places_of_a_quantised_base_change_nothing(
    config_file: Path, source: Path, narrow: Path, tmp_path: Path
) -> None:
    """Read onto one device, in boxes cut elsewhere."""
    flags = (f"--config.init.from={source}", "--config.lora.base=int8", "--config.train.steps=1")
    alone = start(
        config_file, tmp_path / "run", *flags, "--config.mesh.data=8", "--config.mesh.fsdp=1"
    )
    left, right = read(narrow / "base", 0, "params/"), read(alone / "base", 0, "params/")
    jax.tree.map(np.testing.assert_array_equal, left, right)


# --- as a PEFT folder ---


def test_a_peft_folder_has_the_names_and_shapes_that_peft_reads(adapter: Path) -> None:
    given = load_file(adapter / "adapter_model.safetensors")
    shapes = {
        "q_proj": (16, 16),
        "k_proj": (16, 8),
        "v_proj": (16, 8),
        "attn_out": (16, 16),
        "ff_proj": (16, 24),
        "up_proj": (16, 24),
        "ff_out": (24, 16),
    }
    want = {
        f"{PEFT}model.transformer.wte{ROWS}": (1, 16),
        f"{PEFT}model.transformer.ff_out{ROWS}": (1, 16),
    }
    for layer in range(2):
        for name, (inputs, outputs) in shapes.items():
            module = f"{PEFT}model.transformer.blocks.{layer}.{name}"
            want[f"{module}.lora_A.weight"] = (3, inputs)
            want[f"{module}.lora_B.weight"] = (outputs, 3)
    assert {name: x.shape for name, x in given.items()} == want
    assert {x.dtype for x in given.values()} == {np.dtype("float32")}
    assert (adapter / "tokenizer.json").exists()


def test_its_settings_say_how_to_put_it_on(adapter: Path, source: Path) -> None:
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA"
    assert (settings["r"], settings["lora_alpha"]) == (3, 6)
    assert settings["base_model_name_or_path"] == str(source)
    assert settings["fan_in_fan_out"] is False
    # PEFT adapts every module whose name ends so: `ff_out` alone would be the head too.
    ends = [f".{name}" for name in settings["target_modules"]]
    adapted = {
        name.removesuffix(".weight")
        for name in folders.read_weights(source)
        if name.removesuffix(".weight").endswith(tuple(ends))
    }
    assert len(adapted) == 2 * 7
    assert all("blocks" in name for name in adapted)
    assert settings["trainable_token_indices"] == {
        "transformer.wte": [SLACK],
        "transformer.ff_out": [SLACK],
    }


def test_put_on_by_hand_it_is_the_merged_export(source: Path, adapter: Path, merged: Path) -> None:
    tensors, want = by_hand(source, adapter), folders.read_weights(merged)
    assert tensors.keys() == want.keys()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(tensor, want[name], atol=1e-6, err_msg=name)


def test_a_hub_name_and_its_revision(run: Path, tmp_path: Path) -> None:
    flags = ["--adapter", "--base", "hf://GSAI-ML/LLaDA-8B-Base@v1", "--dtype", "bfloat16"]
    convert(["export", str(run), str(tmp_path / "peft"), *flags])
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "GSAI-ML/LLaDA-8B-Base"
    assert settings["revision"] == "v1"
    given = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert {str(x.dtype) for x in given.values()} == {"bfloat16"}


def test_a_frozen_slack_row_that_was_kept_needs_no_row_in_the_folder(
    config_file: Path, source: Path, tmp_path: Path
) -> None:
    flags = (
        f"--config.init.from={source}",
        "--config.init.slack_row=keep",
        "--config.lora.train_slack_row=false",
        "--config.lora.targets=blocks/q_proj,blocks/v_proj",
        "--config.model.compute_dtype=bfloat16",
    )
    start(config_file, tmp_path / "run", *flags)
    convert(["export", str(tmp_path / "run"), str(tmp_path / "peft"), "--adapter"])
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["q_proj", "v_proj"]
    assert settings["trainable_token_indices"] is None
    assert len(load_file(tmp_path / "peft" / "adapter_model.safetensors")) == 2 * 2 * 2
    # The base is bfloat16 here; the default export rounds the sum in float32 once.
    convert(["export", str(tmp_path / "run"), str(tmp_path / "hf")])
    params, _ = conversion.load(tmp_path / "run", dtype="float32")
    exported, _ = conversion.load(tmp_path / "hf", dtype="float32")
    once = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
    jax.tree.map(np.testing.assert_array_equal, exported, once)


# --- refusals ---


def test_an_adapter_that_cannot_be_written_is_refused(
    config_file: Path, run: Path, tmp_path: Path
) -> None:
    folders.write_folder(tmp_path / "in", **SIZES)
    convert(["import", str(tmp_path / "in"), str(tmp_path / "full")])
    target = str(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"must hold adapters for --adapter, it was trained in"):
        convert(["export", str(tmp_path / "full"), target, "--adapter"])
    with pytest.raises(ConfigError, match=r"--base names what an adapter belongs on; give it with"):
        convert(["export", str(run), target, "--base", "hf://GSAI-ML/LLaDA-8B-Base"])
    symbols = "--config.data.tokenizer.kind=symbols"
    start(config_file, tmp_path / "drawn", symbols, "--config.train.steps=1")
    with pytest.raises(ConfigError, match=r"needs published weights to stand on, .*drawn did not"):
        convert(["export", str(tmp_path / "drawn"), target, "--adapter"])
    assert not Path(target).exists()


def test_an_export_without_the_base_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "base")
    with pytest.raises(ConfigError, match=r"must hold their frozen parameters in base/0, but they"):
        convert(["export", str(tmp_path / "run"), str(tmp_path / "out")])


# --- PyTorch ---


@pytest.mark.torch
def test_pytorch_computes_what_the_run_did(
    run: Path, source: Path, merged: Path, adapter: Path
) -> None:
    """Unmerged here, merged there; and the published model with the PEFT folder put on by hand."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from tests.conversion.example import load_folder

    _, config = conversion.load(merged)
    want = np.asarray(model.apply(unmerged(run), jnp.asarray(tokens()), config))
    ids = torch.tensor(tokens())
    with torch.no_grad():
        np.testing.assert_allclose(load_folder(merged)(ids).numpy(), want, atol=1e-5, rtol=1e-5)
        published = load_folder(source)
        assert np.abs(published(ids).numpy() - want).max() > 0.1
        published.load_state_dict(
            {name: torch.tensor(x) for name, x in by_hand(source, adapter).items()}
        )
        np.testing.assert_allclose(published(ids).numpy(), want, atol=1e-5, rtol=1e-5)


@pytest.mark.torch
def test_the_guides_lines_load_an_adapter_in_peft(
    source: Path, merged: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT's own reader, on the base that the run began from: the merged network, slack's rows too.

    The guide has `exported` for the base.
    """
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("peft", reason="PEFT is not installed")
    from tests.conversion.example import FILE, load_folder, run_block

    shutil.copytree(source, tmp_path / "exported")
    shutil.copytree(adapter, tmp_path / "adapter")
    shutil.copy(FILE, tmp_path)
    got = run_block("PeftModel", tmp_path, monkeypatch)["model"]
    ids = torch.tensor(tokens())
    with torch.no_grad():
        want = load_folder(merged)(ids).numpy()
        np.testing.assert_allclose(got(ids).numpy(), want, atol=1e-5, rtol=1e-5)
        whole = got.merge_and_unload()
        np.testing.assert_allclose(whole(ids).numpy(), want, atol=1e-5, rtol=1e-5)
