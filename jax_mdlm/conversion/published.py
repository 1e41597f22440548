"""`config.json` of the published checkpoints, to and from our settings.

A key that is missing in `config.json` has the default of the published configuration class, which
is not LLaDA's value for most of them: what is refused here would compute something else in PyTorch.

Published LLaDA has one chat template and any canvas. A model that was trained here with another
template, or with prompts of a fixed width, answers nothing sensible when it is prompted otherwise:
its export says how (`jax_mdlm_prompting`), and an import takes it over. PyTorch ignores the key.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any

from jax_mdlm.config import (
    Collapse,
    Config,
    ConfigError,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    SampleConfig,
    TokenizerConfig,
    config_to_json,
    from_json,
)
from jax_mdlm.foreign import SUPPORTED

SLACK_KEY = "slack_token_id"
COLLAPSE_KEY = "slack_collapse"
PROMPTING_KEY = "jax_mdlm_prompting"
_PROMPTING = {
    "data": ("template", "prompt_slots", "pretraining", "special_in_text"),
    "sample": ("length", "block_length", "steps"),
}

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

# What a folder that did not come from a published one says beside sizes and ids. Of values that
# compute the same the last is written; `rope_scaling` is not among the published keys.
_FRESH: dict[str, Any] = {
    **{key: known[-1] for key, (_, known, _) in _SWITCHES.items() if key != "rope_scaling"},
    "alibi_bias_max": 8.0,
    "architectures": ["LLaDAModelLM"],
    "attention_layer_norm_with_affine": True,
    "flash_attention": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "precision": "amp_bf16",
    "use_cache": False,
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


def read_settings(text: str | bytes, origin: str) -> dict[str, Any]:
    """Reads `config.json` into a dict; `origin` names the file in errors.

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
    """Reads the network of a LLaDA's `config.json`; float32 until its weights are known.

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
        mlp=settings.get("mlp_hidden_size") or settings.get("mlp_ratio", 4) * settings["d_model"],
        max_length=settings["max_sequence_length"],
        rope_theta=float(settings.get("rope_theta", _REAL["rope_theta"])),
        norm_eps=float(settings.get("rms_norm_eps", _REAL["rms_norm_eps"])),
        compute_dtype="float32",
        param_dtype="float32",
    )


def token_ids(settings: Mapping[str, Any], origin: str = _NAME) -> TokenIds:
    """Reads the special ids of `config.json`.

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


def run_config(
    settings: Mapping[str, Any], network: ModelConfig, name: str, origin: str = _NAME
) -> Config:
    """Makes the config of a work directory `name` that holds these weights, as they are sampled.

    Raises:
      ConfigError: see `token_ids`; or what is said of prompts is none of ours.
    """
    ids = token_ids(settings, origin)
    given: dict[str, Any] = {  # -1: looked up by its string
        f"{role}_id": -1 if index is None else index
        for role, index in dataclasses.asdict(ids).items()
        if role != "collapse"
    }
    slots = network.max_length
    new = max(1, min(128, slots // 2))
    config = Config(
        name=name,
        model=network,
        # Without a slack id the weights have never seen slack: nothing merges, "22" stays "22".
        objective=ObjectiveConfig(
            collapse=ids.collapse or ("slack_only" if ids.slack is None else "merge"),
            slack_max=0.0 if ids.slack is None else 0.5,
        ),
        data=DataConfig(
            template="llada",
            length=slots,
            max_labels=max(1, slots // 2),
            tokenizer=TokenizerConfig(kind="huggingface", **given),
        ),
        sample=SampleConfig(
            length=new,
            block_length=max(size for size in range(1, 33) if new % size == 0),
            steps=new,
        ),
    )
    return prompted(config, settings, origin)


def prompting(config: Config) -> dict[str, dict[str, Any]]:
    """Tells `config.json` of a run's prompts: fields of `data` and `sample`.

    Empty for LLaDA's template with content that is only text, which needs no word.
    """
    told = {
        section: {name: getattr(getattr(config, section), name) for name in names}
        for section, names in _PROMPTING.items()
    }
    usual = {name: getattr(DataConfig(), name) for name in _PROMPTING["data"]}
    return {} if told["data"] == usual else told


def prompted(config: Config, settings: Mapping[str, Any], origin: str) -> Config:
    """Puts what `prompting` wrote into an import's config; `origin` names the file in errors.

    Raises:
      ConfigError: the key holds anything else.
    """
    told = settings.get(PROMPTING_KEY)
    if told is None:
        return config
    if not (
        isinstance(told, dict)
        and told.keys() <= _PROMPTING.keys()
        and all(
            isinstance(told[key], dict) and told[key].keys() <= {*_PROMPTING[key]} for key in told
        )
    ):
        data, sample = (", ".join(names) for names in _PROMPTING.values())
        raise ConfigError(
            f"{origin}: {PROMPTING_KEY} must hold fields of data ({data}) and of sample "
            f"({sample}), got {str(told)[:200]}; correct or remove it"
        )
    whole = json.loads(config_to_json(config))
    for section, fields in told.items():
        whole[section] |= fields
    return from_json(json.dumps(whole), f"{origin}: {PROMPTING_KEY}")


def published_settings(
    config: ModelConfig,
    ids: TokenIds,
    dtype: str,
    source: Mapping[str, Any] | None,
    prompts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Fills `config.json` of an exported folder: the published keys, and those of this file.

    Args:
      config: The network.
      ids: Special ids; slack and its map are written only where they are set.
      dtype: Of the exported tensors: `bfloat16` or `float32`.
      source: `config.json` of the folder that the run began from: its keys stay as they are.
      prompts: What `prompting` says of the run.
    """
    if source is None:
        source = _FRESH | {
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
    own = {SLACK_KEY: ids.slack, COLLAPSE_KEY: ids.collapse, PROMPTING_KEY: prompts or None}
    described = {key: value for key, value in source.items() if key not in own}
    newer = "dtype" in described and "torch_dtype" not in described
    described["dtype" if newer else "torch_dtype"] = dtype
    described |= {key: value for key, value in own.items() if value is not None}
    return dict(sorted(described.items()))


def settings_text(settings: Mapping[str, Any]) -> str:
    """Formats `config.json` as Hugging Face writes it."""
    return json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def check_published_positions(config: ModelConfig, origin: os.PathLike[str]) -> None:
    """Raises ConfigError where published code would turn keys and queries by other angles."""
    if config.uncounted_id >= 0:
        raise ConfigError(
            f"{os.fspath(origin)} was trained with model.uncounted_id={config.uncounted_id} and "
            "published code counts every slot: it would run another network; export a run with -1"
        )


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
