"""Published weights and work directories from Python: what is in them, and their parameters."""

import collections
import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Sharding, SingleDeviceSharding

from jax_mdlm.config import Config, ConfigError, ModelConfig
from jax_mdlm.containers import ParamRow, Params
from jax_mdlm.conversion import published, shards
from jax_mdlm.conversion.beside import token_ids_of
from jax_mdlm.conversion.reading import read_params
from jax_mdlm.conversion.source import Source, is_published, open_source
from jax_mdlm.foreign import check_folder
from jax_mdlm.model import memory, table
from jax_mdlm.sharding import Layout
from jax_mdlm.storage import given_path, reaching
from jax_mdlm.workdir import check_finished, load_config, open_base, open_existing, restore_params

_SIZES = ("vocab_size", "embed", "layers", "heads", "kv_heads", "head_dim", "mlp", "max_length")


def load(
    path: epath.PathLike, *, layout: Layout | None = None, dtype: str | None = None
) -> tuple[Params, ModelConfig]:
    """Loads a model in one line: `params, config = jax_mdlm.conversion.load(path)`.

    Args:
      path: A folder of published weights (local, `gs://`, `s3://`, or `hf://ORG/NAME`), or a
        work directory (its newest checkpoint).
      layout: Where the arrays go; None: one device.
      dtype: `float32` or `bfloat16` of parameters and computation; None: as stored.

    Returns:
      Nested dict as from `model.init`, and the config that `model.apply` needs.

    Raises:
      ConfigError: nothing of that kind is there, it does not fit together, or memory is short.
    """
    if dtype not in (None, "float32", "bfloat16"):
        raise ConfigError(f"dtype must be float32 or bfloat16, got {dtype!r}")
    path = os.fspath(path)
    with reaching(path):
        source = open_source(path) if is_published(path) else None
        config = source.config if source else _open_workdir(path)[1].model
        if dtype is not None:
            config = dataclasses.replace(config, param_dtype=dtype, compute_dtype=dtype)
        one = SingleDeviceSharding(jax.local_devices()[0])

        def place(row: ParamRow) -> Sharding:
            return one if layout is None else layout.sharding(row.axes)

        _check_memory(path, config, place, 1 if layout is None else layout.mesh.size)
        if source:
            return read_params(source, place, config.param_dtype), config
        kind = np.dtype(config.param_dtype)
        leaves = {
            row.path: jax.ShapeDtypeStruct(table.shape(row, config), kind, sharding=place(row))
            for row in table.rows(config)
        }
        return restore_params(given_path(path), table.tree(leaves))[1], config


def _open_workdir(path: str) -> tuple[epath.Path, Config]:
    folder = given_path(path)
    check_finished(folder)
    if (folder / "config.json").exists():
        return folder, load_config(folder)
    check_folder(folder, path)
    raise ConfigError(
        f"{path} must be a folder of published weights or a work directory, nothing of that kind "
        "is there; correct the path"
    )


def _check_memory(path: str, config: ModelConfig, place: memory.Place, devices: int) -> None:
    """Raises ConfigError where the kernel would end the process while it reads."""
    others = {}
    if config.param_dtype == "float32":
        others["dtype='bfloat16'"] = memory.to_read(config, "bfloat16", place)
    needed = memory.to_read(config, config.param_dtype, place)
    memory.check_fits(f"{path} in {config.param_dtype}", needed, others, devices)


def inspect(path: epath.PathLike) -> dict[str, Any]:
    """Describes a folder of published weights or a work directory; reads headers only.

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
        if is_published(path):
            source = open_source(path)
            ids = published.token_ids(source.settings, str(source.folder))
            found, config = _inspect_source(source), source.config
        else:
            folder, run = _open_workdir(path)
            found, config = _inspect_workdir(folder), run.model
            ids = token_ids_of(run, folder)
    sizes = {name: getattr(config, name) for name in _SIZES}
    return {**found, "model": sizes, "ids": dataclasses.asdict(ids)}


def _inspect_source(source: Source) -> dict[str, Any]:
    stored = {
        name: (tensor.shape, shards.DTYPES[tensor.dtype].name)
        for name, tensor in source.tensors.items()
    }
    files = sorted({tensor.file for tensor in source.tensors.values()})
    return {"format": "published weights", "files": files, **_totals(stored)}


def _inspect_workdir(folder: epath.Path) -> dict[str, Any]:
    checkpoints = open_existing(folder)
    try:
        steps = checkpoints.steps()
        stored = checkpoints.shapes(steps[-1])
        imported = bool(checkpoints.record(steps[-1]).get("imported"))
    finally:
        checkpoints.close()
    params, adapters = _named(stored, "params/"), _named(stored, "adapters/")
    others = len(stored) - len(params) - len(adapters)
    if adapters:
        base, _ = open_base(folder)
        try:
            params = _named(base.shapes(0), "params/")
        finally:
            base.close()
    kind = "imported" if imported else f"of a {'LoRA' if adapters else 'training'} run"
    return {
        "format": f"work directory, {kind}",
        "steps": steps,
        **_totals(params),
        **({"adapters": _totals(adapters)} if adapters else {}),
        "optimizer_arrays": others,
    }


def _named(stored: Mapping[str, Any], beginning: str) -> dict[str, Any]:
    return {name: value for name, value in stored.items() if name.startswith(beginning)}


def _totals(stored: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, Any]:
    scalars = [(math.prod(shape), dtype) for shape, dtype in stored.values()]
    return {
        "tensors": len(stored),
        "parameters": sum(count for count, _ in scalars),
        "bytes": sum(count * jax.numpy.dtype(dtype).itemsize for count, dtype in scalars),
        "dtypes": dict(sorted(collections.Counter(dtype for _, dtype in scalars).items())),
    }
