"""Output files that are continued: where they may be, and with which settings."""

import json
from pathlib import Path
from typing import Any

from jax_mdlm.config import ConfigError
from jax_mdlm.evaluation.judge.rows import write_json


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
