"""One JSON array of objects, cut into elements without holding all of it."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from jax_mdlm.config import ConfigError
from jax_mdlm.data.jsonl import MARK

# Finds where a value ends; numbers may be as long as they like.
_SKIM = json.JSONDecoder(parse_int=str, parse_float=str)
_SPACE = re.compile(r"[ \t\r\n]*")
_LITERAL = 16  # characters; an error so near to the end may be a value that goes on


def cut_array(file: BinaryIO, name: str, size: int) -> Iterator[tuple[int, bytes]]:
    """Cuts an array into runs of whole elements.

    Args:
      file: Its bytes.
      name: Opens the errors' texts.
      size: About how many bytes a run has.

    Yields:
      The number of the first element, from 1, and the elements, one a line: what stands within
      them is not changed, line feeds between their fields become spaces.

    Raises:
      ConfigError: it is cut off, or no JSON: where an element ends is not known then.
    """
    window = _Window(file, name, size)
    window.at = 1 if window.sign() == "[" else 0
    number, first, held, count = 1, 1, [], 0
    sign = "," if window.sign() != "]" else "]"
    while sign == ",":
        element, sign = window.element(number)
        held.append(element)
        count += len(element)
        number += 1
        if count >= size:
            yield first, b"\n".join(held)
            first, held, count = number, [], 0
    if number == 1:
        window.at += 1  # the bracket of an empty array
    if held:
        yield first, b"\n".join(held)
    if window.sign():
        raise ConfigError(
            f"{name} must be one JSON array, but there is more behind its end; write one object a "
            "line, or one array"
        )


class _Window:
    """The part of a text that is looked at, which grows at its end."""

    def __init__(self, file: BinaryIO, name: str, size: int) -> None:
        self._file, self._name, self._size = file, name, size
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._text, self._ended = "", False
        self.at = 0
        self._grow()
        self._text = self._text.removeprefix(MARK.decode())

    def sign(self) -> str:
        """The next character that is no space, "" at the end."""
        while True:
            found = _SPACE.match(self._text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._grow():
                return ""

    def element(self, number: int) -> tuple[bytes, str]:
        """The next element, and what follows it: a comma or the end of the array."""
        self.sign()
        while True:
            try:
                _, end = _SKIM.raw_decode(self._text, self.at)
            except json.JSONDecodeError as error:
                open_string = error.msg.startswith("Unterminated string")
                near = open_string or error.pos >= len(self._text) - _LITERAL
                if near and self._grow():
                    continue
                if open_string or error.pos >= len(self._text.rstrip()):
                    raise self._cut_off(number) from error
                raise self._wrong(number, error.msg) from error
            except RecursionError as error:
                raise self._wrong(number, "nested too deeply") from error
            found = _SPACE.match(self._text, end)
            after = found.end() if found else end
            if after == len(self._text):  # a number may go on, too
                if self._grow():
                    continue
                raise self._cut_off(number)
            break
        sign = self._text[after]
        if sign not in ",]":
            raise self._wrong(number, "Expecting ',' delimiter")
        element = self._text[self.at : end].encode("utf-8", "surrogateescape")
        self.at = after + 1
        return element.replace(b"\n", b" "), sign

    def _grow(self) -> bool:
        """Drops what is done and reads on, as much as is left: growing stays cheap."""
        if self._ended:
            return False
        chunk = self._file.read(max(self._size, len(self._text) - self.at))
        self._ended = not chunk
        self._text, self.at = self._text[self.at :] + self._decode(chunk, self._ended), 0
        return True

    def _cut_off(self, number: int) -> ConfigError:
        return ConfigError(
            f"{self._name}:{number} is where the file ends, within its JSON array; copy or "
            "download it again"
        )

    def _wrong(self, number: int, reason: str) -> ConfigError:
        return ConfigError(
            f"{self._name}:{number} is not JSON ({reason}), and where the next row of the array "
            "begins is not known; correct the row"
        )
