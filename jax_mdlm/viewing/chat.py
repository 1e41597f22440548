"""A conversation in the terminal, the canvas shown while it is denoised: `sample --chat`.

Enters: a dialogue and what the user types. Leaves: answers on the screen. `view` draws the canvas,
`dialogue` makes the answers.
"""

import contextlib
import io
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator

import jax
from rich.console import Console
from rich.live import Live
from rich.text import Text

from jax_mdlm.config import ConfigError
from jax_mdlm.sampling import Answer
from jax_mdlm.viewing.dialogue import Dialogue, PreparedMessage, Turn, cost_line, left_out, status
from jax_mdlm.viewing.view import CanvasView, Pace, Reader, escape_controls

PROMPT = "you> "
HELP = """\
/new     forget the conversation
/quit    leave, as does Ctrl-D
/help    these lines
Ctrl-C   stop an answer; it is not remembered
While an answer is made: ░ is masked, · is slack, what the last calls committed is green."""


def converse(dialogue: Dialogue) -> None:
    """Asks, answers, and asks again, until the user leaves."""
    edit_lines()
    replace_what_cannot_be_shown()
    conversation = Conversation(dialogue, Console(highlight=False))
    model, slots = dialogue.model, dialogue.model.template.slots
    conversation.note(f"{model.config.name} at step {model.step:,}; /help lists the commands")
    if dialogue.answers_alone:
        conversation.note(
            f"every message is answered alone: this model knows prompts of {slots} slots"
        )
    while True:
        try:
            line = input(PROMPT).strip()
            line.encode()  # in a C locale, bytes that are no UTF-8 come as half characters
        except (EOFError, KeyboardInterrupt):
            print()  # leaves the line that was being typed
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
    """What was said, and how the next answer is shown."""

    def __init__(self, dialogue: Dialogue, console: Console) -> None:
        self.turns: list[Turn] = []
        self._dialogue, self._console = dialogue, console
        self._reader = Reader(dialogue.model.tokenizer)
        self._number = 0

    def note(self, text: str) -> None:
        """Prints what is neither question nor answer."""
        self._console.print(Text(escape_controls(text), "dim"))

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
        dialogue = self._dialogue
        question = dialogue.ask(message, self.turns, self._number)
        self._number += 1
        if gone := left_out(question, dialogue.model.config.model.max_length):
            self.note(gone)
        answer, seconds, compiling = self._generate(question)
        text = dialogue.text(answer)
        self._console.print(
            Text(escape_controls(text)) if text.strip() else Text("(no text)", "dim")
        )
        self.note(cost_line(answer, seconds, compiling, dialogue.model.options) + "\n")
        self.turns = dialogue.remember(question, text)

    def _generate(self, question: PreparedMessage) -> tuple[Answer, float, float]:
        """The answer, the seconds of its calls, and those of compiling before them."""
        dialogue, pace, view = self._dialogue, Pace(), CanvasView()
        with noting_interrupts() as interrupted, silent_keyboard():
            compiling = 0.0
            if not dialogue.is_compiled(question):
                with self._console.status("compiling..."):
                    compiling = dialogue.compile(question)
            answer, shown, began = None, 0, time.perf_counter()
            with Live(view, console=self._console, auto_refresh=False, transient=True) as live:
                for frame in dialogue.frames(question, pace):
                    if interrupted():
                        raise KeyboardInterrupt
                    with pace.frame():
                        answer = frame.answer
                        canvas, focus = self._reader.canvas(answer, since=shown, block=frame.block)
                        view.update(canvas, focus, status(answer, dialogue.model.options))
                        live.refresh()
                        shown = answer.calls
            assert answer is not None
            return answer, time.perf_counter() - began, compiling


def edit_lines() -> None:
    """Gives `input` cursor keys and a history, where there is readline."""
    try:
        import readline
    except ImportError:  # Windows
        return
    # Python switches it off: each line of a pasted text would be a message of its own.
    readline.parse_and_bind("set enable-bracketed-paste on")


def replace_what_cannot_be_shown() -> None:
    """A terminal that does not speak UTF-8 gets question marks; without this, an exception."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


@contextlib.contextmanager
def noting_interrupts() -> Iterator[Callable[[], bool]]:
    """Notes the first Ctrl-C, so that it ends no frame halfway; the second raises as usual.

    Yields:
      A function that says whether it was pressed.
    """
    pressed = False

    def notice(*_: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, notice)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def silent_keyboard() -> Iterator[None]:
    """Keys are not echoed into the canvas; what is typed waits for the next prompt."""
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    silent = list(before)
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
