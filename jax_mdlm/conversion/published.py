"""`config.json` of the published checkpoints, to and from our settings.

A key that is missing in `config.json` has the default of the published configuration class, which
is not LLaDA's value for most of them: what is refused here would compute something else in PyTorch.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any

from jax_mdlm.config import Collapse, ConfigError, ModelConfig
from jax_mdlm.foreign import SUPPORTED

SLACK_KEY = "slack_token_id"
COLLAPSE_KEY = "slack_collapse"

# key -> (default of the published class, values that this model computes, what others would mean)
_SWITCHES: dict[str, tuple[Any, tuple[Any, ...], str]] = {
    "block_type": ("sequential", ("llama",), "fused or parallel blocks"),
    "block_group_size": (1, (1,), "block groups"),
    "activation_type": ("swiglu", ("silu",), "another activation"),
    "layer_norm_type": ("default", ("rms",), "another norm"),
    "layer_norm_with_affine": (True, (True,), "norms without weights"),
    "attention_layer_norm": (False, (False,), "q/k norm"),
    "input_emb_norm": (False, (False,), "a scaled embedding"),
    "include_bias": (False, (False,), "biases"),
    "include_qkv_bias": (False, (False,), "q/k/v biases"),
    "bias_for_layer_norm": (None, (None, False), "norm biases"),
    "rope": (False, (True,), "a model without RoPE"),
    "rope_full_precision": (True, (True,), "RoPE in the compute dtype"),
    "rope_scaling": (None, (None,), "scaled RoPE"),
    "alibi": (False, (False,), "ALiBi"),
    "weight_tying": (True, (False,), "tied weights"),
    "scale_logits": (False, (False,), "scaled logits"),
    "attention_dropout": (0.1, (0, 0.0), "dropout"),
    "residual_dropout": (0.1, (0, 0.0), "dropout"),
    "embedding_dropout": (0.1, (0, 0.0), "dropout"),
}
_NEEDED = ("d_model", "n_layers", "n_heads", "vocab_size", "max_sequence_length")
_WHOLE = ("n_kv_heads", "mlp_hidden_size", "mlp_ratio", "embedding_size")  # null counts as absent
_REAL = {"rope_theta": 10000.0, "rms_norm_eps": 1e-5}  # with the published class's defaults
_NAME = "config.json"

# What a folder is described by that did not come from a published one.
_FRESH: dict[str, Any] = {
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "embedding_dropout": 0.0,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "rope": True,
    "rope_full_precision": True,
    "scale_logits": False,
    "use_cache": False,
    "weight_tying": False,
}


@dataclasses.dataclass(frozen=True)
class TokenIds:
    """What `config.json` says of special tokens; None where it is silent.

    Attributes:
      mask: Id of `[MASK]`.
      eos: Id of end of text.
      pad: Id of the padding token.
      slack: Id of `<SLACK>`; only in folders that this package wrote.
      collapse: Canvas -> text of the model that was trained with slack.
    """

    mask: int | None = None
    eos: int | None = None
    pad: int | None = None
    slack: int | None = None
    collapse: Collapse | None = None


def parse(text: str | bytes, origin: str) -> dict[str, Any]:
    """`config.json` as a dict; `origin` names the file in errors.

    Raises:
      ConfigError: not JSON, or not an object.
    """
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:  # also bytes that are no text
        raise ConfigError(
            f"{origin} must be JSON, but {error}; restore it from its source"
        ) from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{origin} must be a JSON object, got {type(settings).__name__}")
    return settings


def model_config(settings: Mapping[str, Any], origin: str = _NAME) -> ModelConfig:
    """The network that `config.json` describes.

    Args:
      settings: Its content, of a LLaDA (`foreign.check_folder` knows what else there is).
      origin: Names the file in errors.

    Returns:
      Layout; dtypes are float32 until the weights are known.

    Raises:
      ConfigError: settings that this model does not compute, all of them named.
    """
    problems = _unsupported(settings)
    wrong = _wrong_numbers(settings)
    problems += wrong or _contradictions(settings)
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ConfigError(f"{origin} describes a model that is not supported:{lines}\n{SUPPORTED}")
    return ModelConfig(
        vocab_size=_rows(settings),
        embed=settings["d_model"],
        layers=settings["n_layers"],
        heads=settings["n_heads"],
        kv_heads=_kv_heads(settings),
        head_dim=settings["d_model"] // settings["n_heads"],
        mlp=_mlp(settings),
        max_length=settings["max_sequence_length"],
        rope_theta=float(settings.get("rope_theta", _REAL["rope_theta"])),
        norm_eps=float(settings.get("rms_norm_eps", _REAL["rms_norm_eps"])),
        compute_dtype="float32",
        param_dtype="float32",
    )


def token_ids(settings: Mapping[str, Any], origin: str = _NAME) -> TokenIds:
    """The special ids of `config.json`.

    Raises:
      ConfigError: an id has no row in the embedding, or the collapse map is unknown.
    """
    rows = _rows(settings)

    def find(key: str) -> int | None:
        value = settings.get(key)
        if value is not None and (type(value) is not int or not 0 <= value < rows):
            raise ConfigError(
                f"{origin}: {key} must be one token id, got {value!r}; correct it (the embedding "
                f"has rows 0 to {rows - 1})"
            )
        return value

    collapse = settings.get(COLLAPSE_KEY)
    if collapse not in (None, "merge", "slack_only"):
        raise ConfigError(
            f"{origin}: {COLLAPSE_KEY} must be merge or slack_only, got {collapse!r}; correct it"
        )
    return TokenIds(
        mask=find("mask_token_id"),
        eos=find("eos_token_id"),
        pad=find("pad_token_id"),
        slack=find(SLACK_KEY),
        collapse=collapse,
    )


def settings_of(
    config: ModelConfig, ids: TokenIds, dtype: str, source: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What `config.json` of an exported folder holds.

    Args:
      config: The network.
      ids: Special ids; slack and its map are written only where they are set.
      dtype: Of the exported tensors: `bfloat16` or `float32`.
      source: `config.json` of the folder that the run began from: its keys stay as they are.

    Returns:
      Exactly the published keys, plus those of slack.
    """
    described = dict(source) if source is not None else _fresh(config, ids)
    dtype_key = (
        "dtype" if "dtype" in described and "torch_dtype" not in described else "torch_dtype"
    )
    described[dtype_key] = dtype
    for key, value in ((SLACK_KEY, ids.slack), (COLLAPSE_KEY, ids.collapse)):
        described.pop(key, None)
        if value is not None:
            described[key] = value
    return dict(sorted(described.items()))


def check_published_positions(config: ModelConfig, origin: os.PathLike[str]) -> None:
    """Raises ConfigError where published code would turn keys and queries by other angles."""
    if config.uncounted_id >= 0:
        raise ConfigError(
            f"{os.fspath(origin)} was trained with model.uncounted_id={config.uncounted_id} and "
            "published code counts every slot: it would run another network; export a run with -1"
        )


def _fresh(config: ModelConfig, ids: TokenIds) -> dict[str, Any]:
    return _FRESH | {
        "d_model": config.embed,
        "embedding_size": config.vocab_size,
        "eos_token_id": ids.eos,
        "mask_token_id": ids.mask,
        "max_sequence_length": config.max_length,
        "mlp_hidden_size": config.mlp,
        "n_heads": config.heads,
        "n_kv_heads": config.kv_heads,
        "n_layers": config.layers,
        "pad_token_id": ids.pad,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "vocab_size": config.vocab_size,
    }


def _unsupported(settings: Mapping[str, Any]) -> list[str]:
    problems = []
    for key, (default, known, meaning) in _SWITCHES.items():
        value = settings.get(key, default)
        if not any(value == good and type(value) is type(good) for good in known):
            shown = f"{value!r}" if key in settings else f"nothing, which means {default!r}"
            problems.append(f"{key} must be {known[0]!r}, got {shown} ({meaning})")
    return problems


def _wrong_numbers(settings: Mapping[str, Any]) -> list[str]:
    problems = []
    for key in (*_NEEDED, *_WHOLE):
        value = settings.get(key)
        if value is None and key not in _NEEDED:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            problems.append(f"{key} must be a whole number, got {value!r}")
        elif value < 1:
            problems.append(f"{key} must be above 0, got {value!r}")
    for key, default in _REAL.items():
        value = settings.get(key, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            problems.append(f"{key} must be a number above 0, got {value!r}")
    return problems


def _contradictions(settings: Mapping[str, Any]) -> list[str]:
    problems = []
    width, heads, kv_heads = settings["d_model"], settings["n_heads"], _kv_heads(settings)
    if width % heads or (width // heads) % 2:
        problems.append(f"n_heads must cut d_model={width} into even parts, got {heads}")
    if kv_heads < 1 or heads % kv_heads:
        problems.append(f"n_kv_heads must divide n_heads={heads}, got {kv_heads}")
    multi_query = settings.get("multi_query_attention")
    if multi_query is not None and kv_heads != (1 if multi_query else heads):
        problems.append(f"multi_query_attention={multi_query} contradicts n_kv_heads={kv_heads}")
    if _rows(settings) < settings["vocab_size"]:
        problems.append(
            f"embedding_size must hold vocab_size={settings['vocab_size']}, got {_rows(settings)}"
        )
    return problems


def _rows(settings: Mapping[str, Any]) -> int:
    # A missing key is 50304 rows in the published class; null means as many as the vocabulary has.
    return settings.get("embedding_size", 50304) or settings["vocab_size"]


def _kv_heads(settings: Mapping[str, Any]) -> int:
    if settings.get("n_kv_heads") is not None:
        return settings["n_kv_heads"]
    return 1 if settings.get("multi_query_attention") else settings["n_heads"]


def _mlp(settings: Mapping[str, Any]) -> int:
    return settings.get("mlp_hidden_size") or settings.get("mlp_ratio", 4) * settings["d_model"]
