"""A conversation in the terminal, the canvas shown while it is denoised: `sample --chat`.

Enters: a run and what the user types. Leaves: answers on the screen. `view` draws the canvas; the
neighbour below is `sampling.stream`.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence

import jax
from rich.console import Console
from rich.live import Live
from rich.text import Text

from jax_mdlm.config import ConfigError
from jax_mdlm.containers import Region, SampleState
from jax_mdlm.data.chat import Template, render_prompt
from jax_mdlm.data.examples import Message
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.sample.terminal import (
    edit_lines,
    noting_interrupts,
    replace_what_cannot_be_shown,
    silent_keyboard,
)
from jax_mdlm.sample.view import CanvasView, Pace, Reader, plain
from jax_mdlm.sampling import (
    Answer,
    SampleOptions,
    make_canvas,
    read_answers,
    response_end,
    stream,
)
from jax_mdlm.sharding import Layout
from jax_mdlm.training.run import Run

PROMPT = "you> "
HELP = """\
/new     forget the conversation
/quit    leave, as does Ctrl-D
/help    these lines
Ctrl-C   stop an answer; it is not remembered
While an answer is made: ░ is masked, · is slack, what the last calls committed is green."""

Turn = tuple[Message, Message]  # what was asked, what was answered


def converse(run: Run, options: SampleOptions, template: Template, layout: Layout) -> None:
    """Asks, answers, and asks again, until the user leaves.

    Args:
      run: What answers; turn `n` (from 0) draws from `fold_in(sample.seed, n)`.
      options: How; every prompt bucket is compiled once.
      template: How a conversation is written. One with `slots` was learned with a prompt that
        fills them, so each message is answered alone.
      layout: Where the parameters are.
    """
    edit_lines()
    replace_what_cannot_be_shown()
    console = Console(highlight=False)
    conversation = Conversation(run, options, template, layout, console)
    conversation.note(f"{run.config.name} at step {run.step:,}; /help lists the commands")
    if template.slots:
        conversation.note(
            f"every message is answered alone: this model knows prompts of {template.slots} slots"
        )
    while True:
        try:
            line = input(PROMPT).strip()
            line.encode()  # in a C locale, bytes that are no UTF-8 come as half characters
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        except UnicodeError:
            conversation.note("that line is not text in this terminal's encoding; type it again")
            continue
        if line == "/quit":
            return
        if line == "/new":
            conversation.forget()
        elif line == "/help":
            conversation.note(HELP)
        elif re.fullmatch(r"/[a-z]+", line):
            conversation.note(f"there is no command {line}; /help lists them")
        elif line:
            try:
                conversation.ask(line)
            except ConfigError as error:
                conversation.note(str(error))
            except KeyboardInterrupt:
                conversation.note("stopped; this turn is not remembered")
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                conversation.note("the canvas does not fit into memory; /new begins a shorter one")


class Conversation:
    """What was said, and how the next answer is made and shown."""

    def __init__(
        self,
        run: Run,
        options: SampleOptions,
        template: Template,
        layout: Layout | None,
        console: Console,
    ) -> None:
        self.turns: list[Turn] = []
        self._run, self._options, self._template = run, options, template
        self._layout, self._console = layout, console
        self._reader = Reader(run.tokenizer)
        self._compiled: set[Region] = set()
        self._number = 0

    def note(self, text: str) -> None:
        """Prints what is neither question nor answer."""
        self._console.print(Text(plain(text), "dim"))

    def forget(self) -> None:
        """Begins anew; later turns still draw from numbers of their own."""
        self.turns = []
        self.note("a new conversation")

    def ask(self, message: str) -> None:
        """Answers a message and remembers both.

        Raises:
          ConfigError: a message that the tokenizer or the model cannot take.
          KeyboardInterrupt: Ctrl-C stopped the answer; nothing of the turn is remembered.
        """
        tokenizer = self._run.tokenizer
        if holds_mask(message, tokenizer):
            raise ConfigError(
                f"a message must not hold {tokenizer.token(tokenizer.ids.mask)}, which the sampler "
                "would fill in; leave it out"
            )
        asked = Message("user", message)
        ids, kept = fit(
            tokenizer,
            self._template,
            self.turns,
            asked,
            self._options,
            self._run.config.model.max_length,
        )
        left_out = len(self.turns) - len(kept)
        if left_out:
            what = "turn is" if left_out == 1 else f"{left_out} turns are"
            self.note(
                f"the oldest {what} left out: prompt and answer must fit "
                f"model.max_length={self._run.config.model.max_length}"
            )
        number, self._number = self._number, self._number + 1
        key = jax.random.fold_in(jax.random.key(self._run.config.sample.seed), number)
        answer, seconds = self._generate(ids, key)
        text = tokenizer.decode(answer.tokens)
        self._console.print(Text(plain(text)) if text.strip() else Text("(no text)", "dim"))
        self.note(report(answer, seconds, self._options) + "\n")
        if self._template.slots:
            return
        if holds_mask(text, tokenizer):
            self.note("the answer spells the mask's token; this turn is not remembered")
            return
        self.turns = [*kept, (asked, Message("assistant", text))]

    def _generate(self, ids: list[int], key: jax.Array) -> tuple[Answer, float]:
        """The answer and its seconds, without those of compiling."""
        options, pace, view = self._options, Pace(), CanvasView()
        with noting_interrupts() as interrupted, silent_keyboard():
            self._compile(ids, key)
            answer, shown, began = None, 0, time.perf_counter()
            with Live(view, console=self._console, auto_refresh=False, transient=True) as live:
                for state in self._stream(ids, key, pace):
                    if interrupted():
                        raise KeyboardInterrupt
                    with pace.frame():
                        (answer,) = read_answers(state, 1, options)
                        first = int(state.block) * options.block_length
                        block = range(first, first + options.block_length)
                        canvas, focus = self._reader.canvas(answer, since=shown, block=block)
                        view.update(canvas, focus, status(answer, options))
                        live.refresh()
                        shown = answer.calls
            assert answer is not None
            return answer, time.perf_counter() - began

    def _compile(self, ids: list[int], key: jax.Array) -> None:
        """Makes one call with a prompt of a new bucket, so that no answer's time holds that."""
        max_length = self._run.config.model.max_length
        region = make_canvas([ids], self._options, max_length=max_length).region
        if region in self._compiled:
            return
        with self._console.status("compiling..."):
            next(self._stream(ids, key, lambda: 1))
        self._compiled.add(region)

    def _stream(
        self, ids: list[int], key: jax.Array, every: Callable[[], int]
    ) -> Iterator[SampleState]:
        run = self._run
        return stream(
            run.params,
            run.config.model,
            [ids],
            self._options,
            key,
            every=every,
            layout=self._layout,
        )


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
    limit = max(options.length, options.limit)
    for first in range(len(turns) + 1):
        kept = list(turns[first:])
        told = [said for turn in kept for said in turn]
        ids = render_prompt(tokenizer, [*told, message], template)
        if len(ids) + (limit if kept else options.length) <= max_length:
            return ids, kept
    raise ConfigError(
        f"the message takes {len(ids)} slots, model.max_length={max_length} leaves "
        f"{max(max_length - options.length, 0)} beside sample.length={options.length}; shorten it"
    )


def holds_mask(text: str, tokenizer: Tokenizer) -> bool:
    """Whether a text would make the prompt one with gaps."""
    return tokenizer.ids.mask in tokenizer.encode(text)


def status(answer: Answer, options: SampleOptions) -> str:
    """The line below a canvas: how far it is."""
    masked = int((answer.response == options.ids.mask).sum())
    calls = f"{answer.calls} call" + ("" if answer.calls == 1 else "s")
    return f"{calls}, {masked} masked"


def report(answer: Answer, seconds: float, options: SampleOptions) -> str:
    """The line below an answer: what it cost."""
    end = response_end(answer.response, options.ids)
    slack = int((answer.response[:end] == options.ids.slack).sum())
    parts = [
        f"{answer.calls} call" + ("" if answer.calls == 1 else "s"),
        f"{seconds:.2f} s",
        f"{len(answer.tokens) / max(seconds, 1e-9):,.0f} tokens/s",
        f"{slack} slack",
    ]
    if end == len(answer.response):
        parts.append(f"no end in {end} slots")
    return ", ".join(parts)
