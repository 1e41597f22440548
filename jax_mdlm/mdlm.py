"""A work directory opened for reading: what `sample`, `evaluate` and notebooks start from."""

import dataclasses
from typing import Literal

import jax
from etils import epath

from jax_mdlm import model
from jax_mdlm.config import Config, ConfigError, MeshConfig, ModelConfig
from jax_mdlm.containers import Params
from jax_mdlm.data.corpus import open_tokenizer, tokenizer_folder
from jax_mdlm.data.tokenizer import Tokenizer, is_kept
from jax_mdlm.model import memory
from jax_mdlm.model.places import abstract_params
from jax_mdlm.sharding import Layout, make_layout
from jax_mdlm.workdir import newest_step, restore_params


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
    tokenizer = _open_tokenizer(workdir, config)
    step, params = restore_params(workdir, abstract_params(config.model, layout))
    return Run(config, tokenizer, step, params)


def load_for_sampling(workdir: epath.Path, config: Config, layout: Layout) -> Run:
    """Reads tokenizer and newest parameters in the form that the sampler reads (`model.prepare`).

    Args:
      workdir: The folder.
      config: `sample.weights` and `model.compute_dtype` say what the parameters become.
      layout: Where they go.

    Raises:
      ConfigError: no tokenizer or no checkpoint, or too little memory.
      CheckpointError: damaged, or of another shape.
    """
    tokenizer = _open_tokenizer(workdir, config)
    weights = config.sample.weights
    if newest_step(workdir) >= 0:  # else another sentence is due, that nothing is there
        _check_memory(workdir, config, layout)
    # Read in the compute dtype: float32 masters need not fit where bfloat16 does.
    read = dataclasses.replace(config.model, param_dtype=config.model.compute_dtype)
    place = _host(weights, layout)
    step, params = restore_params(workdir, abstract_params(read, place or layout))
    params = model.prepare(params, config.model, weights, move_to=place and layout.replicated)
    return Run(config, tokenizer, step, params)


def _check_memory(workdir: epath.Path, config: Config, layout: Layout) -> None:
    """Raises ConfigError where the kernel would end the process while it reads."""

    def need(weights: Literal["full", "int8"], network: ModelConfig = config.model) -> memory.Need:
        read = _host(weights, layout) or layout
        return memory.to_sample(
            network,
            weights,
            lambda row: read.sharding(row.axes),
            lambda row: layout.sharding(row.axes),
        )

    weights, dtype = config.sample.weights, config.model.compute_dtype
    other = "full" if weights == "int8" else "int8"
    others = {f"--config.sample.weights={other}": need(other)}
    if dtype == "float32":
        halved = dataclasses.replace(config.model, compute_dtype="bfloat16")
        others["the model in bfloat16 (convert export, then import)"] = need(weights, halved)
    what = f"{workdir} with sample.weights={weights} in {dtype}"
    memory.check_fits(what, need(weights), others, layout.mesh.size)


def _open_tokenizer(workdir: epath.Path, config: Config) -> Tokenizer:
    tokenizer = open_tokenizer(config.data, workdir)
    named = not is_kept(tokenizer_folder(workdir))
    # Of an id without a row the lookup takes the last row, in silence.
    if named and tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"work directory {workdir} has {config.model.vocab_size} rows of the vocabulary, the "
            f"tokenizer {tokenizer.vocab_size} ids; name its model's with "
            "--config.data.tokenizer.path"
        )
    return tokenizer


def _host(weights: Literal["full", "int8"], layout: Layout) -> Layout | None:
    """The host's memory: what is quantised there need not fit the chip before."""
    if weights != "int8" or layout.mesh.size > 1:
        return None
    try:
        return make_layout(MeshConfig(), jax.local_devices(backend="cpu")[:1])
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        return None
