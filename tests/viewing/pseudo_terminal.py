"""A terminal for programs under test: a pseudo-terminal, and the screen that a user would see.

The screen knows what the chat may send (text, cursor up, erase, colours, modes). Anything else is
an error: an escape sequence that came out of a model would be one.
"""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

_SEQUENCE = re.compile(r"\x1b\[(\??)([0-9;]*)([A-Za-z])")


class Screen:
    """Lines of cells, the cursor, and what has scrolled away at the top."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.lines = [[" "] * width for _ in range(height)]
        self.styles = [[""] * width for _ in range(height)]
        self.scrolled: list[str] = []
        self.row = self.column = 0
        self.modes = {"25"}  # 25: the cursor is shown; 2004: pasted text comes in brackets
        self._style = ""
        self._rest = ""

    def __str__(self) -> str:
        return "\n".join("".join(line).rstrip() for line in self.lines).rstrip()

    def feed(self, data: str) -> None:
        text, self._rest = self._rest + data, ""
        at = 0
        while at < len(text):
            if text[at] == "\x1b":
                found = _SEQUENCE.match(text, at)
                if found is None:
                    if len(text) - at > 12:
                        raise AssertionError(f"escape sequence {text[at : at + 12]!r}")
                    self._rest = text[at:]
                    return
                self._control(*found.groups())
                at = found.end()
            else:
                self._character(text[at])
                at += 1

    def _character(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\b":
            self.column = max(self.column - 1, 0)
        elif character == "\n":
            self._down()
        elif character == "\a":
            pass
        elif unicodedata.category(character) == "Cc":
            raise AssertionError(f"control character {character!r}")
        else:
            wide = 2 if unicodedata.east_asian_width(character) in "WF" else 1
            wide = 0 if unicodedata.combining(character) else wide
            if self.column + wide > self.width:
                self.column = 0
                self._down()
            for cell in range(wide):
                self.lines[self.row][self.column + cell] = character if cell == 0 else ""
                self.styles[self.row][self.column + cell] = self._style
            self.column += wide

    def _down(self) -> None:
        if self.row + 1 < self.height:
            self.row += 1
            return
        self.scrolled.append("".join(self.lines.pop(0)).rstrip())
        self.styles.pop(0)
        self.lines.append([" "] * self.width)
        self.styles.append([""] * self.width)

    def _control(self, private: str, numbers: str, kind: str) -> None:
        count = int(numbers or 1) if numbers.isdigit() or not numbers else 0
        if private:
            assert kind in "hl", f"mode {numbers}{kind}"
            self.modes = self.modes | {numbers} if kind == "h" else self.modes - {numbers}
        elif kind == "m":
            self._style = "" if numbers in ("", "0") else f"{self._style}\x1b[{numbers}m"
        elif kind == "A":
            self.row = max(self.row - count, 0)
        elif kind == "C":
            self.column = min(self.column + count, self.width - 1)
        elif kind == "D":
            self.column = max(self.column - count, 0)
        elif kind == "K":
            first = 0 if numbers == "2" else self.column
            for cell in range(first, self.width):
                self.lines[self.row][cell] = " "
                self.styles[self.row][cell] = ""
        elif kind == "P":  # readline takes characters out
            line = self.lines[self.row]
            del line[self.column : self.column + count]
            line.extend(" " * (self.width - len(line)))
        else:
            raise AssertionError(f"escape sequence {numbers}{kind}")


class Session:
    """A program on a pseudo-terminal of its own."""

    def __init__(
        self,
        command: Sequence[str],
        env: dict[str, str],
        folder: Path,
        *,
        width: int = 80,
        height: int = 24,
    ) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.screen = Screen(width, height)
        self.frames: list[str] = []
        self.echoed_at_the_end = False
        self._terminal = ours
        self.process = subprocess.Popen(
            # The leader of a new session gets the terminal that it opens as its own: Ctrl-C works.
            ["sh", "-c", 'exec <"$0" >"$0" 2>&1; exec "$@"', os.ttyname(theirs), *command],
            cwd=folder,
            env=env | {"TERM": "xterm-256color"},
            start_new_session=True,
        )
        # Ours has an end as soon as nobody holds theirs: kept until the program does.
        self._theirs: int | None = theirs

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self._terminal)[3] & termios.ECHO)

    def until(self, seen: Callable[[str], bool], seconds: float = 120) -> str:
        """Reads until the screen is as wanted; what it then shows."""
        deadline = time.monotonic() + seconds
        while not seen(str(self.screen)):
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"the screen stayed\n{self.screen}")
        return str(self.screen)

    def finish(self, seconds: float = 60) -> int:
        """Reads to the end; the exit code."""
        deadline = time.monotonic() + seconds
        while self._read(deadline - time.monotonic()):
            pass
        self.echoed_at_the_end = self.echoes()
        os.close(self._terminal)
        return self.process.wait(max(deadline - time.monotonic(), 1))

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._terminal], [], [], max(seconds, 0))
        if not ready:
            return False
        try:
            data = os.read(self._terminal, 1 << 16)
        except OSError:  # Linux: the program has ended
            return False
        if not data:
            return False
        if self._theirs is not None:
            os.close(self._theirs)
            self._theirs = None
        # rich writes a frame at once; the pieces that arrive may still cut one.
        self.screen.feed(data.decode(errors="replace"))
        self.frames.append(str(self.screen))
        return True
