"""A work directory made this run's: the config resolved, data and tokenizer opened.

Parameters mean something only together with the tokenizer, the special ids, the template and the
collapse map that they were trained with. With others a run trains on, its loss falls, and what it
knew is lost without a word. So `init.from` brings them along, and settings that contradict them are
refused rather than overruled: nobody reads a line among twenty. A setting that is open is filled
in. Weights that were never trained here have no template of their own, so any can be taught to
them.
"""

import dataclasses

import jax
from etils import epath

from jax_mdlm import command
from jax_mdlm.config import Config, ConfigError, TokenizerConfig, differences
from jax_mdlm.conversion import Origin, open_origin
from jax_mdlm.data.corpus import Corpus, load_corpus, tokenizer_folder
from jax_mdlm.data.tokenizer import forget, read_tokenizer, same_tokens
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
_ROLES = ("mask_id", "slack_id", "pad_id", "eos_id", "terminator_id")


def claim(config: Config, workdir: epath.Path) -> tuple[Config, Corpus]:
    """Opens data and tokenizer, and settles every setting that was left open.

    Nothing but the tokenizer is written: the directory is this run's once its config is saved.

    Raises:
      ConfigError: data, tokenizer or parameters cannot be used, or another run lives there.
    """
    # What is recorded here, or comes along with the parameters, is filled in.
    check_place(workdir)
    check_finished(workdir)
    recorded = workdir / "config.json"
    origin = None
    if recorded.exists():
        config = _resumed(config, load_config(workdir), workdir)
    else:
        if jax.process_index() == 0:
            # The tokenizer of an attempt that was refused would win over these settings.
            forget(tokenizer_folder(workdir))
        if config.init.source:
            config, origin = take_over(config, workdir)
    # Data and tokenizer decide the rest.
    corpus = load_corpus(config, workdir, command.note)
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
    return config, corpus


def take_over(config: Config, folder: epath.Path) -> tuple[Config, Origin]:
    """What `init.from` decides is filled in, and its tokenizer kept in `folder / "tokenizer"`.

    Raises:
      ConfigError: settings contradict those of the origin.
    """
    origin = open_origin(config.init.source)
    named = config.data.tokenizer.path
    config, line = _inherit(config, origin)
    if jax.process_index() == 0:
        command.note(line)
        if not named:
            origin.keep_tokenizer(folder)
    return config, origin


def _resumed(config: Config, old: Config, workdir: epath.Path) -> Config:
    """The settings of a run that goes on; `old` is what its work directory has recorded."""
    if old.init.source or _names_none(config.data.tokenizer):
        config = _adopt(config, old)
    elif config.model.vocab_size == 0:
        config = _with_vocabulary(config, old.model.vocab_size)
    if found := differences(old, config, MAY_CHANGE):
        raise ConfigError(
            f"work directory {workdir} was made by another config: {'; '.join(found[:4])}; "
            "use the same settings, or begin a run of its own from it: another --workdir and "
            f"--config.init.from={workdir}"
        )
    return config


def _inherit(config: Config, origin: Origin) -> tuple[Config, str]:
    """The settings of a new run, with what its origin decides filled in.

    Args:
      config: As asked for. A tokenizer of kind `huggingface` without a path means the origin's.
      origin: What `init.from` names.

    Returns:
      The settings, and a line that says what was taken over.

    Raises:
      ConfigError: settings contradict the origin's (all of them are named), or no tokenizer is
        there that belongs to its parameters.
    """
    told = origin.told
    if told is None:
        return config, f"begins from {origin.path}, which says nothing of its tokenizer or template"
    if wrong := _contradictions(config, told, origin):
        shown = "; ".join(f"{path}={theirs} there, {ours} here" for path, theirs, ours in wrong)
        flags = " ".join(f"--config.{path}={theirs}" for path, theirs, _ in wrong)
        raise ConfigError(
            f"init.from={origin.path} gives its parameters another meaning than these settings: "
            f"{shown}; set {flags}, or train without init.from"
        )
    _check_tokenizer(config.data.tokenizer, told.data.tokenizer, origin)
    config = _adopt(config, told)
    parts = []
    if origin.has_tokenizer:
        parts.append(f"tokenizer ({config.data.tokenizer.kind}) and special ids")
    if origin.was_taught and not config.data.pretraining:
        parts.append(f"template {config.data.template}")
    if told.objective.slack_max > 0:
        parts.append(f"collapse map {config.objective.collapse}")
    return config, f"begins from {origin.path}: parameters" + "".join(f", {part}" for part in parts)


def _adopt(config: Config, told: Config) -> Config:
    """Fills in what was left open: tokenizer, special ids, size of the vocabulary.

    Args:
      config: As asked for.
      told: Of the origin; of a run that is resumed, its own as recorded.
    """
    asked, theirs = config.data.tokenizer, told.data.tokenizer
    if not asked.path and (_names_none(asked) or asked.kind == theirs.kind):
        asked = dataclasses.replace(
            asked, kind=theirs.kind, path=theirs.path, vocab_size=theirs.vocab_size
        )
    ids = {role: getattr(theirs, role) for role in _ROLES if getattr(asked, role) == -1}
    data = dataclasses.replace(config.data, tokenizer=dataclasses.replace(asked, **ids))
    config = dataclasses.replace(config, data=data)
    return _with_vocabulary(config, config.model.vocab_size or told.model.vocab_size)


def _with_vocabulary(config: Config, size: int) -> Config:
    """The settings with another `model.vocab_size`."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


def _names_none(tokenizer: TokenizerConfig) -> bool:
    """Whether settings leave the tokenizer to `init.from`."""
    return tokenizer.kind == "huggingface" and not tokenizer.path


def _contradictions(
    config: Config, told: Config, origin: Origin
) -> list[tuple[str, object, object]]:
    """Paths of settings that differ where they must not, with both values: theirs, ours."""
    asked, theirs = config.data.tokenizer, told.data.tokenizer
    pairs: list[tuple[str, object, object]] = []
    if origin.has_tokenizer and not (asked.path or _names_none(asked)):
        pairs.append(("data.tokenizer.kind", theirs.kind, asked.kind))
    for role in _ROLES:
        here, there = getattr(asked, role), getattr(theirs, role)
        if -1 not in (here, there):
            pairs.append((f"data.tokenizer.{role}", there, here))
    if origin.was_taught and not (config.data.pretraining or told.data.pretraining):
        pairs.append(("data.template", told.data.template, config.data.template))
        # A model that knows such tokens would learn their letters instead. To refuse them is safe.
        kept, own = told.data.special_in_text, config.data.special_in_text
        if (kept, own) == ("keep", "text"):
            pairs.append(("data.special_in_text", kept, own))
    if told.objective.slack_max > 0:
        pairs.append(("objective.collapse", told.objective.collapse, config.objective.collapse))
    return [pair for pair in pairs if pair[1] != pair[2]]


def _check_tokenizer(asked: TokenizerConfig, theirs: TokenizerConfig, origin: Origin) -> None:
    """Raises ConfigError where ids would not mean what they meant when the origin was trained."""
    if not origin.has_tokenizer and _names_none(asked):
        raise ConfigError(
            f"init.from={origin.path} has no tokenizer; name its model's with "
            "--config.data.tokenizer.path=FOLDER (or a hub id)"
        )
    if not origin.has_tokenizer and not asked.path:
        raise ConfigError(
            f"init.from={origin.path} has no tokenizer, and one that is trained from these rows "
            "would give other meanings to its ids; set --config.data.tokenizer.kind=huggingface "
            "and --config.data.tokenizer.path=FOLDER, the tokenizer that its weights were trained "
            "with"
        )
    if not (origin.has_tokenizer and asked.path):
        return
    if not same_tokens(read_tokenizer(asked), read_tokenizer(theirs, origin.tokenizer)):
        raise ConfigError(
            f"data.tokenizer.path={asked.path} must have the tokens of init.from={origin.path}, it "
            "has others, so that ids would change their meaning; leave data.tokenizer.path empty "
            "to take that tokenizer over"
        )
