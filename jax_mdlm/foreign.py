"""Folders, files and rows that this package does not read: each is refused by what it is.

A folder is known by the names of its files and by what its `config.json` says: the classes in
`architectures`, `model_type`, fields of experts and images. `model_type` alone decides nothing:
LLaDA-MoE and LLaDA-V call themselves `llada`, too. What is LLaDA by all of these is not judged
here; `conversion.published` compares its settings one by one. Files that hold no rows that are read
are known by their first bytes.
"""

import dataclasses
import json
import os
import re
from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from jax_mdlm.config import ConfigError

SUPPORTED = "supported so far are LLaDA's 8B and 1B layouts"
_CONFIG = "config.json"
_TAKE = "take the model's safetensors files in its published form"


@dataclasses.dataclass(frozen=True)
class _Family:
    """A family of models, known by its class or its type.

    Attributes:
      name: As its authors write it.
      classes: Regular expression for a whole name in `architectures`.
      types: Regular expression for the whole `model_type`.
      what: Sets it apart; goes on after the name.
    """

    name: str
    classes: str
    types: str
    what: str


_EXPERTS = "a mixture of experts"
_LLADA_MOE = _Family("LLaDA-MoE", r"LLaDAMoE\w*", r"llada_?moe", _EXPERTS)
_FAMILIES = (
    _Family("LLaDA2", r"LLaDA2\w*", r"llada2\w*", f"{_EXPERTS} that decodes block by block"),
    _LLADA_MOE,
    _Family("iLLaDA", r"ILLaDA\w*", r"illada", "a diffusion model with tied weights"),
    _Family(
        "Dream",
        r"Dream\w*",
        r"(?i:dream)\w*",
        "a diffusion model whose logits are shifted by one (so are Dream-Coder and DiffuCoder)",
    ),
    _Family("A2D", r"A2D\w+", r"a2d-.+", "an autoregressive model turned into a diffusion model"),
)
_AUTOREGRESSIVE = re.compile(
    r"(code_?)?llama\d*|mi[sx]tral\d*|qwen\d?(_\d)?(_moe)?|gpt2|gpt_\w+|gemma\d*(_text)?|phi\d*|opt|"
    r"bloom|falcon|olmo\w*|deepseek\w*|smollm\d*|granite\w*|cohere\d*|starcoder\d*|mamba\d*"
)
_ENCODERS = re.compile(r"(\w*_?)?(bert|roberta|electra)\w*|deberta.*|xlm.*")
_IMAGES = ("vision_config", "image_token_id", "image_token_index")
_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")

# What weights look like that are not read, by their files; the first that fits names the folder.
_OTHER_WEIGHTS = (
    (r".*\.gguf", "GGUF weights, as llama.cpp quantises them"),
    (r"flax_model.*\.msgpack(\.index\.json)?", "Flax weights of transformers"),
    (r"tf_model.*\.h5(\.index\.json)?|.*\.ckpt\.index|saved_model\.pb", "TensorFlow weights"),
    (r".*\.onnx", "an ONNX graph"),
    (r"consolidated.*\.(pth|safetensors)", "weights in the layout of their training code"),
    (r".*\.(distcp|ckpt)|zero_to_fp32\.py", "a checkpoint of PyTorch training"),
    (r".*\.mlpackage|.*\.mlmodel", "a Core ML model"),
)
_READABLE = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|pytorch_model.*\.(bin|pt)(\.index\.json)?|"
    r"model\.pt"
)
_TOKENIZER = re.compile(r"tokenizer.*\.(json|model)|spiece\.model|vocab\.(json|txt)")


def check_folder(folder: epath.Path, path: str) -> None:
    """Refuses a folder, or a file, that is known to be something else than we read.

    Args:
      folder: Where to look; nothing but names and small JSON files are read.
      path: What it is called in errors.

    Raises:
      ConfigError: in one line what is there, and what to take instead.
    """
    if found := _recognise(folder):
        raise ConfigError(f"{path} {found}")


def family(settings: Mapping[str, Any]) -> str:
    """The model that `config.json` describes, if it is not LLaDA or does not say so.

    Args:
      settings: Its content.

    Returns:
      E.g. `LLaDA-MoE (architectures: LLaDAMoEModelLM, 64 experts), a mixture of experts`; empty
      for LLaDA, and where nothing is said.
    """
    classes, kind = _classes(settings), str(settings.get("model_type") or "")
    experts = next((settings[key] for key in _NUM_EXPERTS if settings.get(key)), None)
    facts = [f"architectures: {', '.join(classes)}" if classes else f"model_type: {kind}"]
    facts += [f"{experts} experts"] if experts else []
    shown = f"({', '.join(facts)})"
    if any(settings.get(key) is not None for key in _IMAGES) or any(
        key.startswith("mm_") and value for key, value in settings.items()
    ):
        name = "LLaDA-V" if "llada" in f"{kind} {classes}".lower() else (classes or [kind])[0]
        return f"{name} {shown}, a model of images and text"
    for one in _FAMILIES:
        if any(re.fullmatch(one.classes, name) for name in classes) or re.fullmatch(
            one.types, kind
        ):
            return f"{one.name} {shown}, {one.what}"
    if kind == "llada":
        if experts:
            return f"{_LLADA_MOE.name} {shown}, {_LLADA_MOE.what}"
        if "d_model" not in settings and "hidden_size" in settings:
            return f"a model {shown} that calls itself llada, with the fields of another class"
        return ""
    if _AUTOREGRESSIVE.fullmatch(kind):
        return f"{kind} {shown}, an autoregressive model"
    if _ENCODERS.fullmatch(kind):
        return f"{kind} {shown}, an encoder"
    return f"{kind or classes[0]} {shown}" if kind or classes else ""


def _recognise(folder: epath.Path) -> str:
    """What `folder` holds and the remedy, as the rest of a sentence; "" where nothing is known."""
    if not folder.is_dir():
        return _recognise_file(folder)
    names = sorted(path.name for path in folder.iterdir())
    settings = _read(folder / _CONFIG) if _CONFIG in names else {}
    readable = [name for name in names if _READABLE.fullmatch(name)]
    if "model_index.json" in names:
        return _pipeline(_read(folder / "model_index.json") or {})
    if "_class_name" in (settings or {}):
        return _pipeline(settings or {})
    if "adapter_config.json" in names and not readable:
        return _adapter(_read(folder / "adapter_config.json") or {})
    if settings is None:  # no JSON, or no object: whoever reads it says so
        return ""
    if _CONFIG in names:
        if what := family(settings):
            return f"holds {what}; {SUPPORTED}"
        if not settings.get("model_type") and not _classes(settings) and "d_model" not in settings:
            return _no_model(names)
        if what := _quantised(settings, names):
            return f"holds LLaDA quantised {what}; take the model in bfloat16 or float32"
    if not readable:
        for pattern, what in _OTHER_WEIGHTS:
            if found := [name for name in names if re.fullmatch(pattern, name)]:
                return f"holds {what} ({_list(found)}), which are not read; {_TAKE}"
    if _CONFIG in names:
        return ""
    if weights := readable or [name for name in names if name.endswith(".safetensors")]:
        return (
            f"holds weights ({_list(weights)}) without the {_CONFIG} that describes them; copy it "
            "there from its source"
        )
    if found := [name for name in names if _TOKENIZER.fullmatch(name)]:
        return (
            f"holds a tokenizer ({_list(found)}) and no model; name the folder with {_CONFIG} and "
            "weights"
        )
    return ""


def _recognise_file(path: epath.Path) -> str:
    name = path.name
    if not path.exists():
        return ""
    for pattern, what in _OTHER_WEIGHTS:
        if re.fullmatch(pattern, name):
            return f"is a file of {what.removeprefix('an ').removeprefix('a ')}; {_TAKE}"
    if name.endswith((".safetensors", ".bin", ".pt", ".pth")):
        return f"is one file of weights; name the folder that holds it with its {_CONFIG}"
    return ""


def _pipeline(described: Mapping[str, Any]) -> str:
    name = described.get("_class_name", "of unknown class")
    return f"holds a model of diffusers ({name}), which makes no text; {SUPPORTED}"


def _adapter(described: Mapping[str, Any]) -> str:
    base = described.get("base_model_name_or_path") or "a model that it does not name"
    return (
        f"holds a PEFT adapter ({described.get('peft_type', 'of unknown type')}, for {base}), no "
        "whole model; merge it into its base with PEFT (merge_and_unload) and save that, or export "
        "the run it came from without --adapter"
    )


def _no_model(names: Collection[str]) -> str:
    tokenizer = [name for name in names if _TOKENIZER.fullmatch(name)]
    beside = f" beside a tokenizer ({_list(tokenizer)})" if tokenizer else ""
    return (
        f"holds a {_CONFIG}{beside} that describes no model (neither model_type nor architectures "
        f"in it); copy the model's own {_CONFIG} there"
    )


def _quantised(settings: Mapping[str, Any], names: Collection[str]) -> str:
    """How the values are packed, e.g. `by gptq to 4 bits`; "" where they are plain."""
    described = settings.get("quantization_config")
    if described is None and "quantize_config.json" in names:
        described = {"quant_method": "gptq"}
    if described is None and isinstance(settings.get("quantization"), dict):
        described = {"quant_method": "mlx"} | settings["quantization"]
    if described is None:
        return ""
    described = described if isinstance(described, dict) else {}
    bits = described.get("bits") or next(
        (n for n in (4, 8) if described.get(f"load_in_{n}bit")), None
    )
    how = f"by {described.get('quant_method', 'an unnamed method')}"
    return how + (f" to {bits} bits" if bits else "")


def _classes(settings: Mapping[str, Any]) -> list[str]:
    named = settings.get("architectures")
    return [str(name) for name in named] if isinstance(named, list) else []


def _read(path: epath.Path) -> dict[str, Any] | None:
    """A small JSON file; None where it is no JSON object."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _list(names: list[str]) -> str:
    shown = ", ".join(os.fspath(name) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# First bytes -> what the file is, and the remedy.
_UNPACK = "unpack it, and name the files of rows in it"
_PARQUET = "save it as Parquet or JSONL"
_MAGIC = (
    (b"\xfd7zXZ\x00", "compressed (xz)", "unpack it first, e.g. with unxz"),
    (b"PK\x03\x04", "a ZIP archive or a spreadsheet", "unpack it, or save the sheet as CSV"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"ARROW1", "an Arrow file", _PARQUET),
    (b"\xff\xff\xff\xff", "an Arrow stream", _PARQUET),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
    (b"{\x00", "UTF-16 text", "save it as UTF-8"),
    (b"\x00{", "UTF-16 text", "save it as UTF-8"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run git lfs pull"),
    (b"<!DOCTYPE", "a web page, not the file itself", "download the file that the page is about"),
    (b"<html", "a web page, not the file itself", "download the file that the page is about"),
)


class ForeignFormError(ConfigError):
    """A file of a form that is not ours: leaving a row out does not help."""


def check_form(line: bytes, name: str) -> None:
    """Refuses a file that no reader of rows can read.

    Args:
      line: Its first line that is not blank.
      name: Of the file.

    Raises:
      ForeignFormError: it has a form that is known, or is no text.
    """
    for magic, form, remedy in _MAGIC:
        if line.startswith(magic):
            raise ForeignFormError(f"{name} is {form}; {remedy}")
    if line[257:262] == b"ustar":
        raise ForeignFormError(f"{name} is a tar archive; {_UNPACK}")
    if line.startswith(b"\x80") or (b"\x00" in line and not line.startswith((b"{", b"["))):
        raise ForeignFormError(f"{name} is binary (a pickle, a database?), no text; {_PARQUET}")
    if line == b"{":
        raise ForeignFormError(
            f"{name} is JSON over several lines; write one object a line, or one array of them"
        )
