"""Models in memory, as `jax_mdlm.load` gives them."""

import dataclasses

import jax
from etils import epath

from jax_mdlm.config import Config, MeshConfig
from jax_mdlm.containers import Params
from jax_mdlm.data.chat import template_of
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.mdlm import Mdlm
from jax_mdlm.setup import Setup
from jax_mdlm.sharding import Layout, make_layout


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
