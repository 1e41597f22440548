"""A list of prompts worked through to a file, in order: resumable, one output row per input row.

All processes of a pod run the same batches; the first one writes. A row draws from its own number,
so that a list that was interrupted ends with the rows of one that was not.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from jax_mdlm.config import ConfigError
from jax_mdlm.data.lines import to_line
from jax_mdlm.sharding import from_first_process
from jax_mdlm.viewing.prompts import Prompt
from jax_mdlm.viewing.show import WRITTEN


class ResumableOutput:
    """An output file and how far it got.

    Beside `OUT.jsonl` stands `OUT.jsonl.settings.json`, the settings that made its rows: a list is
    not continued with others. Each finished row is compared with its prompt.
    """

    def __init__(self, output: str, settings: dict[str, Any], prompts: list[Prompt]) -> None:
        """Opens or continues `output`.

        Raises:
          ConfigError: it is no local file, or holds rows of other settings or other prompts.
        """
        if "://" in output:
            raise ConfigError(f"--output must be a local file, got {output}; copy it afterwards")
        self._path = Path(output)
        self._settings_path = Path(f"{output}.settings.json")
        done = error = None
        if jax.process_index() == 0:
            try:
                done = self._open(settings, prompts)
            except (ConfigError, OSError) as caught:
                error = caught
        # The other processes must not wait for one that has given up.
        self.done = from_first_process(-1 if done is None else done)
        if error is not None:
            raise (
                error
                if isinstance(error, ConfigError)
                else ConfigError(
                    f"--output {output} must be a file that can be written, but {error}"
                )
            )
        if self.done < 0:
            raise ConfigError("--output was refused by the first process; see its message")

    def write(self, records: Iterable[dict[str, Any]]) -> Iterator[int]:
        """Appends a row per record and says how many rows the file has."""
        if jax.process_index() != 0:
            for number, _ in enumerate(records, start=self.done + 1):
                yield number
            return
        with self._path.open("a", encoding="utf-8") as file:
            for number, record in enumerate(records, start=self.done + 1):
                file.write(to_line(record) + "\n")
                file.flush()
                yield number

    def _open(self, settings: dict[str, Any], prompts: list[Prompt]) -> int:
        """Rows that are there; a row that was cut off in the middle is taken away."""
        if self._path.is_dir():
            raise IsADirectoryError("it is a directory")
        if not self._path.exists() or not self._path.stat().st_size:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
            self._settings_path.write_text(json.dumps(settings, indent=2) + "\n")
            return 0
        self._check_settings(settings)
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1
        rows = data[:whole].splitlines()
        if len(rows) > len(prompts):
            raise ConfigError(
                f"--output {self._path} has {len(rows)} rows for {len(prompts)} prompts; "
                "choose another file"
            )
        for number, (line, prompt) in enumerate(zip(rows, prompts, strict=False), start=1):
            self._check_row(number, line, prompt)
        os.truncate(self._path, whole)
        return len(rows)

    def _check_settings(self, settings: dict[str, Any]) -> None:
        try:
            old = json.loads(self._settings_path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--output {self._path} holds rows but its {self._settings_path.name} cannot be "
                "read; choose another file"
            ) from error
        changed = [
            f"{name}={old.get(name)} there, {settings.get(name)} here"
            for name in sorted(old.keys() | settings.keys())
            if old.get(name) != settings.get(name)
        ]
        if changed:
            raise ConfigError(
                f"--output {self._path} was begun with other settings ({'; '.join(changed)}); "
                "choose another file"
            )

    def _check_row(self, number: int, line: bytes, prompt: Prompt) -> None:
        try:
            row = json.loads(line)
            kept = prompt.row.keys() - WRITTEN
            same = all(row[key] == prompt.row[key] for key in kept)
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise ConfigError(
                f"--output {self._path}:{number} must be the answer to prompt {number}, it is not; "
                "choose another file"
            )
