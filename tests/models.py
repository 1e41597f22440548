"""Models in memory, as `jax_mdlm.load` gives them, and work directories that hold some."""

import dataclasses
from collections.abc import Sequence

import jax
from etils import epath

from jax_mdlm.config import Config, MeshConfig
from jax_mdlm.containers import Params
from jax_mdlm.data.chat import template_of
from jax_mdlm.data.tokenizer import Tokenizer, load_tokenizer
from jax_mdlm.mdlm import Mdlm
from jax_mdlm.setup import Setup
from jax_mdlm.sharding import Layout, make_layout
from jax_mdlm.storage import open_checkpoints
from jax_mdlm.workdir import save_config


def model_of(
    config: Config,
    tokenizer: Tokenizer,
    params: Params,
    *,
    layout: Layout | None = None,
    step: int = 7,
    path: epath.PathLike = "memory",
    trace: bool = False,
) -> Mdlm:
    """A model of these parameters; on the first device unless told otherwise."""
    setup = Setup(
        epath.Path(path), config, tokenizer, template_of(config.data, tokenizer), trace=trace
    )
    return Mdlm.of(setup, params, layout or make_layout(MeshConfig(), jax.devices()[:1]), step)


def with_sample(config: Config, **sample: object) -> Config:
    """The config with other settings of the sampler."""
    return dataclasses.replace(config, sample=dataclasses.replace(config.sample, **sample))


def with_vocabulary(
    config: Config, folder: epath.Path, texts: Sequence[str], **network: object
) -> Config:
    """The config with the vocabulary of a tokenizer, trained on `texts` and kept in `folder`."""
    tokenizer = load_tokenizer(config.data.tokenizer, folder / "tokenizer", lambda: list(texts))
    changes = {"vocab_size": tokenizer.vocab_size, **network}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


def save_run(folder: epath.Path, config: Config, params: Params, step: int) -> None:
    """What training leaves in a work directory, its tokenizer aside."""
    save_config(folder, config)
    checkpoints = open_checkpoints(folder / "checkpoints", keep=1)
    checkpoints.save(step, {"params": params}, {})
    checkpoints.close()
