"""Lines of a user's file, and the JSON object of a line: what train, sample and evaluate read with.

Enters: a path, or bytes from stdin. Leaves: numbered lines without a byte order mark, and objects;
what cannot be one is refused with file and line. `foreign` names files of other forms.
"""

import glob
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from etils import epath

from jax_mdlm.config import ConfigError
from jax_mdlm.data.forms import ForeignFormError, check_form

_Parsed = TypeVar("_Parsed")
_MARK = b"\xef\xbb\xbf"  # also within a file that was put together from several


class Line(NamedTuple):
    """A line that is not blank.

    Attributes:
      origin: "file:line", from line 1.
      text: UTF-8, without a byte order mark.
    """

    origin: str
    text: bytes


def find_files(files: str, flag: str = "data.files") -> list[epath.Path]:
    """Files of a comma-separated list of paths and globs, each once.

    Args:
      files: The list.
      flag: What it came from; opens the errors' texts.

    Raises:
      ConfigError: nothing is listed, a file is missing, or a glob matches none.
    """
    entries = [entry.strip() for entry in files.split(",") if entry.strip()]
    if not entries:
        raise ConfigError(
            f"{flag} must name files of rows, it is empty; set {_flag(flag)}=train.jsonl"
        )
    found: list[epath.Path] = []
    for entry in entries:
        if not set(entry) & set("*?["):
            path = epath.Path(entry)
            if not path.exists():
                raise ConfigError(f"{flag}: no file {entry}; correct the path")
            if path.is_dir():
                raise ConfigError(f"{flag}: {entry} is a folder; write {entry}/*.jsonl")
            found.append(path)
            continue
        matches = sorted(path for path in _glob(entry, flag) if not path.is_dir())
        if not matches:
            raise ConfigError(f"{flag}: no file matches {entry}; correct the pattern")
        found.extend(matches)
    return list(dict.fromkeys(found))


def read_lines(path: epath.PathLike) -> Iterator[Line]:
    """The lines of a file of rows.

    Raises:
      ConfigError: it cannot be read, has no line, or has a form of its own (see `foreign`).
    """
    try:
        with epath.Path(path).open("rb") as file:
            yield from checked(number_lines(file, str(path)), str(path))
    except OSError as error:
        raise ConfigError(
            f"{path} must be a file that can be read, but {error.strerror or error}"
        ) from error


def checked(lines: Iterator[Line], name: str, holds: str = "JSON object") -> Iterator[Line]:
    """The same lines, if there are any and the first does not show a file of another form.

    Args:
      lines: Of a file.
      name: Its name.
      holds: What stands on a line, for the error's text.

    Raises:
      ConfigError: no line, or another form.
    """
    first = next(lines, None)
    if first is None:
        raise ConfigError(f"{name} is empty; give a file with one {holds} a line")
    check_form(first.text, name)
    yield first
    yield from lines


def number_lines(lines: Iterable[bytes], name: str) -> Iterator[Line]:
    """Lines that are not blank, numbered from 1; only a line feed ends a line.

    Args:
      lines: As a binary file gives them.
      name: Of the file.
    """
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix(_MARK).strip()
        if text:
            yield Line(f"{name}:{number}", text)


def decode_text(line: Line) -> str:
    """The characters of a line.

    Raises:
      ConfigError: its bytes are not UTF-8.
    """
    try:
        return line.text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{line.origin} is not UTF-8 ({error.reason})") from error


def parse_object(line: Line) -> dict[str, Any]:
    """The JSON object that a line holds.

    NaN and infinities, which Python writes and JSON does not have, are read as null. A field that
    is there twice is refused: which of the two is meant, nobody can tell.

    Raises:
      ConfigError: the line is no such object.
    """
    text, origin = decode_text(line), line.origin
    try:
        row = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at column {error.colno}"
        raise ConfigError(f"{origin} is not JSON ({reason})") from error
    except _TwiceError as error:
        raise ConfigError(f"{origin} has the field {shown_name(str(error))} twice") from error
    except RecursionError as error:
        raise ConfigError(f"{origin} is not JSON that can be read (nested too deeply)") from error
    except ValueError as error:  # Python's limit for the digits of a whole number
        raise ConfigError(f"{origin} is not JSON that can be read (a number too long)") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{origin} must be a JSON object, got {type(row).__name__}")
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
        except ForeignFormError:
            raise
        except ConfigError as error:
            raise ConfigError(f"{error}; correct the line") from error


def shown_name(name: str) -> str:
    """A field's name in an error's text: short, and on one line."""
    return (name if name.isprintable() else ascii(name))[:40]


def to_line(row: Any) -> str:
    """A value as one line of JSON, without its line feed; any file can hold it."""
    # Half a surrogate pair, which UTF-8 does not have, becomes its JSON escape.
    text = json.dumps(row, ensure_ascii=False)
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


def _glob(pattern: str, flag: str) -> list[epath.Path]:
    """All paths that match; "**" on local disks only, on gs:// it would list whole buckets."""
    if "://" not in pattern:
        return [epath.Path(path) for path in glob.glob(pattern, recursive=True)]
    if "**" in pattern:
        raise ConfigError(f"{flag}: ** needs a local folder, got {pattern}; name the folders")
    parts = epath.Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if set(part) & set("*?["))
    return list(epath.Path(*parts[:fixed]).glob("/".join(parts[fixed:])))


def _flag(flag: str) -> str:
    return flag if flag.startswith("--") else f"--config.{flag}"
