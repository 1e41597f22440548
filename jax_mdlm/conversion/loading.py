"""Parameters from whatever holds them: published weights and work directories."""

import dataclasses
import os
from typing import Any

import jax
from etils import epath
from jax.sharding import Sharding, SingleDeviceSharding

from jax_mdlm.config import ConfigError, ModelConfig
from jax_mdlm.containers import ParamRow, Params
from jax_mdlm.conversion.reading import read_params
from jax_mdlm.conversion.source import is_published, open_source
from jax_mdlm.foreign import check_folder
from jax_mdlm.model import memory, table
from jax_mdlm.parameters import restore_params
from jax_mdlm.sharding import Layout
from jax_mdlm.storage import place, reaching
from jax_mdlm.workdir import check_finished, load_config


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
        if not is_published(path):
            return _load_other(path, layout, dtype)
        source = open_source(path)
        config = _with_dtype(source.config, dtype)
        _check_memory(path, config, layout)
        return read_params(source, _placer(layout), config.param_dtype), config


def _load_other(path: str, layout: Layout | None, dtype: str | None) -> tuple[Params, ModelConfig]:
    folder = place(path)
    check_finished(folder)
    if (folder / "config.json").exists():
        config = _with_dtype(load_config(folder).model, dtype)
        _check_memory(path, config, layout)
        return restore_params(folder, _abstract(config, layout))[1], config
    check_folder(folder, path)
    raise ConfigError(
        f"{path} must be a folder of published weights or a work directory, nothing of that kind "
        "is there; correct the path"
    )


def _check_memory(path: str, config: ModelConfig, layout: Layout | None) -> None:
    """Raises ConfigError where the kernel would end the process while it reads."""
    place = _placer(layout)
    others = {}
    if config.param_dtype == "float32":
        others["dtype='bfloat16'"] = memory.to_read(config, "bfloat16", place)
    needed = memory.to_read(config, config.param_dtype, place)
    devices = 1 if layout is None else layout.mesh.size
    memory.check_fits(f"{path} in {config.param_dtype}", needed, others, devices)


def _placer(layout: Layout | None) -> Any:
    one = SingleDeviceSharding(jax.local_devices()[0])

    def place(row: ParamRow) -> Sharding:
        return one if layout is None else layout.sharding(row.axes)

    return place


def _abstract(config: ModelConfig, layout: Layout | None) -> Params:
    place = _placer(layout)
    leaves = {
        row.path: jax.ShapeDtypeStruct(
            table.shape(row, config), jax.numpy.dtype(config.param_dtype), sharding=place(row)
        )
        for row in table.rows(config)
    }
    return table.tree(leaves)


def _with_dtype(config: ModelConfig, dtype: str | None) -> ModelConfig:
    if dtype is None:
        return config
    return dataclasses.replace(config, param_dtype=dtype, compute_dtype=dtype)
