"""The user's own rows: one JSON object a line, the same for train, sample and evaluate.

Row shapes: `{"messages": [{"role", "content"}, ...]}`, `{"prompt", "response"}`, GSM8K's
`{"question", "answer"}`, and with `data.pretraining` also `{"text"}`. Other fields are ignored.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data.examples import (
    Example,
    Message,
    answers,
    check_text,
    kind_of,
    pair,
    parse_messages,
)
from jax_mdlm.data.forms import ForeignFormError, check_row
from jax_mdlm.data.lines import (
    Line,
    find_files,
    parse_lines,
    parse_object,
    read_lines,
    shown_name,
)

_PAIRS = (("prompt", "response"), ("question", "answer"))
_SHOWN = 12  # fields that an error lists


class JsonlRows(NamedTuple):
    """What was read.

    Attributes:
      examples: The rows.
      origins: "file:line" of each row, from line 1.
      skipped: Malformed rows that were left out (`data.on_bad_row=skip`).
    """

    examples: list[Example]
    origins: list[str]
    skipped: int


def read_jsonl(config: DataConfig) -> JsonlRows:
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
    return JsonlRows(examples, origins, skipped)


def read_rows(files: str, flag: str, pretraining: bool = False) -> JsonlRows:
    """Reads the rows of a command's own flag; none of them can be skipped.

    Args:
      files: As in `data.files`.
      flag: Of the command, e.g. "--file".
      pretraining: As in `parse_row`.

    Raises:
      ConfigError: as `read_jsonl`.
    """
    lines = [line for path in find_files(files, flag) for line in read_lines(path)]
    parse = functools.partial(parse_row, pretraining=pretraining)
    return JsonlRows(list(parse_lines(lines, parse)), [line.origin for line in lines], 0)


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


def parse_question(row: dict[str, Any], origin: str) -> Example:
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
