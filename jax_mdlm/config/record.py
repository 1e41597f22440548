"""A config as JSON, as work directories keep it, and what differs between two."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pydantic

from jax_mdlm.config.checks import validate
from jax_mdlm.config.sections import Config, ConfigError


def to_json(config: Config) -> str:
    """The resolved config as JSON; a work directory keeps it."""
    return pydantic.TypeAdapter(Config).dump_json(config, indent=2).decode()


def from_json(text: str, origin: str) -> Config:
    """Reads what `to_json` wrote; `origin` names the file in errors.

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


def _flatten(section: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            flat |= _flatten(value, f"{prefix}{field.name}.")
        else:
            flat[prefix + field.name] = value
    return flat
