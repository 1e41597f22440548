"""A config as text: JSON, as work directories keep it, and the list of all settings.

The list's sentences are the comments beside the fields in `sections.py`, which are read from its
source: what a reader of the code sees, `train --settings` prints and the page of settings shows.
"""

import ast
import dataclasses
import functools
import inspect
import io
import textwrap
import tokenize
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import pydantic

from jax_mdlm.config import sections
from jax_mdlm.config.checks import validate
from jax_mdlm.config.sections import Config, ConfigError

_WIDTH = 96  # columns of `settings_as_text`


def config_to_json(config: Config) -> str:
    """The resolved config as JSON; a work directory keeps it."""
    return pydantic.TypeAdapter(Config).dump_json(config, indent=2).decode()


def from_json(text: str, origin: str) -> Config:
    """Reads what `config_to_json` wrote; `origin` names the file in errors.

    Raises:
      ConfigError: not a config, or one that does not validate.
    """
    try:
        return validate(pydantic.TypeAdapter(Config).validate_json(text))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{origin} is not a config: {place or 'file'}: {first['msg']}") from error


def differences(old: Config, new: Config, ignore: Sequence[str]) -> list[str]:
    """Fields that differ, as `section.field=old there, new here`; `ignore` holds path prefixes."""
    left, right = _flatten(old), _flatten(new)
    return [
        f"{path}={left[path]} there, {right[path]} here"
        for path in left
        if left[path] != right[path] and not any(path.startswith(prefix) for prefix in ignore)
    ]


@dataclasses.dataclass(frozen=True)
class SettingLine:
    """One field of a section.

    Attributes:
      path: As on the command line, after `--config.`.
      kind: Its type, or the values that it can have.
      value: As a flag would give it.
      sentence: What it is.
    """

    path: str
    kind: str
    value: str
    sentence: str


def list_settings(config: Config) -> Iterator[tuple[str, list[SettingLine]]]:
    """The settings of a config by section, each with the section's own sentence.

    Args:
      config: Whose values are listed; `Config()` for the defaults.
    """
    yield "A run.", _fields(config, "")
    for field in dataclasses.fields(config):
        section = getattr(config, field.name)
        if dataclasses.is_dataclass(section):
            yield from _sections(section, f"{field.name}.")


def settings_as_text(config: Config) -> str:
    """All settings for a terminal."""
    parts = []
    for sentence, settings in list_settings(config):
        parts.append(f"{sentence}\n")
        for one in settings:
            parts.append(f"  {one.path}={one.value}   ({one.kind})\n")
            indent = " " * 6
            parts.append(
                textwrap.fill(one.sentence, _WIDTH, initial_indent=indent, subsequent_indent=indent)
                + "\n"
            )
        parts.append("\n")
    return "".join(parts).rstrip("\n") + "\n"


def settings_as_markdown(config: Config) -> str:
    """All settings as tables, for the page of the documents."""
    parts = []
    for sentence, settings in list_settings(config):
        rows = [
            f"| `{one.path}` | {_code(one.value)} | {_cell(one.kind)} | {_cell(one.sentence)} |"
            for one in settings
        ]
        head = ["| setting | default | type | what it is |", "|---|---|---|---|"]
        parts.append("\n".join([f"### {sentence.rstrip('.')}", "", *head, *rows]))
    return "\n\n".join(parts) + "\n"


def _sections(section: Any, prefix: str) -> Iterator[tuple[str, list[SettingLine]]]:
    yield (inspect.getdoc(type(section)) or "").split("\n")[0], _fields(section, prefix)
    for field in dataclasses.fields(section):
        inner = getattr(section, field.name)
        if dataclasses.is_dataclass(inner):
            yield from _sections(inner, f"{prefix}{field.name}.")


def _fields(section: Any, prefix: str) -> list[SettingLine]:
    """The fields of a section that are no sections themselves."""
    hints = typing.get_type_hints(type(section))
    comments = _comments()[type(section).__name__]
    return [
        SettingLine(
            prefix + field.name,
            _kind(hints[field.name]),
            _shown(getattr(section, field.name)),
            comments[field.name],
        )
        for field in dataclasses.fields(section)
        if not dataclasses.is_dataclass(getattr(section, field.name))
    ]


@functools.cache
def _comments() -> dict[str, dict[str, str]]:
    """Class -> field -> the comment above it and beside it, as one text."""
    source = inspect.getsource(sections)
    lines = source.splitlines()
    found = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    classes: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        classes[node.name] = {}
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                first, last = field.lineno, field.end_lineno or field.lineno
                while lines[first - 2].strip().startswith("#"):
                    first -= 1
                texts = [found[number] for number in range(first, last + 1) if number in found]
                classes[node.name][field.target.id] = " ".join(texts)
    return classes


def _kind(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(map(str, typing.get_args(annotation)))
    if typing.get_origin(annotation) is tuple:
        return f"{typing.get_args(annotation)[0].__name__}s with commas between"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}[
        annotation.__name__
    ]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _flatten(section: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            flat |= _flatten(value, f"{prefix}{field.name}.")
        else:
            flat[prefix + field.name] = value
    return flat
