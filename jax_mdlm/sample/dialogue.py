"""A conversation, whoever shows it: what is asked, how a prompt fits, the answer as it is made.

Enters: a run and messages. Leaves: frames of a canvas, and the turns that are remembered. `chat`
shows them in a terminal, `web` in a browser, `notebook` below a cell; the neighbour below is
`sampling.stream`.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import jax
from etils import epath

from jax_mdlm import command
from jax_mdlm.config import ConfigError
from jax_mdlm.containers import Region, SampleState
from jax_mdlm.data.chat import Template, render_prompt, template_of
from jax_mdlm.data.corpus import open_tokenizer, unfixed
from jax_mdlm.data.examples import Message
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.sampling import (
    Answer,
    SampleOptions,
    make_canvas,
    options_from,
    read_answers,
    response_end,
    stream,
)
from jax_mdlm.sharding import Layout, make_layout
from jax_mdlm.training.run import Run, load_for_sampling
from jax_mdlm.workdir import load_config

Turn = tuple[Message, Message]  # what was asked, what was answered
_Every = Callable[[], int]


@dataclasses.dataclass(frozen=True)
class Question:
    """A message that is ready to be answered.

    Attributes:
      message: What was asked.
      ids: The prompt in tokens, with the turns that fit.
      kept: These turns.
      left_out: How many older ones did not fit.
      key: What its answer is drawn from.
    """

    message: Message
    ids: list[int]
    kept: list[Turn]
    left_out: int
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class Frame:
    """A canvas on its way.

    Attributes:
      answer: What stands in it; finished in the last frame.
      block: Slots that are being decoded.
    """

    answer: Answer
    block: range


class Dialogue:
    """How messages are answered. It remembers programs that were compiled, and no conversation."""

    def __init__(
        self, run: Run, options: SampleOptions, template: Template, layout: Layout | None
    ) -> None:
        """Takes what answers.

        Args:
          run: Parameters and tokenizer, as from `load_for_sampling`.
          options: How; every prompt bucket is compiled once.
          template: How a conversation is written. One with `slots` was learned with a prompt that
            fills them, so each message is answered alone.
          layout: Where the parameters are; None: one device.
        """
        self.run, self.options, self.template = run, options, template
        self._layout = layout
        self._compiled: set[Region] = set()

    @property
    def answers_alone(self) -> bool:
        """Whether the model knows single messages only."""
        return bool(self.template.slots)

    def with_settings(self, *overrides: str) -> "Dialogue":
        """The same parameters with other `--config.sample.NAME=VALUE`.

        Raises:
          ConfigError: a setting cannot be used, or decides how parameters are read.
        """
        old, options = self.run.config, self.options
        config = command.apply_overrides(old, overrides, section="sample")
        if (config.mesh, config.sample.weights) != (old.mesh, old.sample.weights):
            raise ConfigError(
                "sample.weights and mesh settings say how parameters are read, and they have been; "
                "open another dialogue"
            )
        run = dataclasses.replace(self.run, config=config)
        options = options_from(config.sample, options.collapse, options.ids, trace=options.trace)
        return Dialogue(run, options, self.template, self._layout)

    def ask(self, message: str, turns: Sequence[Turn], number: int) -> Question:
        """A message with as much of the conversation as fits.

        Args:
          message: Text.
          turns: What was said before, oldest first.
          number: Of the message in its conversation; it draws from `fold_in(sample.seed, number)`.

        Raises:
          ConfigError: a message that the tokenizer or the model cannot take.
        """
        tokenizer, config = self.run.tokenizer, self.run.config
        asked = Message("user", message)
        length = config.model.max_length
        ids, kept = fit(tokenizer, self.template, turns, asked, self.options, length)
        key = jax.random.fold_in(jax.random.key(config.sample.seed), number)
        return Question(asked, ids, kept, len(turns) - len(kept), key)

    def is_compiled(self, question: Question) -> bool:
        """Whether there is a program for a prompt of this width."""
        return self._region(question) in self._compiled

    def compile(self, question: Question) -> float:
        """Makes one call with a prompt of a new width, so that no answer's time holds that.

        Returns:
          The seconds that whoever asked waited for it; 0 where there is a program.
        """
        if self.is_compiled(question):
            return 0.0
        began = time.perf_counter()
        next(self._stream(question, lambda: 1))
        self._compiled.add(self._region(question))
        return time.perf_counter() - began

    def frames(self, question: Question, every: _Every = lambda: 1) -> Iterator[Frame]:
        """The canvas while it is denoised, the finished one at the end.

        Args:
          question: From `ask`.
          every: Is asked for the number of model calls before the next frame.
        """
        size = self.options.settings.block_length
        for state in self._stream(question, every):
            (answer,) = read_answers(state, 1, self.options)
            first = int(state.block) * size
            yield Frame(answer, range(first, first + size))

    def text(self, answer: Answer) -> str:
        """The answer's text."""
        return self.run.tokenizer.decode(answer.tokens)

    def remember(self, question: Question, text: str) -> list[Turn]:
        """The conversation with this turn."""
        if self.answers_alone:
            return []
        return [*question.kept, (question.message, Message("assistant", text))]

    def _region(self, question: Question) -> Region:
        length = self.run.config.model.max_length
        return make_canvas([question.ids], self.options, max_length=length).region

    def _stream(self, question: Question, every: _Every) -> Iterator[SampleState]:
        run = self.run
        return stream(
            run.params,
            run.config.model,
            [question.ids],
            self.options,
            question.key,
            every=every,
            layout=self._layout,
        )


def open_dialogue(workdir: epath.PathLike, overrides: Sequence[str] = ()) -> Dialogue:
    """Opens a work directory for conversations whose canvas is shown with its confidence.

    Args:
      workdir: Of a training run or an import.
      overrides: `--config.sample.NAME=VALUE` and `--config.mesh.NAME=VALUE`.

    Raises:
      ConfigError: nothing usable is there, or a setting cannot be used.
    """
    workdir = epath.Path(workdir)
    stored = load_config(workdir)
    config = command.apply_overrides(
        stored, overrides, section="sample", unfixed=lambda: unfixed(stored.data, workdir)
    )
    tokenizer = open_tokenizer(config.data, workdir)
    options = options_from(config.sample, config.objective.collapse, tokenizer.ids, trace=True)
    command.use_compilation_cache(workdir / "compilation_cache")
    layout = make_layout(config.mesh)
    run = load_for_sampling(workdir, config, layout)
    return Dialogue(run, options, template_of(config.data, tokenizer), layout)


def fit(
    tokenizer: Tokenizer,
    template: Template,
    turns: Sequence[Turn],
    message: Message,
    options: SampleOptions,
    max_length: int,
) -> tuple[list[int], list[Turn]]:
    """The prompt, with as many of the newest turns as leave room for the answer.

    Args:
      tokenizer: Encodes.
      template: Writes.
      turns: What was said, oldest first.
      message: What is to be answered.
      options: `length` and `limit`: turns also give way to blocks that may be appended.
      max_length: Slots of prompt and answer.

    Returns:
      (ids, the turns that are in them)

    Raises:
      ConfigError: the message does not fit alone.
    """
    length = options.settings.length
    limit = max(length, options.settings.limit)
    for first in range(len(turns) + 1):
        kept = list(turns[first:])
        told = [said for turn in kept for said in turn]
        ids = render_prompt(tokenizer, [*told, message], template)
        if len(ids) + (limit if kept else length) <= max_length:
            return ids, kept
    raise ConfigError(
        f"the message takes {len(ids)} slots, model.max_length={max_length} leaves "
        f"{max(max_length - length, 0)} beside sample.length={length}; shorten it"
    )


def left_out(question: Question, max_length: int) -> str:
    """What to say of turns that did not fit; empty where all did."""
    if not question.left_out:
        return ""
    what = "turn is" if question.left_out == 1 else f"{question.left_out} turns are"
    return f"the oldest {what} left out: prompt and answer must fit model.max_length={max_length}"


def status(answer: Answer, options: SampleOptions) -> str:
    """The line below a canvas: how far it is."""
    masked = int((answer.response == options.ids.mask).sum())
    calls = f"{answer.calls} call" + ("" if answer.calls == 1 else "s")
    return f"{calls}, {masked} masked"


def report(answer: Answer, seconds: float, compiling: float, options: SampleOptions) -> str:
    """The line below an answer: what it cost.

    Args:
      answer: Finished.
      seconds: Of its calls.
      compiling: Seconds before them, see `Dialogue.compile`.
      options: How it was decoded.
    """
    end = response_end(answer.response, options.ids)
    slack = int((answer.response[:end] == options.ids.slack).sum())
    parts = [
        f"{answer.calls} call" + ("" if answer.calls == 1 else "s"),
        f"{seconds:.2f} s" + (f" + {compiling:.1f} s compiling" if compiling >= 0.05 else ""),
        f"{len(answer.tokens) / max(seconds, 1e-9):,.0f} tokens/s",
        f"{slack} slack",
    ]
    if end == len(answer.response):
        parts.append(f"no end in {end} slots")
    return ", ".join(parts)
