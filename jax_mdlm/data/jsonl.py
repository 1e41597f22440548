"""Files of rows, one JSON object a line: what train, sample and evaluate read with.

All of them cut lines, parse objects and refuse them here, so that no command reads what another one
refuses. Enters: paths, or bytes from stdin. Leaves: numbered lines without a byte order mark,
objects, and rows as conversations; what cannot be one is refused with file and line. `foreign`
names files of other forms. Row shapes: `{"messages": [{"role", "content"}, ...]}`, `{"prompt",
"response"}`, GSM8K's `{"question", "answer"}`, and with `data.pretraining` also `{"text"}`. Other
fields are ignored.
"""

import functools
import glob
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from etils import epath

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data.examples import (
    Example,
    Message,
    SplitRows,
    answers,
    check_text,
    kind_of,
    pair,
    parse_messages,
)
from jax_mdlm.foreign import ForeignFormError, check_form, check_row

_Parsed = TypeVar("_Parsed")
_MARK = b"\xef\xbb\xbf"  # also within a file that was put together from several
_PAIRS = (("prompt", "response"), ("question", "answer"))
_SHOWN = 12  # fields that an error lists


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
      ConfigError: it cannot be read, or as `checked`.
    """
    try:
        with epath.Path(path).open("rb") as file:
            yield from checked(number_lines(file, str(path)), str(path))
    except OSError as error:
        raise ConfigError(
            f"{path} must be a file that can be read, but {error.strerror or error}"
        ) from error


def checked(lines: Iterator[Line], name: str, holds: str = "JSON object") -> Iterator[Line]:
    """The same lines of file `name`, if there are any and the first shows no other form.

    Raises:
      ConfigError: no line, where one `holds` each was expected, or another form (see `forms`).
    """
    first = next(lines, None)
    if first is None:
        raise ConfigError(f"{name} is empty; give a file with one {holds} a line")
    check_form(first.text, name)
    yield first
    yield from lines


def number_lines(lines: Iterable[bytes], name: str) -> Iterator[Line]:
    """The lines of a binary file that are not blank, from 1; only a line feed ends a line."""
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix(_MARK).strip()
        if text:
            yield Line(f"{name}:{number}", text)


def decode_text(line: Line) -> str:
    """The characters of a line; raises ConfigError where its bytes are not UTF-8."""
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


def read_jsonl(config: DataConfig) -> SplitRows:
    """Reads all files of `data.files`, in the order given, globs in alphabetical order.

    Raises:
      ConfigError: a file is missing, empty or of another form, or a row is malformed (file and line
        are named).
    """
    examples, origins, skipped = [], [], 0
    first: ConfigError | None = None
    lines = (line for path in find_files(config.files) for line in read_lines(path))
    for line in lines:
        try:
            examples.append(parse_row(parse_object(line), line.origin, config.pretraining))
        except ConfigError as error:
            if config.on_bad_row == "error":
                raise _with_remedy(error, bool(examples), lines, config.pretraining) from error
            first = first or error
            skipped += 1
        else:
            origins.append(line.origin)
    if first and not examples:
        raise ConfigError(
            f"all {skipped} rows of data.files={config.files} are malformed; the first: {first}"
        )
    return SplitRows("chat_jsonl", examples, origins, skipped)


def read_rows(files: str, flag: str, pretraining: bool = False) -> SplitRows:
    """Reads the rows of a command's own flag, e.g. "--file"; none of them can be skipped.

    Raises:
      ConfigError: as `read_jsonl`.
    """
    lines = [line for path in find_files(files, flag) for line in read_lines(path)]
    parse = functools.partial(parse_row, pretraining=pretraining)
    return SplitRows(flag, list(parse_lines(lines, parse)), [line.origin for line in lines])


def parse_row(row: dict[str, Any], origin: str, pretraining: bool = False) -> Example:
    """One row that is learned, or scored against, as a conversation.

    Args:
      row: Its fields.
      origin: Opens the error's text, "file:line".
      pretraining: Texts, and conversations without an answer, are accepted too.

    Raises:
      ConfigError: the row has no known shape, or no answer.
    """
    example = _parse_shape(row, origin)
    if example is None:
        if "text" not in row:
            expected = "must have messages, prompt and response, or question and answer"
            raise _unknown_shape(row, origin, expected)
        if not pretraining:
            raise ConfigError(f"{origin} has only a text, which needs data.pretraining=True")
        return (Message("text", _text(row, "text", origin)),)
    if pretraining:
        for number, message in enumerate(example, start=1):
            if not message.weight:
                raise ConfigError(
                    f"{origin}: weight of message {number} must be 1 with data.pretraining=True, "
                    "which learns the whole text, got 0"
                )
        return example
    learned = answers(example)
    if not learned:
        roles = {message.role for message in example}
        found = "all have weight 0" if "assistant" in roles else "got none"
        raise ConfigError(f"{origin}: messages must hold an assistant message to learn, {found}")
    if not all(example[at].content.strip() for at in learned):
        raise ConfigError(f"{origin}: the response is empty; there is nothing to learn, fill it")
    return example


def parse_prompt(row: dict[str, Any], origin: str) -> Example:
    """One row that is to be answered, as a conversation; it may have an answer already.

    Raises:
      ConfigError: the row has no known shape.
    """
    example = _parse_shape(row, origin)
    if example is not None:
        return example
    for field in ("prompt", "question"):
        if field in row:
            return (Message("user", _text(row, field, origin)),)
    raise _unknown_shape(row, origin, "must have messages, prompt or question")


def _parse_shape(row: dict[str, Any], origin: str) -> Example | None:
    """A conversation, or a question and its answer; None where there is neither."""
    if "messages" in row:
        return parse_messages(row["messages"], origin)
    for prompt, response in _PAIRS:
        if prompt in row and response in row:
            return pair(_text(row, prompt, origin), _text(row, response, origin))
    return None


def _unknown_shape(row: dict[str, Any], origin: str, expected: str) -> ConfigError:
    check_row(row, origin)
    shown = ", ".join(shown_name(name) for name in list(row)[:_SHOWN]) or "none"
    more = f" and {len(row) - _SHOWN} more" if len(row) > _SHOWN else ""
    return ConfigError(f"{origin} {expected}; its fields are: {shown}{more}")


def _text(row: dict[str, Any], field: str, origin: str) -> str:
    if not isinstance(row[field], str):
        raise ConfigError(f"{origin}: {field} must be a string, got {kind_of(row[field])}")
    return check_text(row[field], f"{origin}: {field}")


def _with_remedy(
    error: ConfigError, found: bool, rest: Iterator[Line], pretraining: bool
) -> ConfigError:
    """The error with what may be done; to skip all rows is no remedy."""
    if isinstance(error, ForeignFormError):
        return error
    while not found:
        try:
            line = next(rest, None)
            if line is None:
                return ConfigError(f"{error}; correct the line")
            parse_row(parse_object(line), line.origin, pretraining)
            found = True
        except ConfigError:
            continue
    return ConfigError(f"{error}; correct the line or set data.on_bad_row=skip")


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
