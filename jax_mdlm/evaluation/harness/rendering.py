"""A conversation as one string, and back to what a template wrote.

lm-evaluation-harness takes prompts as strings: it asks for a conversation to be rendered, and gives
the string back as a request's context. Control tokens stand in it as signs that no content can
spell: an id between two DLE (U+0010). `;` in the id's place parts messages that are encoded alone.
A DLE of a content is doubled.
"""

import re
from collections.abc import Sequence

from jax_mdlm.data.chat import Written

_DLE = "\x10"
_CUT = f"{_DLE};{_DLE}"
_SIGN = re.compile(f"{_DLE}(?:(?P<id>[0-9]+){_DLE}|(?P<cut>;{_DLE})|{_DLE})")


def to_string(parts: Sequence[Written]) -> str:
    """One string for parts that are encoded each alone."""
    return _CUT.join("".join(map(_spell, part)) for part in parts if part)


def from_string(text: str) -> Sequence[Written]:
    """The parts of a string; one that was not rendered is text as it stands."""
    parts: list[list[int | str]] = [[]]
    end = 0
    for sign in _SIGN.finditer(text):
        parts[-1].append(text[end : sign.start()])
        end = sign.end()
        if sign["cut"]:
            parts.append([])
        else:
            parts[-1].append(int(sign["id"]) if sign["id"] else _DLE)
    parts[-1].append(text[end:])
    return parts


def _spell(piece: int | str) -> str:
    if isinstance(piece, int):
        return f"{_DLE}{piece}{_DLE}"
    return piece.replace(_DLE, 2 * _DLE)
