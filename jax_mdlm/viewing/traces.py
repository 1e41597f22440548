"""The file of `--trace`: a JSON line per generation, from which a viewer replays it."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from jax_mdlm.config import ConfigError
from jax_mdlm.data.jsonl import to_line
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.sampling import Answer
from jax_mdlm.viewing.prompts import Prompt
from jax_mdlm.viewing.show import answer_record, trace_record

TraceWriter = Callable[[Prompt, str, Answer, Tokenizer], None]


@contextlib.contextmanager
def open_traces(path: str | None, keep: int = 0) -> Iterator[TraceWriter]:
    """A function that writes one generation; does nothing without a path or on other processes.

    Args:
      path: Of a local file; None = no traces are wanted.
      keep: Rows that stay in it, of a list that is continued.

    Raises:
      ConfigError: the file cannot be written, or has fewer rows than are kept.
    """
    if path is None or jax.process_index() != 0:
        yield lambda *_: None
        return
    try:
        lines = Path(path).read_bytes().splitlines(keepends=True) if keep else []
        if len(lines) < keep:
            raise ConfigError(
                f"--trace {path} must have a row for each of the {keep} that --output has, got "
                f"{len(lines)}; choose another --output and --trace"
            )
        with open(path, "wb") as file:
            file.writelines(lines[:keep])

            def write(*generation: Any) -> None:
                file.write(f"{to_line(trace_of(*generation))}\n".encode())
                file.flush()

            yield write
    except OSError as error:
        raise ConfigError(
            f"--trace {path} must be a file that can be written, but {error}"
        ) from error


def trace_of(prompt: Prompt, text: str, answer: Answer, tokenizer: Tokenizer) -> dict[str, Any]:
    """A generation as a line of the file holds it."""
    return answer_record(prompt, text) | trace_record(answer, tokenizer)


def read_traces(path: str) -> list[dict[str, Any]]:
    """All generations of a file.

    Raises:
      ConfigError: the file cannot be read, or a line is no generation.
    """
    records = []
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{path} must be a file of --trace, but {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:  # no JSON, or no text at all
            record = None
        if not isinstance(record, dict) or "changes" not in record:
            raise ConfigError(
                f"{path}:{number} must be a generation of --trace, it is not; write the file again "
                "with python -m jax_mdlm.sample --trace"
            )
        records.append(record)
    if not records:
        raise ConfigError(f"{path} must hold at least one generation of --trace, it is empty")
    return records
