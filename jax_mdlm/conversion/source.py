"""A folder of published weights, opened: settings, tensors, and the files beside them.

Local folders, `gs://` and `s3://` folders, and hub repositories (`hf://ORG/NAME`, only when asked
for by that prefix). Nothing but names, shapes and headers is read here.
"""

import dataclasses
import difflib
import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jax_mdlm.config import ConfigError, ModelConfig, first_line
from jax_mdlm.containers import ParamRow
from jax_mdlm.conversion import boxes, pickles, published, shards
from jax_mdlm.conversion.shards import Tensor
from jax_mdlm.foreign import check_folder
from jax_mdlm.model import table
from jax_mdlm.storage import place, reaching

HUB = "hf://"
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Beside the weights: tokenizer, generation settings, chat template, code that PyTorch users run.
_KEPT_ENDINGS = (".json", ".py", ".model", ".txt", ".jinja", ".tiktoken")
_KEPT_NAMES = ("LICENSE", "LICENCE", "NOTICE")


@dataclasses.dataclass(frozen=True)
class Source:
    """A checked folder of published weights.

    Attributes:
      folder: Where it is (a hub repository: its local copy).
      settings: Its `config.json`.
      config: The network; `param_dtype` holds every stored value exactly.
      tensors: By published name.
    """

    folder: epath.Path
    settings: Mapping[str, Any]
    config: ModelConfig
    tensors: Mapping[str, Tensor] = dataclasses.field(repr=False)

    @property
    def dtype(self) -> np.dtype:
        """In which the values are kept: bfloat16 if all tensors are, else float32."""
        return boxes.BFLOAT16 if self.config.param_dtype == "bfloat16" else boxes.FLOAT32

    @property
    def num_bytes(self) -> int:
        """Of all tensors as stored."""
        return sum(
            shards.DTYPES[tensor.dtype].itemsize * int(np.prod(tensor.shape))
            for tensor in self.tensors.values()
        )

    def layers(self, row: ParamRow) -> list[Tensor]:
        """The tensors of a row, by layer."""
        return [self.tensors[name] for name in boxes.torch_names(row, self.config)]


def is_published(path: str) -> bool:
    """Whether `path` is a folder of published weights (or a hub id), not a work directory."""
    if path.startswith(HUB):
        return True
    described = place(path) / CONFIG
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
    folder = place(_download(path) if path.startswith(HUB) else path)
    with reaching(folder):
        return _open(folder, path)


def _open(folder: epath.Path, path: str) -> Source:
    if not (folder / CONFIG).exists():  # asked first: `is_dir` hides that a bucket is out of reach
        check_folder(folder, path)
        if folder.is_dir():
            raise ConfigError(
                f"{path} must hold {CONFIG}, it does not; copy it there from its source"
            )
        raise ConfigError(
            f"{path} must be a folder with {CONFIG} and weights, none is there; correct the path "
            f"(a repository of the hub is written {HUB}ORG/NAME)"
        )
    described = folder / CONFIG
    settings = published.parse(described.read_bytes(), str(described))
    check_folder(folder, path)
    config = published.model_config(settings, str(described))
    tensors = _open_tensors(folder)
    _check(tensors, config, path)
    exact = all(tensor.dtype == "BF16" for tensor in tensors.values())
    dtype = "bfloat16" if exact else "float32"
    config = dataclasses.replace(config, param_dtype=dtype, compute_dtype=dtype)
    return Source(folder, settings, config, tensors)


def kept_files(folder: epath.Path) -> list[epath.Path]:
    """The files beside the weights that an exported folder needs to load as its source did."""
    return sorted(
        path
        for path in folder.iterdir()
        if (path.name.endswith(_KEPT_ENDINGS) or path.name.startswith(_KEPT_NAMES))
        and not path.name.endswith(".index.json")
        and not path.is_dir()
    )


def copy_files(files: Sequence[epath.Path], folder: epath.Path) -> None:
    """Copies small files, local or remote, byte by byte."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        (folder / path.name).write_bytes(path.read_bytes())


def _download(path: str) -> str:
    """A repository of the hub; what is in the local cache already is not fetched again.

    What its `config.json` shows to be another model is refused before its weights are fetched.
    """
    import huggingface_hub
    from huggingface_hub import errors

    asked = path.removeprefix(HUB).rstrip("/")
    name, _, revision = asked.partition("@")
    endings = ["*.safetensors", *(f"*{ending}" for ending in _KEPT_ENDINGS)]
    fetch = functools.partial(
        huggingface_hub.snapshot_download, name, revision=revision or None, ignore_patterns="*/*"
    )  # folders hold the same weights in other formats
    try:
        check_folder(epath.Path(fetch(allow_patterns=[CONFIG])), path)
        return fetch(allow_patterns=[*endings, *(f"{start}*" for start in _KEPT_NAMES)])
    except ConfigError:
        raise
    except Exception as error:  # no network, no such repository, no access, not a name
        reasons = {
            errors.GatedRepoError: "its page must grant you access first",
            errors.RepositoryNotFoundError: "no such repository, or a private one",
            errors.RevisionNotFoundError: "no such revision",
            errors.LocalEntryNotFoundError: "it cannot be reached, and the cache holds no copy",
        }
        first = first_line(error)
        reason = next((text for kind, text in reasons.items() if isinstance(error, kind)), first)
        raise ConfigError(
            f"the hub does not give {asked} ({reason}); correct the name, log in with "
            "`hf auth login`, or name a local folder"
        ) from error


def _open_tensors(folder: epath.Path) -> dict[str, Tensor]:
    if (folder / INDEX).exists():
        if (folder / SINGLE).exists():  # PyTorch users' loaders prefer one, or the other
            raise ConfigError(
                f"{folder} must hold {SINGLE} or {INDEX}, it holds both; remove what is not meant"
            )
        return _open_indexed(folder, _read_index(folder / INDEX), shards.read_header)
    if (folder / SINGLE).exists():
        return shards.read_header(folder / SINGLE)
    if (folder / pickles.INDEX).exists():
        return _open_indexed(folder, _read_index(folder / pickles.INDEX), pickles.read_file)
    for name in pickles.SINGLE:
        if (folder / name).exists():
            return pickles.read_file(folder / name)
    found = sorted(path.name for path in folder.iterdir() if path.name.endswith(".safetensors"))
    if found:
        raise ConfigError(
            f"{folder} must hold {INDEX} beside its {len(found)} safetensors file(s), it does not; "
            "copy it there from its source"
        )
    raise ConfigError(
        f"{folder} must hold {SINGLE}, {INDEX} or {pickles.SINGLE[0]}, it holds none; copy the "
        "weights there"
    )


def _read_index(path: epath.Path) -> dict[str, str]:
    index = published.parse(path.read_bytes(), str(path))
    where = index.get("weight_map")
    if not isinstance(where, dict) or not all(
        isinstance(file, str) and "/" not in file for file in where.values()
    ):
        raise ConfigError(
            f"{path} must map tensor names to files of its folder (weight_map), it does not; "
            "restore it from its source"
        )
    return where


def _open_indexed(folder: epath.Path, where: Mapping[str, str], read: Any) -> dict[str, Tensor]:
    """The tensors of several files; the index must tell the truth about each."""
    names = sorted(set(where.values()))
    absent = [file for file in names if not (folder / file).exists()]
    if absent:
        raise ConfigError(
            f"{folder} must hold the files that its index names, {', '.join(absent)} not found; "
            "copy or download what is missing"
        )
    files = {file: read(folder / file) for file in names}
    tensors = {name: tensor for file in files.values() for name, tensor in file.items()}
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
    """Names, shapes and dtypes against the parameter table; all mismatches in one error."""
    count = sum(config.layers if boxes.is_stacked(row) else 1 for row in table.rows(config))
    if count > 10 * len(tensors) + 1000:  # a list of so many names helps nobody
        raise ConfigError(
            f"{path}: {CONFIG} needs {count:,} tensors, n_layers={config.layers:,}, but the files "
            f"hold {len(tensors)}; correct n_layers"
        )
    wanted = {
        name: boxes.axes_of(row, config).torch_shape
        for row in table.rows(config)
        for name in boxes.torch_names(row, config)
    }
    missing = [name for name in wanted if name not in tensors]
    unexpected = [name for name in tensors if name not in wanted]
    problems = []
    for name in missing:
        near = difflib.get_close_matches(name, unexpected, n=1, cutoff=0.8)
        problems.append(f"missing: {name}" + (f" (is it {near[0]}?)" if near else ""))
    for name in unexpected:
        near = difflib.get_close_matches(name, missing, n=1, cutoff=0.8)
        problems.append(f"unexpected: {name}" + (f" (is it {near[0]}?)" if near else ""))
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


def to_json(settings: Mapping[str, Any]) -> str:
    """`config.json` as Hugging Face writes it."""
    return json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
