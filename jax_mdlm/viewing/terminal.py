"""The terminal of a conversation: line editing, encoding, Ctrl-C, a keyboard that stays silent."""

import contextlib
import io
import signal
import sys
from collections.abc import Callable, Iterator


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
