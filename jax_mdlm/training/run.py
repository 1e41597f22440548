"""A work directory opened for reading: what `sample`, `evaluate` and notebooks start from."""

import dataclasses

import jax
from etils import epath

from jax_mdlm import model
from jax_mdlm.config import Config, ConfigError, from_json
from jax_mdlm.containers import Params
from jax_mdlm.data.corpus import open_tokenizer
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.sharding import Layout
from jax_mdlm.training import checkpoint
from jax_mdlm.training.state import param_shardings


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


def load_config(workdir: epath.Path) -> Config:
    """The resolved config of a work directory.

    Raises:
      ConfigError: it is not a work directory.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise ConfigError(
            f"work directory {workdir} must hold config.json, it does not; train one with "
            f"python -m jax_mdlm.train --config pronounce --workdir {workdir}"
        )
    return from_json(path.read_text(), str(path))


def load_run(workdir: epath.Path, config: Config, layout: Layout) -> Run:
    """Reads tokenizer and newest parameters.

    Args:
      workdir: The folder.
      config: From `load_config`, perhaps with other `sample` settings.
      layout: Where the parameters go; the mesh need not be that of the training.

    Raises:
      ConfigError: no tokenizer or no checkpoint.
      CheckpointError: damaged, or of another shape.
    """
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), config.model))
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        param_shardings(layout),
    )
    step, params = checkpoint.restore_params(workdir, abstract)
    return Run(config, open_tokenizer(config.data, workdir), step, params)
