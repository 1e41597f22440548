"""Whole folders that do not fit: names, shapes, dtypes, settings, values that are no numbers."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jax_mdlm.config import ConfigError
from jax_mdlm.conversion import Meter, open_source
from jax_mdlm.conversion.published import _SWITCHES
from jax_mdlm.convert import main
from tests.conversion.folders import read_weights, write_folder, write_weights
from tests.conversion.refusals import refusal

WTE, LN_F = "model.transformer.wte.weight", "model.transformer.ln_f.weight"
BLOCK = "model.transformer.blocks.{}.{}.weight"
Q0, UP1 = BLOCK.format(0, "q_proj"), BLOCK.format(1, "up_proj")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "source", shards=2)
    return tmp_path / "source"


def describe(folder: Path, **settings: object) -> None:
    """Replaces settings in `config.json`."""
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | settings))


# --- names, shapes, dtypes ---


def test_all_mismatches_come_at_once_with_the_nearest_names(folder: Path) -> None:
    """Swapped, misspelt, missing, unexpected, misshapen and of another dtype, in one error."""
    tensors = read_weights(folder)
    attn_out, ff_proj = BLOCK.format(0, "attn_out"), BLOCK.format(0, "ff_proj")
    tensors[attn_out], tensors[ff_proj] = tensors[ff_proj], tensors[attn_out]
    tensors["model.transformer.blocks.1.up_prj.weight"] = tensors.pop(UP1)
    del tensors[LN_F]
    tensors["lm_head.bias"] = np.zeros(64, np.float32)
    tensors[Q0] = tensors[Q0].astype(np.float64)
    write_weights(folder, tensors, shards=2)
    first, *lines, last = refusal(folder).splitlines()
    assert first == f"{folder}: 21 tensors do not fit config.json, which needs 21:"
    misspelt = "model.transformer.blocks.1.up_prj.weight"
    assert sorted(lines) == [
        f"  missing: {UP1} (is it {misspelt}?)",
        f"  missing: {LN_F}",
        "  unexpected: lm_head.bias",
        f"  unexpected: {misspelt} (is it {UP1}?)",
        f"  wrong dtype: {Q0} must be one of BF16, F32, F16, is F64",
        f"  wrong shape: {attn_out} must be [32, 32], is [48, 32]",
        f"  wrong shape: {ff_proj} must be [48, 32], is [32, 32]",
    ]
    assert last.startswith("nothing was written: correct the folder")


@pytest.mark.parametrize(
    ("dtype", "shown"),
    [
        (np.int8, "I8"),
        (np.float64, "F64"),
        (np.uint8, "U8"),
        (ml_dtypes.float8_e4m3fn, "F8_E4M3"),
        (ml_dtypes.float8_e5m2, "F8_E5M2"),
    ],
)
def test_dtypes_that_hold_other_values_are_refused(folder: Path, dtype: Any, shown: str) -> None:
    tensors = read_weights(folder)
    write_weights(folder, tensors | {UP1: tensors[UP1].astype(dtype)})
    text = refusal(folder)
    assert text.count("wrong dtype") == 1
    assert f"wrong dtype: {UP1} must be one of BF16, F32, F16, is {shown}" in text


# --- config.json ---

# key -> a value that the published class knows and this model does not compute
UNSUPPORTED = {
    "block_type": "sequential",
    "block_group_size": 2,
    "activation_type": "swiglu",
    "layer_norm_type": "low_precision",
    "layer_norm_with_affine": False,
    "attention_layer_norm": True,
    "input_emb_norm": True,
    "include_bias": True,
    "include_qkv_bias": True,
    "bias_for_layer_norm": True,
    "rope": False,
    "rope_full_precision": False,
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "alibi": True,
    "weight_tying": True,
    "scale_logits": True,
    "attention_dropout": 0.1,
    "residual_dropout": 0.1,
    "embedding_dropout": 0.1,
}


def test_every_switch_of_the_table_is_tried_here() -> None:
    assert UNSUPPORTED.keys() == _SWITCHES.keys()


@pytest.mark.parametrize("key", UNSUPPORTED)
def test_a_setting_that_is_not_supported_is_refused_by_name(folder: Path, key: str) -> None:
    describe(folder, **{key: UNSUPPORTED[key]})
    first, line, last = refusal(folder).splitlines()
    assert first == f"{folder / 'config.json'} describes a model that is not supported:"
    assert line.startswith(f"  {key} must be ")
    assert f"got {UNSUPPORTED[key]!r} (" in line
    assert last == "supported so far are LLaDA's 8B and 1B layouts"


def test_all_settings_that_are_not_supported_come_at_once(folder: Path) -> None:
    describe(folder, **UNSUPPORTED)
    lines = refusal(folder).splitlines()[1:-1]
    assert sorted(line.split()[0] for line in lines) == sorted(UNSUPPORTED)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("n_heads", 0, "n_heads must be above 0, got 0"),
        ("n_layers", True, "n_layers must be a whole number, got True"),
        ("d_model", "32", "d_model must be a whole number, got '32'"),
        ("n_kv_heads", "4", "n_kv_heads must be a whole number, got '4'"),
        ("n_kv_heads", 3, "n_kv_heads must divide n_heads=4, got 3"),
        ("mlp_hidden_size", 48.5, "mlp_hidden_size must be a whole number, got 48.5"),
        ("embedding_size", 64.0, "embedding_size must be a whole number, got 64.0"),
        ("max_sequence_length", 0, "max_sequence_length must be above 0, got 0"),
        ("rope_theta", None, "rope_theta must be a number above 0, got None"),
        ("rope_theta", "1e6", "rope_theta must be a number above 0, got '1e6'"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps must be a number above 0, got nan"),
    ],
)
def test_numbers_that_are_none_are_refused(
    folder: Path, key: str, value: object, text: str
) -> None:
    describe(folder, **{key: value})
    assert f"\n  {text}\n" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("mask_token_id", "x", "mask_token_id must be one token id, got 'x'"),
        ("mask_token_id", 64, r"mask_token_id must be one token id, got 64.* rows 0 to 63"),
        ("slack_token_id", -3, "slack_token_id must be one token id, got -3"),
        ("slack_collapse", "both", "slack_collapse must be merge or slack_only, got 'both'"),
    ],
)
def test_ids_that_are_none_are_refused_before_anything_is_written(
    folder: Path, key: str, value: object, text: str
) -> None:
    describe(folder, **{key: value})
    with pytest.raises(ConfigError, match=text):
        main(["import", str(folder), str(folder.parent / "run")])
    assert not (folder.parent / "run").exists()


# --- values ---


def test_the_pieces_of_a_tensor_are_counted_together() -> None:
    meter = Meter()
    for name, num_bytes, found in (("b", 8, 3), ("a", 4, 1), ("b", 8, 2000), ("c", 2, 0)):
        meter.add(name, num_bytes, found)
    assert meter.num_bytes == 22
    assert meter.warnings() == [
        "a holds 1 values that are NaN or infinite",
        "b holds 2,003 values that are NaN or infinite",
    ]


def test_values_that_are_not_finite_are_counted_and_kept(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {name: tensor.copy() for name, tensor in read_weights(folder).items()}
    tensors[WTE][3, :5] = [np.nan, np.inf, -np.inf, np.nan, 3.4e38]
    tensors[LN_F][7] = np.nan
    write_weights(folder, tensors, shards=2)
    run, back = folder.parent / "run", folder.parent / "back"
    warnings = [
        f"warning: {LN_F} holds 1 values that are NaN or infinite",
        f"warning: {WTE} holds 4 values that are NaN or infinite",
    ]
    main(["import", str(folder), str(run)])
    assert [line for line in capsys.readouterr().err.splitlines() if "NaN" in line] == warnings
    main(["export", str(run), str(back), "--dtype", "float32"])
    assert [line for line in capsys.readouterr().err.splitlines() if "NaN" in line] == warnings
    after = read_weights(back)
    for name, tensor in tensors.items():
        assert after[name].tobytes() == tensor.tobytes(), name


def test_absurd_layers_are_refused_at_once(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", n_layers=10**9)
    with pytest.raises(
        ConfigError, match=r"needs 9,000,000,003 tensors, n_layers=1,000,000,000, b"
    ):
        open_source(tmp_path / "in")
