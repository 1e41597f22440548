"""JSON files in and out: objects that know where they stand, files that are replaced whole.

Enters: files of the judges' tools, and ours. Leaves: `Row`s, whose errors name file and line, and
outputs that are continued with the same settings only. The benchmarks (`arena_hard`, `mt_bench`,
...) say which fields mean what.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from jax_mdlm.config import ConfigError
from jax_mdlm.data.jsonl import number_lines, parse_lines, to_line
from jax_mdlm.storage import replace_text

_KINDS = {str: "a string", list: "a list", dict: "an object"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A JSON object of a file.

    Attributes:
      origin: "file:line", or what else finds it.
      form: What it should be, for messages, e.g. "an Arena-Hard question".
      fields: Its content.
    """

    origin: str
    form: str
    fields: dict[str, Any]

    def has(self, name: str) -> bool:
        """Whether there is such a field, null aside."""
        return self.fields.get(name) is not None

    def text(self, *path: str | int) -> str:
        """The string at a path of names and positions."""
        return self._typed(path, str)

    def entries(self, *path: str | int) -> list[Any]:
        """The list at a path."""
        return self._typed(path, list)

    def mapping(self, *path: str | int) -> dict[str, Any]:
        """The object at a path."""
        return self._typed(path, dict)

    def label(self, *path: str | int) -> str:
        """The string or whole number at a path, as a string: ids come as both."""
        value = self._value(path)
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise self.wrong(f"the id {_shown(path)}", value)
        return str(value)

    def number(self, *path: str | int) -> float:
        """The number at a path; a string that is one counts too."""
        value = self._value(path)
        try:
            if isinstance(value, bool):
                raise TypeError("true and false are no numbers here")
            return float(value)
        except (TypeError, ValueError) as error:
            raise self.wrong(f"the number {_shown(path)}", value) from error

    def wrong(self, expected: str, value: Any) -> ConfigError:
        """The error for a field that is not what it must be."""
        found = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
        short = found if len(found) <= 60 else f"{found[:57]}..."
        return ConfigError(
            f"{self.origin}: {self.form} must have {expected}, got {short}; correct the row or the "
            "choice of --benchmark"
        )

    def _typed(self, path: tuple[str | int, ...], kind: type) -> Any:
        value = self._value(path)
        if not isinstance(value, kind):
            raise self.wrong(f"{_KINDS[kind]} {_shown(path)}", value)
        return value

    def _value(self, path: tuple[str | int, ...]) -> Any:
        value: Any = self.fields
        for step in path:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return None
        return value


def read_object_lines(path: str | os.PathLike[str], form: str) -> list[Row]:
    """The objects of a JSONL file.

    Raises:
      ConfigError: no such file, or a line that is no JSON object.
    """
    with _existing(path).open("rb") as file:
        lines = number_lines(file, str(path))
        return list(parse_lines(lines, lambda fields, origin: Row(origin, form, fields)))


def read_list(path: str | os.PathLike[str], form: str) -> list[Row]:
    """The objects of a JSON file that holds a list.

    Raises:
      ConfigError: no such file, no JSON, no list, or an entry that is no object.
    """
    found = _parse(_read(path), str(path))
    if not isinstance(found, list):
        raise ConfigError(f"{path} must hold a JSON list, got {type(found).__name__}")
    return [
        _row(value, f"{path}: entry {number}", form) for number, value in enumerate(found, start=1)
    ]


def read_object(path: str | os.PathLike[str], form: str) -> Row:
    """The object that a JSON file holds.

    Raises:
      ConfigError: no such file, no JSON, no object.
    """
    return _row(_parse(_read(path), str(path)), str(path), form)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replaces a JSONL file."""
    replace_text(path, "".join(to_line(row) + "\n" for row in rows))


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file."""
    replace_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def _read(path: str | os.PathLike[str]) -> str:
    try:
        return _existing(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} must be UTF-8, it is not ({error.reason})") from error


def _existing(path: str | os.PathLike[str]) -> epath.Path:
    file = epath.Path(path)
    if not file.is_file():
        raise ConfigError(f"no file {path}; correct the path")
    return file


def _parse(text: str, origin: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ConfigError(f"{origin} must be JSON, but {error.msg} ({place})") from error
    except ValueError as error:  # Python's limit for the digits of a whole number
        raise ConfigError(f"{origin} must be JSON, it has a number too long") from error
    except RecursionError as error:
        raise ConfigError(f"{origin} must be JSON, it is nested too deeply") from error


def _row(value: Any, origin: str, form: str) -> Row:
    if not isinstance(value, dict):
        raise ConfigError(f"{origin}: {form} must be a JSON object, got {type(value).__name__}")
    return Row(origin, form, value)


def _shown(path: tuple[str | int, ...]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


def output_file(name: str) -> Path:
    """The path, its folder made.

    Raises:
      ConfigError: it is in a bucket, or a directory, or its folder cannot be made.
    """
    path = Path(name)
    if "://" in name:
        raise ConfigError(f"--output must be a local file, got {name}; copy it afterwards")
    if path.is_dir():
        raise ConfigError(f"--output must be a file, {name} is a directory")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {name} must be in a folder, but {error}") from error
    return path


def check_settings(path: Path, subject: str, settings: dict[str, Any], *, begun: bool) -> None:
    """Refuses to go on with other settings than those that a file was begun with.

    They are kept beside it, in `FILE.settings.json`.

    Args:
      path: The output.
      subject: Whose rows are written: one file may hold several models'.
      settings: What made them.
      begun: Whether there are such rows already.

    Raises:
      ConfigError: rows of other settings, or of unknown ones.
    """
    aside = path.with_name(path.name + ".settings.json")
    try:
        known = json.loads(aside.read_text()) if aside.exists() else {}
        old: dict[str, Any] | None = known.get(subject)
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{aside} must be readable JSON, but {error}; remove it") from error
    settings = json.loads(json.dumps(settings))
    if begun and old is None:
        raise ConfigError(
            f"--output {path} holds rows of {subject}, but {aside.name} does not say how they were "
            "made; choose another file"
        )
    if begun and old is not None and old != settings:
        changed = [
            f"{name}={old.get(name)} there, {settings.get(name)} here"
            for name in sorted(old.keys() | settings.keys())
            if old.get(name) != settings.get(name)
        ]
        raise ConfigError(
            f"--output {path} was begun with other settings ({'; '.join(changed)}); choose another "
            "file"
        )
    write_json(aside, known | {subject: settings})
