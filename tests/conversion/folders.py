"""Folders as they are published: random weights in LLaDA's layout, small, written from its facts.

The names and shapes stand here once more, and the files are written by the `safetensors` package:
nothing of `jax_mdlm.conversion` or its table is used, so that both can be held against this.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

GOLDEN_CONFIG = Path(__file__).parent.parent / "data" / "llada_random_mha" / "config.json"
INDEX = "model.safetensors.index.json"
DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
# The last ids of the vocabulary, as in LLaDA's tokenizer; the reserved one is free for slack.
SPECIAL = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|reserved_token_0|>",
    "<|mdm_mask|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
# Files beside the weights that must come back as they were; the strange bytes are meant.
BESIDE = {
    "generation_config.json": b'{"eos_token_id":   7}',
    "modeling_llada.py": b"# code of PyTorch users\r\nraise SystemExit('never run by us')\n",
    "configuration_llada.py": b"# another\n",
    "LICENSE": b"MIT, \xc3\xa9\n",
}


def write_folder(
    path: Path,
    *,
    layers: int = 2,
    embed: int = 32,
    heads: int = 4,
    kv_heads: int = 4,
    mlp: int = 48,
    vocab: int = 64,
    dtype: str = "float32",
    shards: int = 1,
    seed: int = 0,
    **settings: Any,
) -> dict[str, np.ndarray]:
    """Writes a folder that `import` takes: weights, `config.json`, tokenizer, files beside.

    Args:
      path: New folder; its parents are made.
      layers: Blocks.
      embed: Width; divisible by `heads`, into an even head size.
      heads: Query heads.
      kv_heads: Key and value heads; divides `heads`.
      mlp: Hidden width of the gated MLP.
      vocab: Rows of the embedding; more than the special tokens.
      dtype: `float32`, `bfloat16`, `float16`, or `mixed`: these three in turn, tensor by tensor.
      shards: 1: `model.safetensors`; more: that many files, tensors dealt out in turn, an index.
      seed: Of the values.
      **settings: Keys of `config.json` that are added or replaced.

    Returns:
      The tensors by published name, `[out, in]`, in their stored dtype; norms lie around 1.
    """
    assert embed % heads == 0
    assert (embed // heads) % 2 == 0
    tensors = random_tensors(layers, embed, heads, kv_heads, mlp, vocab, dtype, seed)
    path.mkdir(parents=True)
    write_weights(path, tensors, shards)
    described = json.loads(GOLDEN_CONFIG.read_text()) | {
        "n_layers": layers,
        "d_model": embed,
        "n_heads": heads,
        "n_kv_heads": kv_heads,
        "mlp_hidden_size": mlp,
        "vocab_size": vocab,
        "embedding_size": vocab,
        "max_sequence_length": 128,
        "mask_token_id": _special_id("<|mdm_mask|>", vocab),
        "eos_token_id": _special_id("<|endoftext|>", vocab),
        "pad_token_id": _special_id("<|endoftext|>", vocab),
        "torch_dtype": "float32" if dtype == "mixed" else dtype,
        "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"},
    }
    (path / "config.json").write_text(json.dumps(described | settings, indent=1))
    for name, content in BESIDE.items():
        (path / name).write_bytes(content)
    _write_tokenizer(path, vocab)
    return tensors


def random_tensors(
    layers: int, embed: int, heads: int, kv_heads: int, mlp: int, vocab: int, dtype: str, seed: int
) -> dict[str, np.ndarray]:
    """The tensors of a model by published name; see `write_folder`."""
    narrow = embed // heads * kv_heads
    shapes: dict[str, tuple[int, ...]] = {"model.transformer.wte.weight": (vocab, embed)}
    for layer in range(layers):
        block = {
            "q_proj": (embed, embed),
            "k_proj": (narrow, embed),
            "v_proj": (narrow, embed),
            "attn_out": (embed, embed),
            "ff_proj": (mlp, embed),
            "up_proj": (mlp, embed),
            "ff_out": (embed, mlp),
            "attn_norm": (embed,),
            "ff_norm": (embed,),
        }
        for name, shape in block.items():
            shapes[f"model.transformer.blocks.{layer}.{name}.weight"] = shape
    shapes["model.transformer.ln_f.weight"] = (embed,)
    shapes["model.transformer.ff_out.weight"] = (vocab, embed)
    rng = np.random.default_rng(seed)
    kinds = list(DTYPES.values()) if dtype == "mixed" else [DTYPES[dtype]]
    tensors = {}
    for number, (name, shape) in enumerate(shapes.items()):
        values = rng.standard_normal(shape, np.float32) * np.float32(0.1)
        values += np.float32(len(shape) == 1)
        tensors[name] = values.astype(kinds[number % len(kinds)])
    return tensors


def write_weights(path: Path, tensors: dict[str, np.ndarray], shards: int = 1) -> None:
    """Writes tensors into one file, or into several with an index; older ones are removed."""
    for old in [*path.glob("*.safetensors"), *path.glob(INDEX)]:
        old.unlink()
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(tensors, path / "model.safetensors", metadata)
        return
    where = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[number::shards]}
        save_file(part, path / file, metadata)
        where |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (path / INDEX).write_text(json.dumps(index, indent=2))


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder by name, through the `safetensors` package."""
    found: dict[str, np.ndarray] = {}
    for file in sorted(path.glob("*.safetensors")):
        part = load_file(file)
        assert not part.keys() & found.keys(), f"{file.name} repeats tensors"
        found |= part
    return found


def hashes(path: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path; {} where there is no folder."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def write_rows(path: Path) -> None:
    """80 rows in words that the folder's tokenizer knows: three of them backwards, with repeats."""
    triples = [(a, b, c) for a in range(1, 5) for b in range(5) for c in (1, 1, 2, 3)]
    rows = [
        {"prompt": " ".join(f"w{i}" for i in row), "response": " ".join(f"w{i}" for i in row[::-1])}
        for row in triples
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _special_id(token: str, vocab: int) -> int:
    return vocab - len(SPECIAL) + SPECIAL.index(token)


def _write_tokenizer(path: Path, vocab: int) -> None:
    """A tokenizer of words `w0 w1 ...`, real enough to be loaded; special tokens come last."""
    words = {f"w{index}": index for index in range(vocab - len(SPECIAL))}
    added = [
        {
            "id": _special_id(token, vocab),
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": token != "<|reserved_token_0|>",
        }
        for token in SPECIAL
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "added_tokens_decoder": {
            str(entry["id"]): dict(list(entry.items())[1:]) for entry in added
        },
    }
    (path / "tokenizer_config.json").write_text(json.dumps(described, indent=1))
    marks = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (path / "special_tokens_map.json").write_text(json.dumps(marks))
