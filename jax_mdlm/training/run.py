"""A work directory opened for reading: what `sample`, `evaluate` and notebooks start from."""

import dataclasses

from etils import epath

from jax_mdlm.config import Config
from jax_mdlm.containers import Params
from jax_mdlm.data.corpus import open_tokenizer
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.sharding import Layout
from jax_mdlm.training.state import abstract_params
from jax_mdlm.workdir import restore_params


@dataclasses.dataclass(frozen=True)
class Run:
    """What a work directory holds.

    Attributes:
      config: As resolved when it was trained.
      tokenizer: Its tokenizer.
      step: The newest checkpoint's step.
      params: Its parameters, in their places.
    """

    config: Config
    tokenizer: Tokenizer
    step: int
    params: Params


def load_run(workdir: epath.Path, config: Config, layout: Layout) -> Run:
    """Reads tokenizer and newest parameters.

    Args:
      workdir: The folder.
      config: From `workdir.load_config`, perhaps with other `sample` settings.
      layout: Where the parameters go; the mesh need not be that of the training.

    Raises:
      ConfigError: no tokenizer or no checkpoint.
      CheckpointError: damaged, or of another shape.
    """
    step, params = restore_params(workdir, abstract_params(config.model, layout))
    return Run(config, open_tokenizer(config.data, workdir), step, params)
