"""A folder of published weights, opened: settings, tensors, and whether they fit.

Local folders, `gs://` and `s3://` folders, and hub repositories (`hf://ORG/NAME`, only when asked
for by that prefix). Nothing but names, shapes and headers is read here.
"""

import dataclasses
import difflib
import functools
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from jax_mdlm.config import Config, ConfigError, ModelConfig
from jax_mdlm.conversion import pickles, published, shards
from jax_mdlm.conversion.beside import KEPT_ENDINGS, KEPT_NAMES
from jax_mdlm.conversion.boxes import BothLayouts
from jax_mdlm.conversion.shards import INDEX, SINGLE, Tensor
from jax_mdlm.foreign import check_folder
from jax_mdlm.model import table
from jax_mdlm.storage import fetch_repository, given_path, reaching

HUB = "hf://"
CONFIG = "config.json"


@dataclasses.dataclass(frozen=True)
class Source:
    """A checked folder of published weights.

    Attributes:
      folder: Where it is (a hub repository: its local copy).
      settings: Its `config.json`.
      config: The network; `param_dtype` holds every stored value exactly: bfloat16 if all tensors
        are, else float32.
      tensors: By published name.
    """

    folder: epath.Path
    settings: Mapping[str, Any]
    config: ModelConfig
    tensors: Mapping[str, Tensor] = dataclasses.field(repr=False)

    @property
    def num_bytes(self) -> int:
        """Counts the bytes of all tensors as stored."""
        return sum(
            shards.DTYPES[tensor.dtype].itemsize * math.prod(tensor.shape)
            for tensor in self.tensors.values()
        )

    def run_config(self, name: str) -> Config:
        """Makes the config of a work directory `name` that holds these weights."""
        return published.run_config(self.settings, self.config, name, str(self.folder / CONFIG))


def is_published(path: str) -> bool:
    """Says whether `path` names published weights (a folder, a hub id), not a work directory."""
    if path.startswith(HUB):
        return True
    described = given_path(path) / CONFIG
    with reaching(path):
        # A work directory's has sections; what is not readable is reported when it is opened.
        return described.exists() and b'"objective"' not in described.read_bytes()


def open_source(path: epath.PathLike) -> Source:
    """Opens a folder and checks every name, shape and dtype.

    Args:
      path: Folder, `gs://...`, `s3://...` or `hf://ORG/NAME[@REVISION]`.

    Raises:
      ConfigError: not such a folder, damaged files, a model that is not supported, or tensors that
        do not fit `config.json`: all of them named.
    """
    path = os.fspath(path)
    folder = given_path(_download(path) if path.startswith(HUB) else path)
    with reaching(folder):
        return _open(folder, path)


def _open(folder: epath.Path, path: str) -> Source:
    described = folder / CONFIG
    if not described.exists():  # asked first: `is_dir` hides that a bucket is out of reach
        check_folder(folder, path)
        if folder.is_dir():
            raise ConfigError(
                f"{path} must hold {CONFIG}, it does not; copy it there from its source"
            )
        raise ConfigError(
            f"{path} must be a folder with {CONFIG} and weights, none is there; correct the path "
            f"(a repository of the hub is written {HUB}ORG/NAME)"
        )
    settings = published.read_settings(described.read_bytes(), str(described))
    check_folder(folder, path)
    config = published.model_config(settings, str(described))
    tensors = _open_tensors(folder)
    _check(tensors, config, path)
    exact = all(tensor.dtype == "BF16" for tensor in tensors.values())
    dtype = "bfloat16" if exact else "float32"
    config = dataclasses.replace(config, param_dtype=dtype, compute_dtype=dtype)
    return Source(folder, settings, config, tensors)


def _download(path: str) -> str:
    """Fetches a repository of the hub, but not again what is in the local cache already.

    What its `config.json` shows to be another model is refused before its weights are fetched.
    """
    wanted = ["*.safetensors", *(f"*{end}" for end in KEPT_ENDINGS), *(f"{s}*" for s in KEPT_NAMES)]
    # Folders hold the same weights in other formats.
    fetch = functools.partial(fetch_repository, path.removeprefix(HUB).rstrip("/"), ignore="*/*")
    check_folder(epath.Path(fetch([CONFIG])), path)
    return fetch(wanted)


def _open_tensors(folder: epath.Path) -> dict[str, Tensor]:
    if (folder / INDEX).exists():
        if (folder / SINGLE).exists():  # PyTorch users' loaders prefer one, or the other
            raise ConfigError(
                f"{folder} must hold {SINGLE} or {INDEX}, it holds both; remove what is not meant"
            )
        return _open_indexed(folder, INDEX, shards.read_header)
    if (folder / SINGLE).exists():
        return shards.read_header(folder / SINGLE)
    if (folder / pickles.INDEX).exists():
        return _open_indexed(folder, pickles.INDEX, pickles.read_file)
    for name in pickles.SINGLE:
        if (folder / name).exists():
            return pickles.read_file(folder / name)
    found = [path.name for path in folder.iterdir() if path.name.endswith(".safetensors")]
    if found:
        raise ConfigError(
            f"{folder} must hold {INDEX} beside its {len(found)} safetensors file(s), it does not; "
            "copy it there from its source"
        )
    raise ConfigError(
        f"{folder} must hold {SINGLE}, {INDEX} or {pickles.SINGLE[0]}, it holds none; copy the "
        "weights there"
    )


def _open_indexed(
    folder: epath.Path, index: str, read: Callable[[epath.Path], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Opens the tensors of several files; the index must tell the truth about each."""
    # The index: names -> files of this folder.
    path = folder / index
    where = published.read_settings(path.read_bytes(), str(path)).get("weight_map")
    if not isinstance(where, dict) or not all(
        isinstance(file, str) and "/" not in file for file in where.values()
    ):
        raise ConfigError(
            f"{path} must map tensor names to files of its folder (weight_map), it does not; "
            "restore it from its source"
        )
    names = sorted(set(where.values()))
    absent = [file for file in names if not (folder / file).exists()]
    if absent:
        raise ConfigError(
            f"{folder} must hold the files that its index names, {', '.join(absent)} not found; "
            "copy or download what is missing"
        )
    files = {file: read(folder / file) for file in names}
    tensors = {name: tensor for file in files.values() for name, tensor in file.items()}
    # It says of each tensor where it is.
    problems = [
        f"{name} must be in {file}, it is in "
        + (tensors[name].file if name in tensors else "none of the files")
        for name, file in where.items()
        if name not in files[file]
    ]
    problems += [
        f"{name} is in {tensor.file}, but not in the index"
        for name, tensor in tensors.items()
        if name not in where
    ]
    problems += [
        f"{name} is in {file} and in {tensors[name].file}"  # which of the two is meant?
        for file, held in files.items()
        for name in held
        if tensors[name].file != file
    ]
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ConfigError(f"{folder}: the index does not fit its files:{lines}")
    return tensors


def _check(tensors: Mapping[str, Tensor], config: ModelConfig, path: str) -> None:
    """Compares names, shapes and dtypes with the parameter table; all mismatches in one error."""
    rows = [BothLayouts(row, config) for row in table.rows(config)]
    count = sum(config.layers if row.stacked else 1 for row in rows)
    if count > 10 * len(tensors) + 1000:  # a list of so many names helps nobody
        raise ConfigError(
            f"{path}: {CONFIG} needs {count:,} tensors, n_layers={config.layers:,}, but the files "
            f"hold {len(tensors)}; correct n_layers"
        )
    wanted = {name: row.torch_shape for row in rows for name in row.torch_names}
    missing = [name for name in wanted if name not in tensors]
    unexpected = [name for name in tensors if name not in wanted]
    problems = []
    for what, names, others in (
        ("missing", missing, unexpected),
        ("unexpected", unexpected, missing),
    ):
        for name in names:
            near = difflib.get_close_matches(name, others, n=1, cutoff=0.8)
            problems.append(f"{what}: {name}" + (f" (is it {near[0]}?)" if near else ""))
    for name, tensor in tensors.items():
        if name in wanted and tensor.shape != wanted[name]:
            problems.append(
                f"wrong shape: {name} must be {list(wanted[name])}, is {list(tensor.shape)}"
            )
        if name in wanted and tensor.dtype not in shards.DTYPES:
            known = ", ".join(shards.DTYPES)
            problems.append(f"wrong dtype: {name} must be one of {known}, is {tensor.dtype}")
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ConfigError(
            f"{path}: {len(tensors)} tensors do not fit {CONFIG}, which needs {len(wanted)}:{lines}"
            "\nnothing was written: correct the folder, or take the config.json of these weights"
        )
