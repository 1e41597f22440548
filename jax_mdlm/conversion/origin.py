"""Where a run's parameters come from: published weights or another work directory."""

import dataclasses
import os
from collections.abc import Callable

from etils import epath

from jax_mdlm.config import Config, ConfigError, ModelConfig
from jax_mdlm.containers import Params
from jax_mdlm.conversion.beside import copy_files, kept_files
from jax_mdlm.conversion.published import prompting
from jax_mdlm.conversion.reading import Meter, read_params
from jax_mdlm.conversion.source import Source, is_published, open_source
from jax_mdlm.data.corpus import tokenizer_folder
from jax_mdlm.data.tokenizer import holds_tokenizer, keep_tokenizer
from jax_mdlm.foreign import check_folder
from jax_mdlm.sharding import Layout
from jax_mdlm.storage import given_path
from jax_mdlm.workdir import (
    checkpoint_folder,
    load_config,
    newest_step,
    restore_params,
    source_folder,
)

# What two descriptions of one model must agree in.
_LAYOUT = ("vocab_size", "embed", "layers", "heads", "kv_heads", "head_dim", "mlp")
_LAYOUT += ("rope_theta", "norm_eps")


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
        """Whether its parameters were trained with slack, so that the slack row means something."""
        return self.told is not None and self.told.objective.slack_max > 0

    @property
    def was_taught(self) -> bool:
        """Whether its template is that of a training here; LLaDA's is assumed of other weights.

        A Base model has no template of its own: any can be taught to it.
        """
        if self.told is None:
            return False
        if self.knows_slack or prompting(self.told):
            return True
        return self.source is None and newest_step(epath.Path(self.path)) > 0

    @property
    def tokenizer(self) -> epath.Path:
        """The folder that holds its tokenizer, if it has one."""
        if self.source is not None:
            return self.source.folder
        return tokenizer_folder(epath.Path(self.path))

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is one, in a form that is read here."""
        return holds_tokenizer(self.tokenizer)

    def check(self, config: ModelConfig) -> None:
        """Raises ConfigError if its parameters belong to another network than `config`.

        All flags come first, so that they can be pasted. A checkpoint without a config is compared
        when it is read.
        """
        if self.told is None:
            return
        theirs = self.told.model
        wrong = [name for name in _LAYOUT if getattr(theirs, name) != getattr(config, name)]
        if wrong:
            flags = " ".join(f"--config.model.{name}={getattr(theirs, name)}" for name in wrong)
            given = ", ".join(f"{name}={getattr(config, name)}" for name in wrong)
            raise ConfigError(
                f"init.from={self.path} holds another model; add {flags} (this run has {given})"
            )

    def params(
        self,
        config: ModelConfig,
        abstract: Params,
        layout: Layout,
        warn: Callable[[str], None] = lambda text: None,
    ) -> Params:
        """Reads its parameters straight into their places.

        Args:
          config: The run's network; dtypes and remat are its own.
          abstract: Shapes, dtypes and shardings of the run's parameters.
          layout: Its mesh.
          warn: Receives a line for whatever is odd but no error.

        Raises:
          ConfigError: another layout than `config`; no checkpoint.
        """
        self.check(config)
        if self.told is not None and config.max_length > self.told.model.max_length:
            warn(
                f"model.max_length={config.max_length} is more than the "
                f"{self.told.model.max_length} slots that init.from={self.path} was made for: "
                "positions beyond them are new to it"
            )
        if self.source is None:
            return restore_params(epath.Path(self.path), abstract)[1]
        meter = Meter()
        params = read_params(
            self.source, lambda row: layout.sharding(row.axes), config.param_dtype, meter
        )
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
