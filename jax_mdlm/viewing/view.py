"""The canvas on a terminal while it is denoised, and model output made safe for a terminal.

Enters: an `Answer`, finished or not. Leaves: rich renderables. `chat` shows them; `show` writes
canvases where nothing moves.
"""

import contextlib
import functools
import math
import re
import time
from collections.abc import Iterator, Sequence

import numpy as np
from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from jax_mdlm.data.tokenizer import MASK_SIGN, SLACK_SIGN, Tokenizer
from jax_mdlm.sampling import Answer, response_end

_END_SIGN = "■"
_NEW, _OLD, _SLACK = "bold green", "", "bold magenta"
_MASK, _MASK_LATER, _QUIET = "cyan", "dim", "dim"
_STATUS_LINES = 1
_FRAME_SECONDS = 1 / 15  # between two frames, at least
_CALLS_PER_FRAME_TIME = 9  # calls take at least so many times what showing a frame takes
# Characters that act on the terminal or on the order of its characters, newline and tab aside:
# C0, C1, line and paragraph separators, bidirectional controls, halves of surrogate pairs.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_ATOM = re.compile(rf"\n|{MASK_SIGN}|[^\S\n]+|[^\s{MASK_SIGN}]+")
_PART_SIGN = "\ufffd"  # what decoding makes of a part of a character
_LONGEST_CHARACTER = 4  # bytes, and so tokens at most


def escape_controls(text: str) -> str:
    r"""Text with its control characters as escapes (`\x1b`): nothing in it acts on a terminal."""
    return _ACTING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Reader:
    """Turns slots into what stands there on the screen.

    A character may be spread over several tokens, and some tokenizers put spaces between tokens:
    the text of a slot is what its token adds to the tokens before it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._ids = tokenizer.ids
        self._special = frozenset(tokenizer.ids.never_merged)
        self._tokenizer = tokenizer
        self._read = functools.lru_cache(maxsize=1 << 16)(self._text)
        self._gap = " " if self._separates() else ""

    def canvas(self, answer: Answer, *, since: int, block: range) -> tuple[Text, int]:
        """A decoded region.

        What stands after its end is left out.

        Args:
          answer: Finished or not.
          since: Slots fixed by this call (from 0) or a later one are highlighted.
          block: Slots that are being decoded.

        Returns:
          The text, and the position in it where decoding goes on.
        """
        text, focus = Text(), None
        end = response_end(answer.response, self._ids)
        for slot, piece in self._pieces(answer.response[:end]):
            if self._gap and text:
                text.append(self._gap)
            token, fresh = int(answer.response[slot]), answer.committed_at[slot] >= since
            if token == self._ids.mask:
                style = _MASK if slot in block else _MASK_LATER
                focus = len(text) if focus is None else focus
            elif token == self._ids.slack:
                style = _SLACK
            else:
                style = _QUIET if token in self._special else _OLD
            text.append(piece, _NEW if fresh else style)
        # Slots that may still be appended hold EOS, too; nobody has committed them.
        if end < len(answer.response) and answer.committed_at[end] >= 0:
            text.append(f" {_END_SIGN}", _NEW if answer.committed_at[end] >= since else _QUIET)
        return text, len(text) if focus is None else focus

    def _pieces(self, slots: Sequence[int] | np.ndarray) -> Iterator[tuple[int, str]]:
        """(slot, text) in order; slots in the middle of a character have no entry."""
        signs = {self._ids.mask: MASK_SIGN, self._ids.slack: SLACK_SIGN}
        pending: list[int] = []
        last = 0
        for slot, token in enumerate(map(int, slots)):
            if token in self._special:
                if pending and token != self._ids.slack:  # the rest of it is not there yet
                    yield last, _PART_SIGN
                    pending = []
                yield slot, signs.get(token) or escape_controls(self._tokenizer.token(token))
                continue
            pending.append(token)
            last, text = slot, self._read(tuple(pending))
            if _PART_SIGN not in text or len(pending) == _LONGEST_CHARACTER:
                yield slot, text
                pending = []
        if pending:
            yield last, _PART_SIGN

    def _text(self, tokens: tuple[int, ...]) -> str:
        text, first = self._tokenizer.decode(tokens), self._tokenizer.token(tokens[0])
        # SentencePiece drops the space before the first word of what it decodes.
        if first.startswith(" ") and not text.startswith(" "):
            text = " " + text
        return escape_controls(text or first).replace("\t", "    ")

    def _separates(self) -> bool:
        for index in range(self._tokenizer.vocab_size):
            token = self._tokenizer.token(index)
            if index not in self._special and token.isalnum():
                return self._tokenizer.decode([index, index]) == f"{token} {token}"
        return False


class CanvasView:
    """What `rich.live` shows: the part of the canvas around the block, below it a status line."""

    def __init__(self) -> None:
        self._canvas, self._focus, self._status = Text(), 0, ""

    def update(self, canvas: Text, focus: int, status: str) -> None:
        """Changes what is shown.

        Args:
          canvas: Of any length.
          focus: A position in it that stays visible.
          status: One line.
        """
        self._canvas, self._focus, self._status = canvas, focus, status

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # One column and two lines stay free: a frame as large as the terminal makes it scroll, and
        # what has scrolled away cannot be wiped.
        width = max(options.max_width - 1, 1)
        rows = max(options.size.height - _STATUS_LINES - 2, 1)
        lines, focus = wrap(self._canvas, width, self._focus)
        for line in window(lines, focus, rows):
            line.truncate(width)
            yield line
        yield Text(self._status, _QUIET, no_wrap=True, overflow="ellipsis")


class Pace:
    """How many calls pass between two frames: few enough to watch, too many to be held up.

    Frames come at most every `seconds`, and showing them takes at most a tenth of the time.
    """

    def __init__(self, seconds: float = _FRAME_SECONDS) -> None:
        self._between = seconds
        self._calls, self._asked, self._frame_seconds = 0, 0.0, 0.0
        self._seconds_per_call = 0.0

    def __call__(self) -> int:
        """Calls until the next frame; for `stream`."""
        self._asked = time.perf_counter()
        if self._calls == 0:
            self._calls = 1
            return 1
        span = max(self._between, _CALLS_PER_FRAME_TIME * self._frame_seconds)
        wanted = math.ceil(span / max(self._seconds_per_call, 1e-9))
        self._calls = min(max(wanted, 1), 2 * self._calls)
        return self._calls

    @contextlib.contextmanager
    def frame(self) -> Iterator[None]:
        """Around what shows a frame."""
        began = time.perf_counter()
        self._seconds_per_call = (began - self._asked) / self._calls
        yield
        self._frame_seconds = time.perf_counter() - began


def wrap(text: Text, width: int, focus: int) -> tuple[list[Text], int]:
    """Breaks a canvas into lines: at spaces, newlines and anywhere between masks.

    Rich's own wrapping takes a run of masks for one long word and moves it to a new line.

    Args:
      text: The canvas.
      width: Columns.
      focus: A position in `text`.

    Returns:
      Lines, and the number of the line that holds the position.
    """
    breaks: list[int] = []  # positions where a new line begins
    column = 0
    for atom in _ATOM.finditer(text.plain):
        if atom[0] == "\n":
            breaks.append(atom.end())
            column = 0
            continue
        if atom[0].isspace():  # stays at the end of its line, cut off where it does not fit
            column += len(atom[0])
            continue
        start = atom.start()
        if column and column + cell_len(atom[0]) > width:
            breaks.append(start)
            column = 0
        *full, last = chop_cells(atom[0], width) or [atom[0]]  # of no width at all: an accent
        for part in full:
            start += len(part)
            breaks.append(start)
        column += cell_len(last)
    lines = list(text.divide(breaks)) if breaks else [text]
    for line in lines:
        line.rstrip()
        line.no_wrap = True
    return lines, sum(position <= focus for position in breaks)


def window(lines: list[Text], focus: int, rows: int) -> list[Text]:
    """At most `rows` lines with line number `focus` among them; what is left out is counted."""
    if len(lines) <= rows:
        return lines
    first = min(max(focus - rows // 2, 0), len(lines) - rows)
    shown = lines[first : first + rows]
    if rows < 3:
        return shown
    above, below = first, len(lines) - first - rows
    # A line that says what is hidden takes the place of one more.
    if above:
        shown[0] = Text(f"⋮ {above + 1} lines above", _QUIET)
    if below:
        shown[-1] = Text(f"⋮ {below + 1} lines below", _QUIET)
    return shown
