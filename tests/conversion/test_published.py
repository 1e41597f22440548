"""`config.json` of LLaDA: published members of the family go through, other settings are named.

Other families are refused before (`test_foreign.py`).
"""

import json
from pathlib import Path

import pytest

from jax_mdlm.config import ConfigError, ModelConfig
from jax_mdlm.conversion import published
from jax_mdlm.conversion.published import TokenIds

GOLDEN = json.loads(
    (Path(__file__).parent.parent / "data" / "llada_random_mha" / "config.json").read_text()
)
# The 8B models' values; Base, Instruct and 1.5 share them.
LLADA_8B = GOLDEN | {
    "d_model": 4096,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "mlp_hidden_size": 12288,
    "vocab_size": 126464,
    "embedding_size": 126464,
    "max_sequence_length": 4096,
    "mask_token_id": 126336,
    "eos_token_id": 126081,
    "pad_token_id": 126081,
    "torch_dtype": "bfloat16",
}


def test_the_8b_layout_is_the_default_of_the_settings() -> None:
    expected = ModelConfig(compute_dtype="float32", param_dtype="float32")
    assert published.model_config(LLADA_8B) == expected
    assert published.token_ids(LLADA_8B) == TokenIds(126336, 126081, 126081)


def test_the_1b_layout_has_grouped_heads() -> None:
    settings = LLADA_8B | {
        "n_layers": 22,
        "d_model": 2048,
        "n_kv_heads": 4,
        "mlp_hidden_size": 5634,
    }
    config = published.model_config(settings)
    assert (config.layers, config.embed, config.mlp) == (22, 2048, 5634)
    assert (config.heads, config.kv_heads, config.head_dim) == (32, 4, 64)


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"n_kv_heads": None}, "kv_heads", 32),
        ({"n_kv_heads": None, "multi_query_attention": False}, "kv_heads", 32),
        ({"n_kv_heads": None, "multi_query_attention": True}, "kv_heads", 1),
        ({"n_kv_heads": 1, "multi_query_attention": True}, "kv_heads", 1),
        ({"mlp_hidden_size": None}, "mlp", 4 * 4096),
        ({"embedding_size": None}, "vocab_size", 126464),
        ({"embedding_size": 126592}, "vocab_size", 126592),
        ({"bias_for_layer_norm": None}, "norm_eps", 1e-5),
        ({"attention_dropout": 0}, "norm_eps", 1e-5),
        ({"rms_norm_eps": 1e-6}, "norm_eps", 1e-6),
    ],
    ids=str,
)
def test_what_null_means(changes: dict, field: str, value: object) -> None:
    assert getattr(published.model_config(LLADA_8B | changes), field) == value


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"alibi": True}, r"alibi must be False, got True \(ALiBi\)"),
        ({"include_bias": True}, r"include_bias must be False, got True \(biases\)"),
        ({"include_qkv_bias": None}, r"include_qkv_bias must be False, got None"),
        ({"bias_for_layer_norm": True}, r"bias_for_layer_norm must be None, got True"),
        ({"attention_layer_norm": True}, r"attention_layer_norm .* \(q/k norm\)"),
        ({"residual_dropout": 0.1}, r"residual_dropout must be 0, got 0.1 \(dropout\)"),
        ({"block_group_size": 4}, r"block_group_size must be 1, got 4 \(block groups\)"),
        ({"weight_tying": True}, r"weight_tying must be False, got True \(tied weights\)"),
        ({"scale_logits": True}, r"scale_logits must be False"),
        ({"input_emb_norm": True}, r"input_emb_norm must be False"),
        ({"layer_norm_type": "default"}, r"layer_norm_type must be 'rms', got 'default'"),
        ({"layer_norm_with_affine": False}, r"\(norms without weights\)"),
        ({"activation_type": "gelu"}, r"activation_type must be 'silu', got 'gelu'"),
        ({"block_type": "sequential"}, r"block_type must be 'llama', got 'sequential'"),
        ({"rope": False}, r"rope must be True, got False \(a model without RoPE\)"),
        ({"rope_full_precision": False}, r"RoPE in the compute dtype"),
        ({"rope_scaling": {"factor": 2}}, r"rope_scaling must be None, .* \(scaled RoPE\)"),
        ({"d_model": None}, r"d_model must be a whole number, got None"),
        ({"n_heads": 30}, r"n_heads must cut d_model=4096 into even parts, got 30"),
        ({"n_kv_heads": 5}, r"n_kv_heads must divide n_heads=32, got 5"),
        ({"n_kv_heads": 4, "multi_query_attention": True}, r"contradicts n_kv_heads=4"),
        ({"embedding_size": 100}, r"embedding_size must hold vocab_size=126464, got 100"),
    ],
    ids=str,
)
def test_what_the_model_does_not_compute_is_refused_by_name(changes: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as raised:
        published.model_config(LLADA_8B | changes, "there/config.json")
    assert str(raised.value).startswith("there/config.json describes a model that is not supp")


def test_a_missing_key_has_the_published_default_not_ours() -> None:
    """The published class ties weights, has no RoPE and drops out unless it is told otherwise."""
    bare = {key: LLADA_8B[key] for key in ("model_type", "d_model", "n_layers", "n_heads")}
    with pytest.raises(ConfigError) as raised:
        published.model_config(bare)
    for text in (
        "weight_tying must be False, got nothing, which means True",
        "rope must be True, got nothing, which means False",
        "block_type must be 'llama', got nothing, which means 'sequential'",
        "residual_dropout must be 0, got nothing, which means 0.1",
        "vocab_size must be a whole number, got None",
    ):
        assert text in str(raised.value)
    no_theta = {key: value for key, value in LLADA_8B.items() if key != "rope_theta"}
    assert published.model_config(no_theta).rope_theta == 10000.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"c.json must be JSON, but .*; restore it from its source"),
        ("[1]", r"c.json must be a JSON object, got list"),
    ],
)
def test_a_config_that_is_none(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        published.read_settings(text, "c.json")


def test_odd_ids_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"c.json: eos_token_id must be one token id, got \[1\]"):
        published.token_ids(GOLDEN | {"eos_token_id": [1]}, "c.json")
    with pytest.raises(ConfigError, match=r"slack_collapse must be merge or slack_only, got 'x'"):
        published.token_ids(GOLDEN | {"slack_collapse": "x"}, "c.json")


def test_exported_settings_are_the_published_keys_and_those_of_slack() -> None:
    config = published.model_config(GOLDEN)
    plain = published.published_settings(config, published.token_ids(GOLDEN), "float32", None)
    assert plain == GOLDEN | {"init_device": "meta"}
    kept = published.published_settings(config, TokenIds(), "bfloat16", GOLDEN | {"mine": [1]})
    assert kept == GOLDEN | {"mine": [1], "torch_dtype": "bfloat16"}
    ids = TokenIds(150, 151, 151, slack=140, collapse="slack_only")
    slack = published.published_settings(config, ids, "float32", GOLDEN)
    assert slack == GOLDEN | {"slack_token_id": 140, "slack_collapse": "slack_only"}
    assert published.token_ids(slack) == ids
    assert published.model_config(slack) == config
    newer = {key: value for key, value in GOLDEN.items() if key != "torch_dtype"}
    newer = published.published_settings(
        config, TokenIds(), "bfloat16", newer | {"dtype": "float32"}
    )
    assert newer["dtype"] == "bfloat16"
    assert "torch_dtype" not in newer
