"""How a model is prompted and decoded: everything of it but its parameters.

Enters: a path and a config. Leaves: `Setup`, with which prompts are encoded and settings checked,
so that what can be refused is refused before parameters are read. `mdlm` is the door above.
"""

import dataclasses
import difflib
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from etils import epath

from jax_mdlm.config import Config, ConfigError, SampleConfig, validate
from jax_mdlm.conversion.source import Source, is_published, open_source
from jax_mdlm.data.chat import Template, render_prompt, template_of
from jax_mdlm.data.corpus import open_tokenizer, tokenizer_folder
from jax_mdlm.data.examples import Message
from jax_mdlm.data.tokenizer import Tokenizer, holds_tokenizer, is_kept, read_tokenizer
from jax_mdlm.sampling import SampleOptions, Strategy, options_from
from jax_mdlm.storage import given_path, reaching
from jax_mdlm.workdir import load_config

# A text, messages (`Message`, or objects with role and content), or token ids.
Prompt = str | Sequence[Message] | Sequence[Mapping[str, Any]] | Sequence[int]


@dataclasses.dataclass(frozen=True)
class Setup:
    """How a model is prompted and decoded: everything but its parameters.

    Attributes:
      path: Where it is kept.
      config: Of its training, or of its import; `sample` says how it is decoded.
      tokenizer: Its tokenizer.
      template: How its prompts are written.
      source: The published weights; None: a work directory.
      trace: Whether answers carry the canvas after each call.
      strategy: Which slots a call fixes; None: the one that `sample.strategy` names.
    """

    path: epath.Path
    config: Config
    tokenizer: Tokenizer
    template: Template
    source: Source | None = None
    trace: bool = False
    strategy: Strategy | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for settings that cannot work together."""
        _ = self.options

    @property
    def settings(self) -> SampleConfig:
        """How it is decoded."""
        return self.config.sample

    @functools.cached_property
    def options(self) -> SampleOptions:
        """What the sampler is given."""
        return options_from(
            self.settings,
            self.config.objective.collapse,
            self.tokenizer.ids,
            strategy=self.strategy,
            trace=self.trace,
        )

    def with_settings(self, **settings: Any) -> Self:
        """The same with other settings of the sampler, e.g. `steps=8, cache="dual"`.

        Args:
          settings: Fields of `SampleConfig`; `strategy` may be a name or a `Strategy` of one's own.

        Raises:
          ConfigError: there is no such setting, or it cannot be used.

        Examples:
          >>> import jax_mdlm
          >>> model = jax_mdlm.load("runs/quickstart")
          >>> quick = model.with_settings(steps=2, temperature=0.5)
          >>> quick.settings.steps, quick.params is model.params
          (2, True)
        """
        strategy = None if "strategy" in settings else self.strategy
        if isinstance(settings.get("strategy"), Strategy):
            strategy = settings.pop("strategy")
        names = [field.name for field in dataclasses.fields(SampleConfig)]
        for name in settings:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
                raise ConfigError(f"{name} must be a setting of the sampler, it is none; {meant}")
        sample = dataclasses.replace(self.settings, **settings)
        config = dataclasses.replace(self.config, sample=sample)
        return dataclasses.replace(self, strategy=strategy)._configured(config)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids after which the response follows; ids stay as they are.

        Raises:
          ConfigError: a message that the tokenizer or the template cannot take.
        """
        if not isinstance(prompt, str) and all(isinstance(one, int | np.integer) for one in prompt):
            return [int(one) for one in prompt]  # type: ignore[arg-type]
        return render_prompt(self.tokenizer, prompt, self.template)  # type: ignore[arg-type]

    def _configured(self, config: Config) -> Self:
        return dataclasses.replace(self, config=validate(config))


def open_setup(where: epath.PathLike | Source, config: Config | None = None) -> Setup:
    """Everything of a model but its parameters.

    Args:
      where: A work directory, a folder of published weights, or one that is open already.
      config: Instead of the one that is kept there.

    Raises:
      ConfigError: nothing usable is there, or it has no tokenizer.
    """
    if not isinstance(where, Source):
        path = os.fspath(where)
        with reaching(path):
            if is_published(path):
                return open_setup(open_source(path), config)
            folder = given_path(path)
            config = config or load_config(folder)
            tokenizer = _open_tokenizer(folder, config)
        return Setup(folder, config, tokenizer, template_of(config.data, tokenizer))
    folder = where.folder
    config = config or where.run_config(folder.name)
    data = config.data
    with reaching(folder):
        kept = folder if holds_tokenizer(folder) else None
        if not (kept or data.tokenizer.path):
            raise ConfigError(
                f"{folder} has no tokenizer; name its model's with "
                "--config.data.tokenizer.path=FOLDER (or a hub id), or put tokenizer.json beside "
                "its weights"
            )
        tokenizer = read_tokenizer(data.tokenizer, kept, data.special_in_text)
    if not kept:
        _check_size(folder, tokenizer, config)
    return Setup(folder, config, tokenizer, template_of(data, tokenizer), where)


def _open_tokenizer(workdir: epath.Path, config: Config) -> Tokenizer:
    tokenizer = open_tokenizer(config.data, workdir)
    if not is_kept(tokenizer_folder(workdir)):
        _check_size(workdir, tokenizer, config)
    return tokenizer


def _check_size(folder: epath.Path, tokenizer: Tokenizer, config: Config) -> None:
    """Refuses another model's tokenizer: of an id without a row the lookup takes the last row."""
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"{folder} has {config.model.vocab_size} rows of the vocabulary, the tokenizer "
            f"{tokenizer.vocab_size} ids; name its model's with --config.data.tokenizer.path"
        )
