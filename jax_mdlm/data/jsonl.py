"""The user's own files: one JSON object a line.

Row shapes: `{"messages": [{"role", "content"}, ...]}`, `{"prompt", "response"}`, GSM8K's
`{"question", "answer"}`, and with `data.pretraining` also `{"text"}`. Other fields are ignored.
"""

import glob
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from etils import epath

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data.examples import Example, Message, pair, parse_messages

_PAIRS = (("prompt", "response"), ("question", "answer"))
_SKIP = "correct the line or set data.on_bad_row=skip"


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
      ConfigError: a file is missing or empty, or a row is malformed (file and line are named).
    """
    examples, origins, skipped = [], [], 0
    for path in find_files(config.files):
        lines = 0
        for number, line in _lines(path):
            lines += 1
            try:
                examples.append(parse_row(line, f"{path}:{number}", config.pretraining))
            except ConfigError as error:
                if config.on_bad_row == "error":
                    raise ConfigError(f"{error}; {_SKIP}") from error
                skipped += 1
            else:
                origins.append(f"{path}:{number}")
        if not lines:
            raise ConfigError(f"{path} is empty; give a file with one JSON object a line")
    if not examples:
        raise ConfigError(
            f"all {skipped} rows of data.files={config.files} are malformed; "
            "set data.on_bad_row=error to see why"
        )
    return JsonlRows(examples, origins, skipped)


def find_files(files: str) -> list[epath.Path]:
    """Files of a comma-separated list of paths and globs, each once.

    Raises:
      ConfigError: nothing is listed, a file is missing, or a glob matches none.
    """
    entries = [entry.strip() for entry in files.split(",") if entry.strip()]
    if not entries:
        raise ConfigError(
            "data.source=chat_jsonl needs files, data.files is empty; "
            "set --config.data.files=train.jsonl"
        )
    found: list[epath.Path] = []
    for entry in entries:
        if not set(entry) & set("*?["):
            path = epath.Path(entry)
            if not path.exists():
                raise ConfigError(f"data.files: no file {entry}; correct the path")
            if path.is_dir():
                raise ConfigError(f"data.files: {entry} is a folder; write {entry}/*.jsonl")
            found.append(path)
            continue
        matches = sorted(path for path in _glob(entry) if not path.is_dir())
        if not matches:
            raise ConfigError(f"data.files: no file matches {entry}; correct the pattern")
        found.extend(matches)
    return list(dict.fromkeys(found))


def _glob(pattern: str) -> list[epath.Path]:
    """All paths that match; "**" on local disks only, on gs:// it would list whole buckets."""
    if "://" not in pattern:
        return [epath.Path(path) for path in glob.glob(pattern, recursive=True)]
    if "**" in pattern:
        raise ConfigError(f"data.files: ** needs a local folder, got {pattern}; name the folders")
    parts = epath.Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if set(part) & set("*?["))
    return list(epath.Path(*parts[:fixed]).glob("/".join(parts[fixed:])))


def parse_row(line: bytes, subject: str, pretraining: bool) -> Example:
    """One line as a conversation.

    Args:
      line: UTF-8.
      subject: Opens the error's text, "file:line".
      pretraining: Texts, and conversations without an answer, are accepted too.

    Raises:
      ConfigError: the line is no JSON object of a known shape.
    """
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{subject} is not UTF-8 ({error.reason})") from error
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at column {error.colno}"
        raise ConfigError(f"{subject} is not JSON ({reason})") from error
    except RecursionError as error:
        raise ConfigError(f"{subject} is not JSON that can be read (nested too deeply)") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{subject} must be a JSON object, got {type(row).__name__}")
    if "messages" in row:
        example = parse_messages(row["messages"], subject)
        if not pretraining and all(message.role != "assistant" for message in example):
            raise ConfigError(f"{subject}: messages must hold an assistant message, got none")
        return example
    for prompt, response in _PAIRS:
        if prompt in row and response in row:
            return pair(_text(row, prompt, subject), _text(row, response, subject))
    if "text" in row:
        if not pretraining:
            raise ConfigError(f"{subject} has only a text, which needs data.pretraining=True")
        return (Message("text", _text(row, "text", subject)),)
    shown = ", ".join(map(str, row)) or "none"
    raise ConfigError(
        f"{subject} must have messages, prompt and response, or question and answer; "
        f"its fields are: {shown}"
    )


def _text(row: dict[str, Any], field: str, subject: str) -> str:
    if not isinstance(row[field], str):
        raise ConfigError(f"{subject}: {field} must be a string, got {type(row[field]).__name__}")
    return row[field]


def _lines(path: epath.Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, numbered from 1; only a line feed ends a line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if text.strip():
                yield number, text
