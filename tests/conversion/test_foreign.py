"""Folders of other models and other forms: each is refused by what it is, at every door, in a line.

`tests/data/families/*/config.json` have the fields and classes of the published models at small
sizes; values of published fields that stand here are those of the published folders.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

import jax_mdlm.evaluate
import jax_mdlm.sample
import jax_mdlm.train
from jax_mdlm import conversion, foreign
from jax_mdlm.config import ConfigError
from jax_mdlm.convert import main
from tests.conversion.folders import hashes, random_tensors, write_folder
from tests.conversion.refusals import command, the_error_of

FAMILIES = Path(__file__).parent.parent / "data" / "families"
LLADA = json.loads(
    (Path(__file__).parent.parent / "data" / "llada_random_mha" / "config.json").read_text()
)
VISION = {
    "architectures": ["LlavaLLaDAModelLM"],
    "mm_vision_tower": "siglip2",
    "mm_projector_type": "mlp2x_gelu",
}
SO_FAR = "supported so far are LLaDA's 8B and 1B layouts"


def other(kind: str, name: str, **settings: Any) -> dict[str, Any]:
    """A `config.json` in the field names of transformers."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 208}
    return {"architectures": [name], "model_type": kind, **sizes, **settings}


def family(name: str, **settings: Any) -> dict[str, Any]:
    return json.loads((FAMILIES / name / "config.json").read_text()) | settings


MOE = "LLaDA-MoE (architectures: LLaDAMoEModelLM, 8 experts), a mixture of experts"
# what it is -> (config.json, what everybody is told)
MODELS = {
    "LLaDA-MoE": (family("llada_moe"), MOE),
    "its other class": (
        family("llada_moe", architectures=["LLaDAMoEModel"], num_experts=64),
        "LLaDA-MoE (architectures: LLaDAMoEModel, 64 experts), a mixture of experts",
    ),
    "known by its experts alone": (
        LLADA | {"num_experts": 64},
        "LLaDA-MoE (architectures: LLaDAModelLM, 64 experts), a mixture of experts",
    ),
    "quantised as well": (family("llada_moe", quantization_config={"bits": 4}), MOE),
    "LLaDA2": (
        family("llada2_moe"),
        "LLaDA2 (architectures: LLaDA2MoeModelLM, 16 experts), a mixture of experts that decodes "
        "block by block",
    ),
    "LLaDA-V": (
        LLADA | VISION,
        "LLaDA-V (architectures: LlavaLLaDAModelLM), a model of images and text",
    ),
    "known by its images alone": (
        {key: value for key, value in LLADA.items() if key != "architectures"}
        | {"mm_vision_tower": "siglip2"},
        "LLaDA-V (model_type: llada), a model of images and text",
    ),
    "iLLaDA": (
        family("illada"),
        "iLLaDA (architectures: ILLaDAForCausalLM), a diffusion model with tied weights",
    ),
    "Dream": (
        family("dream"),
        "Dream (architectures: DreamModel), a diffusion model whose logits are shifted by one (so "
        "are Dream-Coder and DiffuCoder)",
    ),
    "Qwen3 as MDLM": (
        family("a2d_qwen3"),
        "A2D (architectures: A2DQwen3LMHeadModel), an autoregressive model turned into a diffusion "
        "model",
    ),
    "Llama": (
        other("llama", "LlamaForCausalLM"),
        "llama (architectures: LlamaForCausalLM), an autoregressive model",
    ),
    "Qwen3": (
        other("qwen3", "Qwen3ForCausalLM"),
        "qwen3 (architectures: Qwen3ForCausalLM), an autoregressive model",
    ),
    "Mixtral": (
        other("mixtral", "MixtralForCausalLM", num_local_experts=8),
        "mixtral (architectures: MixtralForCausalLM, 8 experts), an autoregressive model",
    ),
    "GPT-2": (
        other("gpt2", "GPT2LMHeadModel"),
        "gpt2 (architectures: GPT2LMHeadModel), an autoregressive model",
    ),
    "BERT": (other("bert", "BertForMaskedLM"), "bert (architectures: BertForMaskedLM), an encoder"),
    "Qwen-VL": (
        other("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", vision_config={"depth": 32}),
        "Qwen2_5_VLForConditionalGeneration (architectures: Qwen2_5_VLForConditionalGeneration), a "
        "model of images and text",
    ),
    "an unknown one": (other("sdar", "SDARModel"), "sdar (architectures: SDARModel)"),
    "without architectures": (
        {"model_type": "llama", "hidden_size": 64},
        "llama (model_type: llama), an autoregressive model",
    ),
    "another class of that type": (
        other("llada", "LLaDALike"),
        "a model (architectures: LLaDALike) that calls itself llada, with the fields of another "
        "class",
    ),
}


def refused(folder: Path) -> str:
    """The one text of all doors that take weights or a work directory; nothing is written."""
    path, workdir, before = str(folder), folder.parent / "run", hashes(folder)
    train = ["--config", "pronounce", "--workdir", str(workdir), f"--config.init.from={path}"]
    again = ["--config", "pronounce", "--workdir", path]
    texts = []
    for use in (
        lambda: main(["import", path, str(workdir)]),
        lambda: main(["inspect", path]),
        lambda: conversion.load(path),
        lambda: main(["export", path, str(workdir)]),
        lambda: jax_mdlm.sample.main(["--workdir", path, "hello"]),
        lambda: jax_mdlm.evaluate.main(["pronunciations", "--workdir", path]),
        lambda: jax_mdlm.train.main(train),
        # A folder without config.json may become a work directory.
        *([lambda: jax_mdlm.train.main(again)] if (folder / "config.json").exists() else []),
    ):
        with pytest.raises(ConfigError) as caught:
            use()
        texts.append(str(caught.value).removeprefix("init.from="))
    assert len(set(texts)) == 1, texts
    assert "\n" not in texts[0]
    assert not workdir.exists()
    assert hashes(folder) == before
    return texts[0]


def described(folder: Path, settings: Any, *names: str) -> Path:
    """A folder with `config.json` (None: without) and files of these names."""
    folder.mkdir()
    if settings is not None:
        (folder / "config.json").write_text(json.dumps(settings))
    for name in names:
        (folder / name).write_bytes(b"{}")
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_other_models_are_refused_by_what_they_are(tmp_path: Path, name: str) -> None:
    """With weights of their own beside them, which nobody opens."""
    settings, what = MODELS[name]
    folder = described(tmp_path / "model", settings)
    save_file(random_tensors(1, 8, 2, 2, 8, 8, "float32", 0), folder / "model.safetensors")
    assert refused(folder) == f"{folder} holds {what}; {SO_FAR}"


def test_llada_is_none_of_them() -> None:
    """Base, Instruct, 1.5 and the 1B model, whatever class a fine-tuned copy names."""
    for settings in (
        LLADA,
        LLADA | {"n_kv_heads": 4, "num_experts": None, "vision_config": None, "mm_hidden_size": 0},
        LLADA | {"architectures": ["LLaDASequenceModel"]},
        LLADA | {"architectures": None},
    ):
        assert foreign.family(settings) == ""


PEFT = {"peft_type": "LORA", "base_model_name_or_path": "GSAI-ML/LLaDA-8B-Base"}
MERGE = (
    "no whole model; merge it into its base with PEFT (merge_and_unload) and save that, or export "
    "the run it came from without --adapter"
)
TAKE = "which are not read; take the model's safetensors files in its published form"
# what it is -> (config.json, other files, what everybody is told)
FORMS: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "GPTQ": (
        LLADA | {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        ("model.safetensors",),
        "holds LLaDA quantised by gptq to 4 bits; take the model in bfloat16 or float32",
    ),
    "AWQ": (
        LLADA | {"quantization_config": {"quant_method": "awq", "bits": 4}},
        ("model.safetensors",),
        "holds LLaDA quantised by awq to 4 bits; take the model in bfloat16 or float32",
    ),
    "bitsandbytes": (
        LLADA | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        ("model.safetensors",),
        "holds LLaDA quantised by bitsandbytes to 8 bits; take the model in bfloat16 or float32",
    ),
    "nameless": (
        LLADA | {"quantization_config": "x"},
        ("model.safetensors",),
        "holds LLaDA quantised by an unnamed method; take the model in bfloat16 or float32",
    ),
    "MLX": (
        LLADA | {"quantization": {"group_size": 64, "bits": 4}},
        ("model.safetensors",),
        "holds LLaDA quantised by mlx to 4 bits; take the model in bfloat16 or float32",
    ),
    "AutoGPTQ": (
        LLADA,
        ("model.safetensors", "quantize_config.json"),
        "holds LLaDA quantised by gptq; take the model in bfloat16 or float32",
    ),
    "GGUF": (
        None,
        ("llada-Q4_K_M.gguf", "README.md"),
        f"holds GGUF weights, as llama.cpp quantises them (llada-Q4_K_M.gguf), {TAKE}",
    ),
    "GGUF and config.json": (
        LLADA,
        tuple(f"{number}.gguf" for number in range(5)),
        "holds GGUF weights, as llama.cpp quantises them (0.gguf, 1.gguf, 2.gguf and 2 more), "
        + TAKE,
    ),
    "Flax": (
        LLADA,
        ("flax_model.msgpack",),
        f"holds Flax weights of transformers (flax_model.msgpack), {TAKE}",
    ),
    "TensorFlow": (LLADA, ("tf_model.h5",), f"holds TensorFlow weights (tf_model.h5), {TAKE}"),
    "TensorFlow checkpoint": (
        None,
        ("model.ckpt.index", "model.ckpt.data-00000-of-00001"),
        f"holds TensorFlow weights (model.ckpt.index), {TAKE}",
    ),
    "training code": (
        None,
        ("consolidated.00.pth", "params.json"),
        f"holds weights in the layout of their training code (consolidated.00.pth), {TAKE}",
    ),
    "adapter": (None, ("adapter_model.safetensors", "tokenizer.json"), ""),
    "adapter beside its base's config": (LLADA, ("adapter_model.safetensors",), ""),
    "diffusers": (
        None,
        ("model_index.json",),
        f"holds a model of diffusers (of unknown class), which makes no text; {SO_FAR}",
    ),
    "part of diffusers": (
        {"_class_name": "UNet2DConditionModel"},
        ("diffusion_pytorch_model.safetensors",),
        f"holds a model of diffusers (UNet2DConditionModel), which makes no text; {SO_FAR}",
    ),
    "weights alone": (
        None,
        ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        "holds weights (model-00001-of-00002.safetensors, model-00002-of-00002.safetensors) "
        "without the config.json that describes them; copy it there from its source",
    ),
    "weights of another name": (
        None,
        ("weights.safetensors",),
        "holds weights (weights.safetensors) without the config.json that describes them; copy it "
        "there from its source",
    ),
    "tokenizer": (
        None,
        ("tokenizer.json", "tokenizer_config.json"),
        "holds a tokenizer (tokenizer.json, tokenizer_config.json) and no model; name the folder "
        "with config.json and weights",
    ),
    "tokenizer and a config.json of nothing": (
        {"transformers_version": "5"},
        ("tokenizer.json",),
        "holds a config.json beside a tokenizer (tokenizer.json) that describes no model (neither "
        "model_type nor architectures in it); copy the model's own config.json there",
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_other_forms_are_refused_by_what_they_are(tmp_path: Path, name: str) -> None:
    settings, names, text = FORMS[name]
    folder = described(tmp_path / "model", settings, *names)
    if "adapter" in name:
        (folder / "adapter_config.json").write_text(json.dumps(PEFT))
        text = f"holds a PEFT adapter (LORA, for GSAI-ML/LLaDA-8B-Base), {MERGE}"
    assert refused(folder) == f"{folder} {text}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "llada.gguf",
            "is a file of GGUF weights, as llama.cpp quantises them; take the model's safetensors "
            "files in its published form",
        ),
        (
            "model.safetensors",
            "is one file of weights; name the folder that holds it with its config.json",
        ),
    ],
)
def test_a_file_in_place_of_its_folder(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert refused(tmp_path / name) == f"{tmp_path / name} {text}"


def test_what_stands_beside_readable_weights_is_no_matter(tmp_path: Path) -> None:
    """Repositories hold their weights in several forms, and adapters that were merged."""
    write_folder(tmp_path / "in")
    for name in ("llada.gguf", "tf_model.h5", "adapter_config.json", "model.onnx"):
        (tmp_path / "in" / name).write_bytes(b"{}")
    main(["import", str(tmp_path / "in"), str(tmp_path / "run")])
    assert conversion.load(tmp_path / "run")[1] == conversion.load(tmp_path / "in")[1]


def test_the_command_line_shows_one_line(tmp_path: Path) -> None:
    folder = described(tmp_path / "model", family("llada_moe"))
    done = command("import", folder, tmp_path / "run")
    assert the_error_of(done) == f"{folder} holds {MOE}; {SO_FAR}"
