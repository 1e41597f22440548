"""Published weights and work directories by their path: loaded, described, begun from."""

import collections
import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath
from jax.sharding import Sharding, SingleDeviceSharding

from jax_mdlm.config import Config, ConfigError, ModelConfig
from jax_mdlm.containers import ParamRow, Params
from jax_mdlm.conversion import published, shards
from jax_mdlm.conversion.beside import copy_files, kept_files, token_ids_of
from jax_mdlm.conversion.placing import place_params, place_prepared
from jax_mdlm.conversion.reading import Meter, opened_params
from jax_mdlm.conversion.source import Source, is_published, open_source
from jax_mdlm.data.corpus import tokenizer_folder
from jax_mdlm.data.tokenizer import holds_tokenizer, keep_tokenizer
from jax_mdlm.foreign import check_folder
from jax_mdlm.model import Form, memory
from jax_mdlm.parameters import open_base
from jax_mdlm.sharding import Layout
from jax_mdlm.storage import given_path, reaching
from jax_mdlm.workdir import (
    check_finished,
    checkpoint_folder,
    load_config,
    newest_step,
    open_existing,
    source_folder,
)

# Of a network; with these, two descriptions of one model must agree.
_SIZES = ("vocab_size", "embed", "layers", "heads", "kv_heads", "head_dim", "mlp")
_COMPARED = (*_SIZES, "rope_theta", "norm_eps")


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
        where = source or given_path(path)
        with opened_params(where, config, config.param_dtype) as (_, arrays):
            return place_params(arrays, config, place, config.param_dtype), config


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
    sizes = {name: getattr(config, name) for name in (*_SIZES, "max_length")}
    return {**found, "model": sizes, "ids": dataclasses.asdict(ids)}


def _inspect_source(source: Source) -> dict[str, Any]:
    stored = {
        name: (tensor.shape, shards.DTYPES[tensor.dtype].name)
        for name, tensor in source.tensors.items()
    }
    files = sorted({tensor.file for tensor in source.tensors.values()})
    return {"format": "published weights", "files": files, **_totals(stored)}


def _inspect_workdir(folder: epath.Path) -> dict[str, Any]:
    with contextlib.closing(open_existing(folder)) as checkpoints:
        steps = checkpoints.steps()
        stored = checkpoints.shapes(steps[-1])
        imported = bool(checkpoints.record(steps[-1]).get("imported"))
    params, adapters = _named(stored, "params/"), _named(stored, "adapters/")
    others = len(stored) - len(params) - len(adapters)
    if adapters:
        with contextlib.closing(open_base(folder)[0]) as base:
            params = _named(base.shapes(0), "params/")
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
    """Counts; the scales of quantised parameters only in bytes."""
    own = [value for name, value in stored.items() if not name.endswith("/scale")]
    return {
        "tensors": len(own),
        "parameters": sum(math.prod(shape) for shape, _ in own),
        "bytes": sum(
            math.prod(shape) * jax.numpy.dtype(dtype).itemsize for shape, dtype in stored.values()
        ),
        "dtypes": dict(sorted(collections.Counter(dtype for _, dtype in own).items())),
    }


@dataclasses.dataclass(frozen=True)
class Origin:
    """What `init.from` names.

    Attributes:
      path: As given.
      source: Published weights; None: a work directory.
      told: The config of the work directory, or the one that an import of the weights would have;
        None: a work directory that has lost its config.
    """

    path: str
    source: Source | None
    told: Config | None

    @property
    def knows_slack(self) -> bool:
        """Says whether it was trained with slack, so that the slack row means something."""
        return self.told is not None and self.told.objective.slack_max > 0

    @property
    def was_taught(self) -> bool:
        """Says whether it was trained here on its template; LLaDA's is assumed of other weights.

        A Base model has no template of its own: any can be taught to it.
        """
        if self.told is None:
            return False
        if self.knows_slack or published.prompting(self.told):
            return True
        return self.source is None and newest_step(epath.Path(self.path)) > 0

    @property
    def tokenizer(self) -> epath.Path:
        """Names the folder that holds its tokenizer, if it has one."""
        if self.source is not None:
            return self.source.folder
        return tokenizer_folder(epath.Path(self.path))

    @property
    def has_tokenizer(self) -> bool:
        """Says whether there is one, in a form that is read here."""
        return holds_tokenizer(self.tokenizer)

    def check(self, config: ModelConfig) -> None:
        """Raises ConfigError if its parameters belong to another network than `config`.

        All flags come first, so that they can be pasted.
        """
        if self.told is None:  # a checkpoint without a config is compared when it is read
            return
        theirs = self.told.model
        wrong = [name for name in _COMPARED if getattr(theirs, name) != getattr(config, name)]
        if wrong:
            flags = " ".join(f"--config.model.{name}={getattr(theirs, name)}" for name in wrong)
            given = ", ".join(f"{name}={getattr(config, name)}" for name in wrong)
            raise ConfigError(
                f"init.from={self.path} holds another model; add {flags} (this run has {given})"
            )

    def params(
        self,
        config: ModelConfig,
        layout: Layout,
        warn: Callable[[str], None] = lambda text: None,
        form: Form | None = None,
    ) -> Params:
        """Reads its parameters straight into the places of a run.

        Args:
          config: The network of the run.
          layout: Mesh and rules.
          warn: Is told what is odd about them.
          form: What they are held in; None: in `config.param_dtype`, as they are trained.

        Raises:
          ConfigError: another network than `config`; no checkpoint.
        """
        self.check(config)
        if self.told is not None and config.max_length > self.told.model.max_length:
            warn(
                f"model.max_length={config.max_length} is more than the "
                f"{self.told.model.max_length} slots that init.from={self.path} was made for: "
                "positions beyond them are new to it"
            )
        meter, dtype = Meter(), config.param_dtype
        where = self.source or epath.Path(self.path)
        with opened_params(where, config, dtype, meter) as (_, arrays):
            if form is None:
                params = place_params(arrays, config, lambda row: layout.sharding(row.axes), dtype)
            else:
                params = place_prepared(arrays, config, layout, form, stacked=True)
        for line in meter.warnings():
            warn(line)
        return params

    def keep_tokenizer(self, workdir: epath.Path) -> None:
        """Makes its tokenizer, if it has one, that of a work directory."""
        keep_tokenizer(self.tokenizer, tokenizer_folder(workdir))

    def keep_files(self, workdir: epath.Path) -> None:
        """Keeps what stands beside its weights, so that an export loads as the origin does."""
        folder = self.source.folder if self.source else source_folder(epath.Path(self.path))
        if folder.exists():
            copy_files(kept_files(folder), source_folder(workdir))


def open_origin(path: str) -> Origin:
    """Opens what `init.from` names; published weights are checked.

    Raises:
      ConfigError: see `open_source`.
    """
    if is_published(path):
        source = open_source(path)
        return Origin(path, source, source.run_config(source.folder.name))
    workdir = given_path(path)
    if not checkpoint_folder(workdir).exists():
        check_folder(workdir, f"init.from={path}")
        raise ConfigError(
            f"init.from={path} must be a folder of published weights or a work directory with a "
            "checkpoint, nothing of that kind is there; correct the path"
        )
    told = load_config(workdir) if (workdir / "config.json").exists() else None
    return Origin(os.fspath(workdir), None, told)
