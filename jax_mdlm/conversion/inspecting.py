"""What is in a path: format, parameters, dtypes, special ids, steps. Reads headers only."""

import collections
import math
import os
from typing import Any

from etils import epath

from jax_mdlm.config import Collapse, ConfigError, ModelConfig
from jax_mdlm.conversion import published, shards
from jax_mdlm.conversion.source import Source, is_published, open_source
from jax_mdlm.conversion.tokens import token_ids_of
from jax_mdlm.foreign import check_folder
from jax_mdlm.parameters import open_base
from jax_mdlm.storage import place, reaching
from jax_mdlm.workdir import check_finished, load_config, open_existing


def inspect(path: epath.PathLike) -> dict[str, Any]:
    """Describes a folder of published weights or a work directory.

    Args:
      path: As for `load`.

    Returns:
      A JSON object: `format`, `parameters`, `bytes`, `dtypes` (name -> number of tensors), `model`
      (sizes), `ids`, and `steps` for a work directory.

    Raises:
      ConfigError: nothing of that kind is there, or it is damaged.
    """
    path = os.fspath(path)
    with reaching(path):
        return _published(open_source(path)) if is_published(path) else _other(path)


def _other(path: str) -> dict[str, Any]:
    folder = place(path)
    check_finished(folder)
    if (folder / "config.json").exists():
        return _work_directory(folder)
    check_folder(folder, path)
    raise ConfigError(
        f"{path} must be a folder of published weights or a work directory, nothing of that kind "
        "is there; correct the path"
    )


def _published(source: Source) -> dict[str, Any]:
    kinds = collections.Counter(tensor.dtype for tensor in source.tensors.values())
    ids = published.token_ids(source.settings, str(source.folder))
    return {
        "format": "published weights",
        "files": sorted({tensor.file for tensor in source.tensors.values()}),
        "tensors": len(source.tensors),
        "parameters": sum(math.prod(tensor.shape) for tensor in source.tensors.values()),
        "bytes": source.num_bytes,
        "dtypes": {shards.DTYPES[kind].name: count for kind, count in sorted(kinds.items())},
        "model": _sizes(source.config),
        "ids": _ids(ids),
    }


def _work_directory(folder: epath.Path) -> dict[str, Any]:
    config = load_config(folder)
    checkpoints = open_existing(folder)
    try:
        steps = checkpoints.steps()
        stored = checkpoints.shapes(steps[-1])
        adapters = {name: value for name, value in stored.items() if name.startswith("adapters/")}
        frozen = _frozen(folder) if adapters else {}
        imported = bool(checkpoints.record(steps[-1]).get("imported"))
    finally:
        checkpoints.close()
    params = {
        name: value for name, value in (stored | frozen).items() if name.startswith("params/")
    }
    others = len(stored) - len(adapters or params)
    kind = "LoRA" if adapters else "training"
    return {
        "format": "work directory" + (", imported" if imported else f", of a {kind} run"),
        "steps": steps,
        **_arrays(params),
        **({"adapters": _arrays(adapters)} if adapters else {}),
        "optimizer_arrays": others,
        "model": _sizes(config.model),
        "ids": _ids(token_ids_of(config, folder)),
    }


def _frozen(folder: epath.Path) -> dict[str, tuple[tuple[int, ...], str]]:
    base, _ = open_base(folder)
    try:
        return base.shapes(0)
    finally:
        base.close()


def _arrays(stored: dict[str, tuple[tuple[int, ...], str]]) -> dict[str, Any]:
    kinds = collections.Counter(dtype for _, dtype in stored.values())
    itemsizes = {"bfloat16": 2, "float16": 2, "float32": 4, "int32": 4, "uint32": 4}
    scalars = {name: math.prod(shape) for name, (shape, _) in stored.items()}
    return {
        "tensors": len(stored),
        "parameters": sum(scalars.values()),
        "bytes": sum(scalars[name] * itemsizes.get(stored[name][1], 8) for name in stored),
        "dtypes": dict(sorted(kinds.items())),
    }


def _sizes(config: ModelConfig) -> dict[str, Any]:
    names = ("vocab_size", "embed", "layers", "heads", "kv_heads", "head_dim", "mlp", "max_length")
    return {name: getattr(config, name) for name in names}


def _ids(ids: published.TokenIds) -> dict[str, int | Collapse | None]:
    return {
        "mask": ids.mask,
        "eos": ids.eos,
        "pad": ids.pad,
        "slack": ids.slack,
        "collapse": ids.collapse,
    }
