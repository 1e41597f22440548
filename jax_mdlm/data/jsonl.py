"""JSON objects, one a line: how lines are cut, parsed, refused and written.

Enters: lines of a file or of stdin. Leaves: numbered lines without a byte order mark, and objects;
what is none is refused with file and line. `readers` reads files of rows with it, in whatever
container they are.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from jax_mdlm.config import ConfigError
from jax_mdlm.data.examples import BadRowError

_Parsed = TypeVar("_Parsed")
MARK = b"\xef\xbb\xbf"  # a byte order mark; also within a file that was put together from several
_NO_JSON = "not JSON"


class Line(NamedTuple):
    """A line that is not blank.

    Attributes:
      origin: "file:line", from line 1.
      text: UTF-8, without a byte order mark.
    """

    origin: str
    text: bytes


class Record(NamedTuple):
    """A row, or why it is none.

    Attributes:
      origin: "file:number" of the line on which it begins; of arrays and Parquet of the row.
      row: Its fields.
    """

    origin: str
    row: dict[str, Any] | BadRowError


def number_lines(lines: Iterable[bytes], name: str, first: int = 1) -> Iterator[Line]:
    """The lines of a binary file that are not blank; only a line feed ends a line.

    Args:
      lines: With their ends.
      name: Of the file.
      first: Number of the first line.
    """
    for number, line in enumerate(lines, start=first):
        text = line.removeprefix(MARK).strip()
        if text:
            yield Line(f"{name}:{number}", text)


def decode_text(line: Line) -> str:
    """The characters of a line; raises BadRowError where its bytes are not UTF-8."""
    try:
        return line.text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRowError(f"{line.origin} is not UTF-8 ({error.reason})", "not UTF-8") from error


def parse_object(line: Line) -> dict[str, Any]:
    """The JSON object that a line holds.

    NaN and infinities, which Python writes and JSON does not have, are read as null. A field that
    is there twice is refused: which of the two is meant, nobody can tell.

    Raises:
      BadRowError: the line is no such object.
    """
    text, origin = decode_text(line), line.origin
    try:
        row = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at column {error.colno}"
        raise BadRowError(f"{origin} is not JSON ({reason})", _NO_JSON) from error
    except _TwiceError as error:
        field = shown_name(str(error))
        raise BadRowError(f"{origin} has the field {field} twice", "a field twice") from error
    except RecursionError as error:
        reason = "is not JSON that can be read (nested too deeply)"
        raise BadRowError(f"{origin} {reason}", _NO_JSON) from error
    except ValueError as error:  # Python's limit for the digits of a whole number
        reason = "is not JSON that can be read (a number too long)"
        raise BadRowError(f"{origin} {reason}", _NO_JSON) from error
    if not isinstance(row, dict):
        found = type(row).__name__
        raise BadRowError(f"{origin} must be a JSON object, got {found}", "no object")
    return row


def parse_lines(
    lines: Iterable[Line], parse: Callable[[dict[str, Any], str], _Parsed]
) -> Iterator[_Parsed]:
    """What `parse` makes of the object and the origin of each line.

    Raises:
      ConfigError: a line is no object, or `parse` refuses it.
    """
    for line in lines:
        try:
            yield parse(parse_object(line), line.origin)
        except ConfigError as error:
            raise ConfigError(f"{error}; correct the line") from error


def shown_name(name: str) -> str:
    """A field's name in an error's text: short, and on one line."""
    return (name if name.isprintable() else ascii(name))[:40]


def to_line(row: Any) -> str:
    """A value as one line of JSON, without its line feed; any file can hold it."""
    # Half a surrogate pair, which UTF-8 does not have, becomes its JSON escape.
    text = json.dumps(row, ensure_ascii=False, default=str)  # Parquet has dates and bytes, too
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


class _TwiceError(ValueError):
    """A field that is there twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return row


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


_DECODER = json.JSONDecoder(
    object_pairs_hook=_once, parse_float=_finite, parse_constant=lambda name: None
)
