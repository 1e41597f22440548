"""A work directory made this run's: the config resolved, data and tokenizer opened."""

import dataclasses

import jax
from etils import epath

from jax_mdlm import command
from jax_mdlm.config import Config, ConfigError, differences
from jax_mdlm.conversion import open_origin
from jax_mdlm.data.corpus import Corpus, load_corpus, tokenizer_folder
from jax_mdlm.data.tokenizer import forget
from jax_mdlm.training.inherit import adopt, inherit, names_none, with_vocabulary
from jax_mdlm.workdir import check_finished, check_place, load_config

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
    """Opens data and tokenizer, and settles every setting that was left open.

    Nothing but the tokenizer is written: the directory is this run's once its config is saved.

    Raises:
      ConfigError: data, tokenizer or parameters cannot be used, or another run lives there.
    """
    check_place(workdir)
    check_finished(workdir)
    recorded = workdir / "config.json"
    origin = None
    if recorded.exists():
        config = _resumed(config, load_config(workdir), workdir)
    else:
        if jax.process_index() == 0:
            # That of an attempt which was refused later on would win over these settings.
            forget(tokenizer_folder(workdir))
        if config.init.source:
            origin = open_origin(config.init.source)
            named = config.data.tokenizer.path
            config, line = inherit(config, origin)
            if jax.process_index() == 0:
                command.note(line)
            if not named and jax.process_index() == 0:
                origin.keep_tokenizer(workdir)
    corpus = load_corpus(config, workdir)
    if config.train.steps == 0:
        steps = corpus.order(config).num_steps(config.train.epochs)
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))
    if config.model.vocab_size == 0:
        config = with_vocabulary(config, corpus.tokenizer.vocab_size)
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
    return config, corpus


def _resumed(config: Config, old: Config, workdir: epath.Path) -> Config:
    """The settings of a run that goes on; `old` is what its work directory has recorded."""
    if old.init.source or names_none(config.data.tokenizer):
        config = adopt(config, old)
    elif config.model.vocab_size == 0:
        config = with_vocabulary(config, old.model.vocab_size)
    if found := differences(old, config, MAY_CHANGE):
        raise ConfigError(
            f"work directory {workdir} was made by another config: {'; '.join(found[:4])}; "
            "use the same settings, or begin a run of its own from it: another --workdir and "
            f"--config.init.from={workdir}"
        )
    return config
