"""A work directory made this run's: the config resolved, data and tokenizer opened."""

import dataclasses
import os

import jax
from etils import epath

from jax_mdlm.config import Config, ConfigError, differences
from jax_mdlm.conversion import open_origin
from jax_mdlm.data.corpus import Corpus, load_corpus
from jax_mdlm.workdir import check_finished, check_place, load_config, save_config

# What may change between the parts of one run; everything else would make it another run.
MAY_CHANGE = (
    "train.steps",
    "train.epochs",
    "train.log_every",
    "train.evaluate",
    "train.save_every",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.tensorboard",
    "mesh.",
    "sample.",
    "init.",
    "data.data_dir",
    "model.remat",
    "name",
    "profile",
)


def claim(config: Config, workdir: epath.Path) -> tuple[Config, Corpus]:
    """Data and tokenizer, the vocabulary size filled in, and the work directory claimed.

    Raises:
      ConfigError: data, tokenizer or parameters cannot be used, or another run lives there.
    """
    check_place(workdir)
    check_finished(workdir)
    recorded = workdir / "config.json"
    if recorded.exists():
        old = load_config(workdir)
        asked = config
        if config.model.vocab_size == 0:
            asked = _with_vocabulary(asked, old.model.vocab_size)
        if _lacks_tokenizer(config):
            asked = config = _with_tokenizer(asked, old.data.tokenizer.path)
        if found := differences(old, asked, MAY_CHANGE):
            raise ConfigError(
                f"work directory {workdir} was made by another config: {'; '.join(found[:4])}; "
                "use another --workdir or the same settings"
            )
    origin = None
    if config.init.source and not recorded.exists():
        origin = open_origin(config.init.source)
        if _lacks_tokenizer(config):
            config = _with_tokenizer(config, os.fspath(origin.tokenizer))
        if config.model.vocab_size == 0:
            config = _with_vocabulary(config, origin.vocab_size)  # 0: it has no config either
    corpus = load_corpus(config, workdir)
    if config.train.steps == 0:
        steps = corpus.order(config).num_steps(config.train.epochs)
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))
    if config.model.vocab_size == 0:
        config = _with_vocabulary(config, corpus.tokenizer.vocab_size)
    elif config.model.vocab_size < corpus.tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size must hold the tokenizer's {corpus.tokenizer.vocab_size} ids, got "
            f"{config.model.vocab_size}; raise it or set it to 0"
        )
    if config.model.uncounted_id not in (-1, corpus.tokenizer.ids.slack):
        raise ConfigError(
            f"model.uncounted_id must be slack's id, {corpus.tokenizer.ids.slack}, or -1 (all "
            f"slots count), got {config.model.uncounted_id}"
        )
    if origin is not None:
        origin.check(config.model)  # before the directory is claimed for these settings
    if jax.process_index() == 0:
        save_config(workdir, config)
    return config, corpus


def _lacks_tokenizer(config: Config) -> bool:
    return config.data.tokenizer.kind == "huggingface" and not config.data.tokenizer.path


def _with_tokenizer(config: Config, path: str) -> Config:
    tokenizer = dataclasses.replace(config.data.tokenizer, path=path)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=tokenizer))


def _with_vocabulary(config: Config, size: int) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))
