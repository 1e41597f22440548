"""Parts of a LoRA run's work directory and of PEFT folders, put together by their definition."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from jax_mdlm.containers import Params
from jax_mdlm.model import lora
from jax_mdlm.model.quantized import Quantized
from jax_mdlm.storage import open_checkpoints
from tests.conversion import folders

SIZES = {"layers": 2, "embed": 16, "heads": 4, "kv_heads": 2, "mlp": 24, "vocab": 64}
SLACK = 59  # <|reserved_token_0|>, as `folders` numbers it
WTE, HEAD = "model.transformer.wte.weight", "model.transformer.ff_out.weight"
PEFT = "base_model.model."
ROWS = ".token_adapter.trainable_tokens_delta"


def read(folder: Path, step: int, item: str) -> Params:
    """Arrays of a checkpoint whose names begin so, nested."""
    checkpoints = open_checkpoints(folder)
    names = [name for name in checkpoints.shapes(step) if name.startswith(item)]
    tree: Params = {}
    for name, array in checkpoints.arrays(step).items():
        if name in names:
            values = np.empty(array.shape, array.dtype)
            array.read(tuple(slice(0, size) for size in array.shape), values)
            place, *rest = tree, *name.split("/")[1:]
            for key in rest[:-1]:
                place = place.setdefault(key, {})
            place[rest[-1]] = jnp.asarray(values)
    checkpoints.close()
    return tree


def unmerged(run: Path) -> Params:
    """Base and adapters as they lie on disk, joined for the network."""

    def is_quantized(node: object) -> bool:
        return isinstance(node, dict) and set(node) == {"values", "scale"}

    frozen = jax.tree.map(
        lambda node: Quantized(**node) if is_quantized(node) else node,
        read(run / "base", 0, "params/"),
        is_leaf=is_quantized,
    )
    return lora.join(frozen, read(run / "checkpoints", 3, "adapters/"), scale=2.0, slack_id=SLACK)


def tokens() -> np.ndarray:
    drawn = np.random.default_rng(0).integers(0, 64, (3, 20))
    drawn[:, 4] = SLACK
    return drawn


def by_hand(source: Path, adapter: Path) -> dict[str, np.ndarray]:
    """PEFT's definition: W + alpha / r B A; a trained token's row is replaced."""
    settings = json.loads((adapter / "adapter_config.json").read_text())
    tensors = {name: x.astype(np.float32) for name, x in folders.read_weights(source).items()}
    given = load_file(adapter / "adapter_model.safetensors")
    for name in [name for name in given if name.endswith(".lora_A.weight")]:
        module = name.removesuffix(".lora_A.weight")
        scale = settings["lora_alpha"] / settings["r"]
        change = scale * given[f"{module}.lora_B.weight"] @ given[name]
        tensors[module.removeprefix(PEFT) + ".weight"] += change
    for name in [name for name in given if name.endswith(ROWS)]:
        module = name.removeprefix(PEFT).removesuffix(ROWS)
        listed = settings["trainable_token_indices"]
        (indices,) = [ids for key, ids in listed.items() if module.endswith(key)]
        tensors[module + ".weight"][indices] = given[name]
    return tensors
