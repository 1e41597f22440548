"""Where a run's parameters come from: published weights or another work directory."""

import dataclasses
import os
from collections.abc import Callable

from etils import epath

from jax_mdlm.config import ConfigError, ModelConfig
from jax_mdlm.containers import Params
from jax_mdlm.conversion import published
from jax_mdlm.conversion.reading import Meter, read_params
from jax_mdlm.conversion.source import (
    Source,
    copy_files,
    is_published,
    kept_files,
    open_source,
)
from jax_mdlm.data.corpus import tokenizer_folder
from jax_mdlm.data.tokenizer import is_beside, is_kept
from jax_mdlm.foreign import check_folder
from jax_mdlm.sharding import Layout
from jax_mdlm.storage import place
from jax_mdlm.workdir import checkpoint_folder, load_config, restore_params, source_folder

# What two descriptions of one model must agree in.
_LAYOUT = (
    "vocab_size",
    "embed",
    "layers",
    "heads",
    "kv_heads",
    "head_dim",
    "mlp",
    "rope_theta",
    "norm_eps",
)


@dataclasses.dataclass(frozen=True)
class Origin:
    """What `init.from` names.

    Attributes:
      path: As given.
      source: Published weights; None: a work directory.
    """

    path: str
    source: Source | None

    @property
    def knows_slack(self) -> bool:
        """Whether its parameters were trained with slack, so that the slack row means something."""
        if self.source is not None:
            return published.token_ids(self.source.settings, self.path).slack is not None
        workdir = epath.Path(self.path)
        return (workdir / "config.json").exists() and load_config(workdir).objective.slack_max > 0

    @property
    def network(self) -> ModelConfig | None:
        """What its parameters belong to; None where a work directory has lost its config."""
        if self.source is not None:
            return self.source.config
        workdir = epath.Path(self.path)
        return load_config(workdir).model if (workdir / "config.json").exists() else None

    @property
    def vocab_size(self) -> int:
        """Rows of its embedding; 0 where a work directory has lost its config."""
        return self.network.vocab_size if self.network else 0

    @property
    def tokenizer(self) -> epath.Path:
        """The folder that holds its tokenizer.

        Raises:
          ConfigError: it has none.
        """
        if self.source is not None:
            folder, found = self.source.folder, is_beside(self.source.folder)
        else:
            folder = tokenizer_folder(epath.Path(self.path))
            found = is_kept(folder)
        if not found:
            raise ConfigError(
                f"init.from={self.path} has no tokenizer; name its model's with "
                "--config.data.tokenizer.path=FOLDER (or a hub id)"
            )
        return folder

    def check(self, config: ModelConfig) -> None:
        """Raises ConfigError if its parameters belong to another network than `config`.

        All flags come first, so that they can be pasted. A checkpoint without a config is compared
        when it is read.
        """
        theirs = self.network
        if theirs is None:
            return
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
        if self.network and config.max_length > self.network.max_length:
            warn(
                f"model.max_length={config.max_length} is more than the "
                f"{self.network.max_length} slots that init.from={self.path} was made for: "
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
        return Origin(path, open_source(path))
    workdir = place(path)
    if not checkpoint_folder(workdir).exists():
        check_folder(workdir, f"init.from={path}")
        raise ConfigError(
            f"init.from={path} must be a folder of published weights or a work directory with a "
            "checkpoint, nothing of that kind is there; correct the path"
        )
    return Origin(os.fspath(workdir), None)
