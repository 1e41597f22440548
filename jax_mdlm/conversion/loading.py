"""Parameters from whatever holds them: published weights, work directories, Orbax trees, `.npz`."""

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from etils import epath
from jax.sharding import Sharding, SingleDeviceSharding

from jax_mdlm.config import ConfigError, ModelConfig
from jax_mdlm.containers import ParamRow, Params
from jax_mdlm.conversion.reading import read_params
from jax_mdlm.conversion.source import is_published, open_source
from jax_mdlm.foreign import check_folder
from jax_mdlm.model import memory, table
from jax_mdlm.sharding import Layout
from jax_mdlm.storage import is_tree, place, reaching, restore_tree, tree_shapes
from jax_mdlm.workdir import check_finished, load_config, restore_params


def load(
    path: epath.PathLike, *, layout: Layout | None = None, dtype: str | None = None
) -> tuple[Params, ModelConfig]:
    """Loads a model in one line: `params, config = jax_mdlm.conversion.load(path)`.

    Args:
      path: A folder of published weights (local, `gs://`, `s3://`, or `hf://ORG/NAME`), a work
        directory (its newest checkpoint), an Orbax folder or an `.npz` file of parameters. The
        last two have no config: sizes are read off the shapes, the rest is LLaDA's.
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
    if folder.suffix == ".npz" and folder.exists():
        return _load_npz(folder, layout, dtype)
    if folder.is_dir() and is_tree(folder):
        stored = {name: shape for name, (shape, _) in tree_shapes(folder).items()}
        kinds = {kind for _, kind in tree_shapes(folder).values()}
        prefix = "params/" if "params/wte" in stored else ""
        config = _with_dtype(_from_shapes(stored, prefix, kinds, path), dtype)
        _check_memory(path, config, layout)
        abstract = _abstract(config, layout)
        tree = restore_tree(folder, {"params": abstract} if prefix else abstract)
        return tree["params"] if prefix else tree, config
    check_folder(folder, path)
    raise ConfigError(
        f"{path} must be a folder of published weights, a work directory, an Orbax folder or an "
        ".npz file, nothing of that kind is there; correct the path"
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
        for row in table.ROWS
    }
    return table.tree(leaves)


def _with_dtype(config: ModelConfig, dtype: str | None) -> ModelConfig:
    if dtype is None:
        return config
    return dataclasses.replace(config, param_dtype=dtype, compute_dtype=dtype)


def _load_npz(
    path: epath.Path, layout: Layout | None, dtype: str | None
) -> tuple[Params, ModelConfig]:
    try:
        with path.open("rb") as file, np.load(file) as archive:
            arrays = {name: _as_float(archive[name]) for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        text = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{path} must be a whole .npz file of arrays, but {text}; save it again"
        ) from error
    prefix = "params/" if "params/wte" in arrays else ""
    kinds = {array.dtype.name for array in arrays.values()}
    shapes = {name: array.shape for name, array in arrays.items()}
    config = _with_dtype(_from_shapes(shapes, prefix, kinds, str(path)), dtype)
    place = _placer(layout)
    leaves = {
        row.path: jax.device_put(
            arrays[prefix + "/".join(row.path)].astype(config.param_dtype), place(row)
        )
        for row in table.ROWS
    }
    return table.tree(leaves), config


def _as_float(array: np.ndarray) -> np.ndarray:
    # NumPy stores bfloat16 as two bytes without a name.
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


def _from_shapes(
    shapes: Mapping[str, tuple[int, ...]], prefix: str, kinds: set[str], path: str
) -> ModelConfig:
    """The config of parameters that have none: sizes by their shapes, LLaDA's otherwise."""
    sizes: dict[str, int] = {}
    problems = []
    for row in table.ROWS:
        name = prefix + "/".join(row.path)
        shape = shapes.get(name)
        if shape is None or len(shape) != len(row.axes):
            problems.append(f"{name} is {'missing' if shape is None else list(shape)}")
            continue
        for axis, size in zip(row.axes, shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                problems.append(f"{name} has {size} {axis}, another array {sizes[axis]}")
    if problems:
        shown = "; ".join(problems[:4]) + (
            f"; and {len(problems) - 4} more" if problems[4:] else ""
        )
        raise ConfigError(
            f"{path} must hold the parameters of this model (paths as in jax_mdlm.model.table), "
            f"but {shown}"
        )
    dtype = "bfloat16" if kinds == {"bfloat16"} else "float32"
    config = ModelConfig(vocab_size=sizes.pop("vocab"), param_dtype=dtype, compute_dtype=dtype)
    return dataclasses.replace(config, **sizes)
