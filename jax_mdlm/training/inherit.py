"""What a run takes over from the model that it begins from: the meaning of its token ids.

Parameters mean something only together with the tokenizer, the special ids, the template and the
collapse map that they were trained with. With others a run trains on, its loss falls, and what it
knew is lost without a word. So `init.from` brings them along, and settings that contradict them are
refused.
"""

import dataclasses

from jax_mdlm.config import Config, ConfigError, TokenizerConfig
from jax_mdlm.conversion import Origin
from jax_mdlm.data.tokenizer import read_tokenizer, same_tokens

_ROLES = ("mask_id", "slack_id", "pad_id", "eos_id", "terminator_id")


def inherit(config: Config, origin: Origin) -> tuple[Config, str]:
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
    config = adopt(config, told)
    parts = []
    if origin.has_tokenizer:
        parts.append(f"tokenizer ({config.data.tokenizer.kind}) and special ids")
    if origin.was_taught and not config.data.pretraining:
        parts.append(f"template {config.data.template}")
    if told.objective.slack_max > 0:
        parts.append(f"collapse map {config.objective.collapse}")
    return config, f"begins from {origin.path}: parameters" + "".join(f", {part}" for part in parts)


def adopt(config: Config, told: Config) -> Config:
    """Fills in what was left open: tokenizer, special ids, size of the vocabulary.

    Args:
      config: As asked for.
      told: Of the origin; of a run that is resumed, its own as recorded.
    """
    asked, theirs = config.data.tokenizer, told.data.tokenizer
    if not asked.path and (names_none(asked) or asked.kind == theirs.kind):
        asked = dataclasses.replace(
            asked, kind=theirs.kind, path=theirs.path, vocab_size=theirs.vocab_size
        )
    ids = {role: getattr(theirs, role) for role in _ROLES if getattr(asked, role) == -1}
    data = dataclasses.replace(config.data, tokenizer=dataclasses.replace(asked, **ids))
    config = dataclasses.replace(config, data=data)
    return with_vocabulary(config, config.model.vocab_size or told.model.vocab_size)


def with_vocabulary(config: Config, size: int) -> Config:
    """The settings with another `model.vocab_size`."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


def names_none(tokenizer: TokenizerConfig) -> bool:
    """Whether settings leave the tokenizer to `init.from`."""
    return tokenizer.kind == "huggingface" and not tokenizer.path


def _contradictions(
    config: Config, told: Config, origin: Origin
) -> list[tuple[str, object, object]]:
    """Paths of settings that differ where they must not, with both values: theirs, ours."""
    asked, theirs = config.data.tokenizer, told.data.tokenizer
    pairs: list[tuple[str, object, object]] = []
    if origin.has_tokenizer and not (asked.path or names_none(asked)):
        pairs.append(("data.tokenizer.kind", theirs.kind, asked.kind))
    for role in _ROLES:
        here, there = getattr(asked, role), getattr(theirs, role)
        if -1 not in (here, there):
            pairs.append((f"data.tokenizer.{role}", there, here))
    if origin.was_taught and not (config.data.pretraining or told.data.pretraining):
        pairs.append(("data.template", told.data.template, config.data.template))
    if told.objective.slack_max > 0:
        pairs.append(("objective.collapse", told.objective.collapse, config.objective.collapse))
    return [pair for pair in pairs if pair[1] != pair[2]]


def _check_tokenizer(asked: TokenizerConfig, theirs: TokenizerConfig, origin: Origin) -> None:
    """Raises ConfigError where ids would not mean what they meant when the origin was trained."""
    if not origin.has_tokenizer and names_none(asked):
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
