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
from jax_mdlm.containers import Region
from jax_mdlm.data.examples import Message
from jax_mdlm.mdlm import Frame, Mdlm
from jax_mdlm.opening import configure, read_kept
from jax_mdlm.sampling import Answer, SampleOptions, make_canvas, response_end
from jax_mdlm.setup import Setup

Turn = tuple[Message, Message]  # what was asked, what was answered
_Every = Callable[[], int]


@dataclasses.dataclass(frozen=True)
class PreparedMessage:
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


class Dialogue:
    """How messages are answered. It remembers programs that were compiled, and no conversation."""

    def __init__(self, model: Mdlm) -> None:
        """Takes what answers; every width of prompts is compiled once.

        A template with `slots` was learned with a prompt that fills them, so each message is
        answered alone.
        """
        self.model = model
        self._compiled: set[Region] = set()

    @property
    def answers_alone(self) -> bool:
        """Whether the model knows single messages only."""
        return bool(self.model.template.slots)

    def with_settings(self, *overrides: str) -> "Dialogue":
        """The same parameters with other `--config.sample.NAME=VALUE`.

        Raises:
          ConfigError: a setting cannot be used, or decides how parameters are read.
        """
        config = command.apply_overrides(self.model.config, overrides, section="sample")
        return Dialogue(self.model.with_settings(**dataclasses.asdict(config.sample)))

    def ask(self, message: str, turns: Sequence[Turn], number: int) -> PreparedMessage:
        """A message with as much of the conversation as fits.

        Args:
          message: Text.
          turns: What was said before, oldest first.
          number: Of the message in its conversation; it draws from `fold_in(sample.seed, number)`.

        Raises:
          ConfigError: a message that the tokenizer or the model cannot take.
        """
        asked = Message("user", message)
        ids, kept = fit(self.model, turns, asked)
        key = jax.random.fold_in(jax.random.key(self.model.settings.seed), number)
        return PreparedMessage(asked, ids, kept, len(turns) - len(kept), key)

    def is_compiled(self, question: PreparedMessage) -> bool:
        """Whether there is a program for a prompt of this width."""
        return self._region(question) in self._compiled

    def compile(self, question: PreparedMessage) -> float:
        """Makes one call with a prompt of a new width, so that no answer's time holds that.

        Returns:
          The seconds that whoever asked waited for it; 0 where there is a program.
        """
        if self.is_compiled(question):
            return 0.0
        began = time.perf_counter()
        next(self.frames(question))
        self._compiled.add(self._region(question))
        return time.perf_counter() - began

    def frames(self, question: PreparedMessage, every: _Every = lambda: 1) -> Iterator[Frame]:
        """The canvas while it is denoised, the finished one at the end.

        Args:
          question: From `ask`.
          every: Is asked for the number of model calls before the next frame.
        """
        return self.model.stream(question.ids, every=every, key=question.key)

    def text(self, answer: Answer) -> str:
        """The answer's text."""
        return self.model.tokenizer.decode(answer.tokens)

    def remember(self, question: PreparedMessage, text: str) -> list[Turn]:
        """The conversation with this turn."""
        if self.answers_alone:
            return []
        return [*question.kept, (question.message, Message("assistant", text))]

    def _region(self, question: PreparedMessage) -> Region:
        length = self.model.config.model.max_length
        return make_canvas([question.ids], self.model.options, max_length=length).region


def open_dialogue(workdir: epath.PathLike, overrides: Sequence[str] = ()) -> Dialogue:
    """Opens a work directory for conversations whose canvas is shown with its confidence.

    Args:
      workdir: Of a training run or an import.
      overrides: `--config.sample.NAME=VALUE` and `--config.mesh.NAME=VALUE`.

    Raises:
      ConfigError: nothing usable is there, or a setting cannot be used.
    """
    return Dialogue(read_kept(dataclasses.replace(configure(workdir, overrides), trace=True), 1))


def fit(model: Setup, turns: Sequence[Turn], message: Message) -> tuple[list[int], list[Turn]]:
    """The prompt, with as many of the newest turns as leave room for the answer.

    Turns also give way to blocks that may be appended (`sample.limit`).

    Args:
      model: Who is asked.
      turns: What was said, oldest first.
      message: What is to be answered.

    Returns:
      (ids, the turns that are in them)

    Raises:
      ConfigError: the message does not fit alone.
    """
    settings, max_length = model.settings, model.config.model.max_length
    limit = max(settings.length, settings.limit)
    for first in range(len(turns) + 1):
        kept = list(turns[first:])
        told = [said for turn in kept for said in turn]
        ids = model.encode([*told, message])
        if len(ids) + (limit if kept else settings.length) <= max_length:
            return ids, kept
    raise ConfigError(
        f"the message takes {len(ids)} slots, model.max_length={max_length} leaves "
        f"{max(max_length - settings.length, 0)} beside sample.length={settings.length}; shorten it"
    )


def left_out(question: PreparedMessage, max_length: int) -> str:
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


def cost_line(answer: Answer, seconds: float, compiling: float, options: SampleOptions) -> str:
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
