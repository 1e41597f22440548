"""Keyboard and Ctrl-C of a terminal in which answers appear: line editing, silence, interrupts."""

import contextlib
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
