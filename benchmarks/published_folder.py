"""Folders of published form with random weights, of any size, for the benchmarks that read them.

Values come from one pool of normal bfloat16 or float32 values that is written again and again: a
file is written as fast as the disk takes it, and a folder of 16 GB needs 50 MB of memory. The pool
has a prime number of values, so that no two rows of a matrix are alike.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from jax_mdlm.config import ModelConfig
from jax_mdlm.conversion import published, shards
from jax_mdlm.conversion.boxes import FLOATS, BothLayouts
from jax_mdlm.conversion.shards import INDEX
from jax_mdlm.conversion.source import CONFIG
from jax_mdlm.data import special
from jax_mdlm.model import table

_POOL = 8_388_593  # a prime
_STD = 0.02  # of matrices and embedding; norms lie around 1 by as much
_MOST_SHARD = 5 * 10**9  # bytes; the default of Hugging Face
_ANY_IDS = published.TokenIds(mask=1, eos=2, pad=2)  # of a folder without a tokenizer

_FIRST_SPECIAL = 126080
_BYTES = 256
# Strings that LLaDA-Instruct's tokenizer gives the ids from 126080 to 126348.
_SPECIAL = (
    special.START,
    special.EOS,
    "[CLS]",
    "[gMASK]",
    *(f"<|reserved_token_{number}|>" for number in range(252)),
    special.MASK,
    *(f"<|reserved_token_{number}|>" for number in range(253, 262)),
    special.HEADER_START,
    special.HEADER_END,
    special.TERMINATOR,
)
_TEMPLATE = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)


def llada_config(layers: int) -> ModelConfig:
    """Gives LLaDA-8B's network with so many layers; 32 are the whole of it."""
    return ModelConfig(
        vocab_size=126464,
        embed=4096,
        layers=layers,
        heads=32,
        kv_heads=32,
        head_dim=128,
        mlp=12288,
        max_length=4096,
        rope_theta=500000.0,
        norm_eps=1e-5,
        param_dtype="bfloat16",
    )


def num_bytes(config: ModelConfig) -> int:
    """Counts the bytes of all tensors; 16,031,162,368 for LLaDA-8B in bfloat16."""
    return table.num_parameters(config) * FLOATS[config.param_dtype].itemsize


def write_llada(folder: Path, config: ModelConfig) -> None:
    """Writes what `jax_mdlm.load` opens and answers with: tokenizer, weights in shards, settings.

    Args:
      folder: New or empty.
      config: As from `llada_config`.
    """
    ids = published.TokenIds(
        mask=_id_of(special.MASK), eos=_id_of(special.EOS), pad=_id_of(special.EOS)
    )
    shard_bytes = min(_MOST_SHARD, num_bytes(config) // 3)  # a small one has several, too
    write_tokenizer(folder)
    write_random_weights(folder, config, shard_bytes, ids)


def write_random_weights(
    folder: Path,
    config: ModelConfig,
    shard_bytes: int,
    ids: published.TokenIds = _ANY_IDS,
) -> int:
    """Writes weights and `config.json`, the latter at last; returns the bytes of the weights.

    Args:
      folder: Without weights.
      config: Layout; `param_dtype` is the dtype of the tensors.
      shard_bytes: Most bytes of tensors in a file.
      ids: What `config.json` says of special tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _tensors(config)
    shapes = dict(tensors)
    pool = _STD * np.random.default_rng(0).standard_normal(_POOL, np.float32)
    matrices, norms = (part.astype(FLOATS[config.param_dtype]) for part in (pool, 1 + pool))
    place = 0
    plan = shards.plan_shards(tensors, config.param_dtype, shard_bytes)
    for shard in plan:
        with open(folder / shard.file, "wb") as file:
            file.write(shard.header)
            for name in shard.offsets:
                values = norms if len(shapes[name]) == 1 else matrices
                left = int(np.prod(shapes[name]))
                while left:
                    part = values[place : place + left]
                    file.write(part.view(np.uint8).data)
                    left -= part.size
                    place = (place + part.size) % _POOL
    if len(plan) > 1:
        (folder / INDEX).write_text(shards.index_of(plan))
    settings = published.published_settings(config, ids, config.param_dtype, None)
    (folder / CONFIG).write_text(published.settings_text(settings))
    return num_bytes(config)


def write_tokenizer(folder: Path) -> None:
    """Writes a tokenizer with LLaDA's special tokens at LLaDA's ids.

    Text is written byte by byte. The ids between the bytes and the special tokens are invented
    words, which no text is encoded to and which an answer of random weights consists of.

    Args:
      folder: Is made where there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    syllables = ["".join(pair) for pair in itertools.product("bcdfghjklmnprstvwxz", "aeiou")]
    words = (f"Ġ{''.join(part)}" for part in itertools.product(syllables, repeat=3))
    strings = [*letters, *itertools.islice(words, _FIRST_SPECIAL - _BYTES)]
    vocabulary = {string: index for index, string in enumerate(strings)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(_SPECIAL))
    backend.save(str(folder / "tokenizer.json"))
    described: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": special.START,
        "eos_token": special.EOS,
        "pad_token": special.EOS,
        "chat_template": _TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n")


def _tensors(config: ModelConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Lists published names and shapes in the order of a published model, layer by layer."""
    rows = [BothLayouts(row, config) for row in table.rows(config)]
    found = []
    for _, group in itertools.groupby(rows, lambda row: row.stacked):
        part = list(group)
        for names in zip(*(row.torch_names for row in part), strict=True):
            shapes = (row.torch_shape for row in part)
            found += list(zip(names, shapes, strict=True))
    return found


def _id_of(token: str) -> int:
    return _FIRST_SPECIAL + _SPECIAL.index(token)
