"""The adapters of a LoRA run as a folder of PEFT, which PyTorch users put on the published weights.

PEFT (huggingface.co/docs/peft, "PEFT checkpoint format") multiplies `x` by `lora_A [r, in]`, then
by `lora_B [out, r]`, and scales by `lora_alpha / r`: our `down` and `up`, transposed. A token's own
row is kept there as the whole new row (`trainable_token_indices`, PEFT 0.15 and later), not as a
difference.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from etils import epath

from jax_mdlm.config import Config, ConfigError
from jax_mdlm.containers import ParamRow
from jax_mdlm.conversion import published, shards
from jax_mdlm.conversion.beside import token_ids_of, write_beside
from jax_mdlm.conversion.boxes import FLOATS, count_not_finite
from jax_mdlm.conversion.exporting import Exported, new_folder
from jax_mdlm.conversion.reading import Meter, read_float32, stored_params
from jax_mdlm.conversion.source import HUB
from jax_mdlm.model import lora
from jax_mdlm.parameters import Base, has_adapters, open_base
from jax_mdlm.storage import reaching
from jax_mdlm.storage.arrays import StoredArray
from jax_mdlm.workdir import choose_step, load_config, open_existing

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."  # PeftModel, then the tuner, wrap the network
_TOKENIZER = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template")


def export_adapter(
    workdir: epath.Path,
    target: epath.Path,
    meter: Meter,
    *,
    dtype: str = "float32",
    step: int | None = None,
    base: str = "",
) -> Exported:
    """Writes a folder for `PeftModel.from_pretrained(published_model, folder)`.

    The first process writes; adapters are small.

    Args:
      workdir: Of a LoRA run.
      target: New folder, local, `gs://` or `s3://`.
      meter: Counts bytes written, and values that are not finite.
      dtype: `float32` or `bfloat16`.
      step: Which checkpoint; None: the newest.
      base: The published weights that it belongs on; empty: those that the run began from.

    Raises:
      ConfigError: not a LoRA run, no published weights below it, or the target is in use.
    """
    with reaching(workdir):
        config = load_config(workdir)
        published.check_published_positions(config.model, workdir)
        checkpoints = open_existing(workdir)
    try:
        # Find the adapters and what they belong on.
        step = choose_step(checkpoints, step)
        if not has_adapters(checkpoints, step):
            raise ConfigError(
                f"work directory {workdir} must hold adapters for --adapter, it was trained in "
                "full; export it without --adapter, or train with lora.rank above 0"
            )
        opened, about = open_base(workdir)
        opened.close()
        base = base or about.published
        if not base:
            raise ConfigError(
                f"an adapter needs published weights to stand on, {workdir} did not begin from "
                "any; name them with --base, or export the merged weights without --adapter"
            )
        # Read them, and the slack token's rows where they are not those of the base.
        arrays = checkpoints.arrays(step)
        has_rows = "adapters/wte/slack" in arrays or about.slack_row_set
        params = stored_params(workdir, checkpoints, step, config.model) if has_rows else {}
        tensors = list(_tensors(config, arrays, params, about.slack_id))
        shapes = [(name, values.shape) for name, values in tensors]
        shard = dataclasses.replace(shards.plan_shards(shapes, dtype, 2**62)[0], file=WEIGHTS)
        # Write the folder.
        with new_folder(target, workdir, shard.size) as folder:
            if jax.process_index() == 0:
                with (folder / WEIGHTS).open("wb") as file:
                    file.write(shard.header)
                    for name, values in tensors:
                        values = np.ascontiguousarray(values).astype(FLOATS[dtype])
                        file.write(values.reshape(-1).view(np.uint8).data)
                        meter.add(name, values.nbytes, count_not_finite(values))
                ids = token_ids_of(config, workdir)
                write_beside(config, workdir, ids, folder, lambda name: name.startswith(_TOKENIZER))
                settings = published.settings_text(_settings(config, about, base, has_rows))
                (folder / SETTINGS).write_text(settings)
    finally:
        checkpoints.close()
    return Exported(step, (WEIGHTS,), sum(values.nbytes for _, values in tensors))


def _tensors(
    config: Config,
    arrays: Mapping[str, StoredArray],
    params: Mapping[ParamRow, StoredArray],
    slack_id: int,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names as PEFT has them, and values, float32 [r, in] and [out, r]; layer by layer."""
    for layer in range(config.model.layers):
        for row in lora.target_rows(config.model, config.lora):
            name, path = _PREFIX + _module(row.torch_name, layer), "adapters/" + "/".join(row.path)
            at = slice(layer, layer + 1)
            yield f"{name}.lora_A.weight", read_float32(arrays[f"{path}/down"], at)[0].T
            yield f"{name}.lora_B.weight", read_float32(arrays[f"{path}/up"], at)[0].T
    token = slice(slack_id, slack_id + 1)
    for row, array in params.items():
        if "vocab" in row.axes:
            index = (token,) if row.axes[0] == "vocab" else (slice(0, config.model.embed), token)
            name = f"{_PREFIX}{_module(row.torch_name)}.token_adapter.trainable_tokens_delta"
            yield name, read_float32(array, *index).reshape(1, -1)


def _module(torch_name: str, layer: int = 0) -> str:
    return torch_name.format(layer=layer).removesuffix(".weight")


def _settings(config: Config, about: Base, base: str, has_rows: bool) -> dict[str, object]:
    """Fills `adapter_config.json`, PEFT's `LoraConfig`; what is left out has its defaults there."""
    name, _, revision = base.removeprefix(HUB).partition("@") if HUB in base else (base, "", "")
    alpha = about.scale * config.lora.rank
    tokens = [about.slack_id]
    return {
        "peft_type": "LORA",
        # A denoiser is none of PEFT's tasks; without one the network is called as it is.
        "task_type": None,
        "base_model_name_or_path": name,
        "revision": revision or None,
        "inference_mode": True,
        "r": config.lora.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "target_modules": _target_modules(config),
        "fan_in_fan_out": False,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "trainable_token_indices": (
            {"transformer.wte": tokens, "transformer.ff_out": tokens} if has_rows else None
        ),
    }


def _target_modules(config: Config) -> list[str]:
    """Lists names of modules; PEFT takes every module that ends so."""
    modules = []
    for row in lora.target_rows(config.model, config.lora):
        last = _module(row.torch_name).rpartition(".")[2]
        if last == "ff_out":  # the head is called so as well
            modules += [f"blocks.{layer}.ff_out" for layer in range(config.model.layers)]
        else:
            modules.append(last)
    return modules
