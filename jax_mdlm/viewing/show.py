"""Answers as people and programs read them: a line of text, a table of slots, JSON records.

The file of `--trace` has such a record a line, from which a viewer replays the generation.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_mdlm.config import ConfigError
from jax_mdlm.data.jsonl import Line, number_lines, parse_object, to_line
from jax_mdlm.data.tokenizer import Tokenizer, slot_texts, visible, without_end
from jax_mdlm.sampling import Answer
from jax_mdlm.viewing.prompts import EncodedPrompt, Prompt

_OF_AN_ANSWER = ("error", "canvas", "committed_at")  # a row that was an output has an older one's
WRITTEN = ("response", "reference", "template", *_OF_AN_ANSWER)  # what a record adds to its row
TraceWriter = Callable[[Prompt, str, Answer, Tokenizer], None]


def answer_text(answer: Answer, encoded: EncodedPrompt, tokenizer: Tokenizer) -> str:
    """The response; in infilling with what stands before its first gap."""
    return tokenizer.decode([*encoded.opening, *answer.tokens])


def answer_record(prompt: Prompt, text: str) -> dict[str, Any]:
    """The prompt's row with the model's answer as `response`.

    An answer that the row had (its `response`, `answer` or last assistant turn) stands in
    `reference`, unless the row has that field already; a `response` with gaps in `template`.
    """
    row = {name: value for name, value in prompt.row.items() if name not in _OF_AN_ANSWER}
    if prompt.response is not None and row.get("response") == prompt.response:
        row["template"] = prompt.response
    if prompt.reference is not None:
        row.setdefault("reference", prompt.reference)
    return row | {"response": text}


def refused_record(prompt: Prompt, reason: str) -> dict[str, Any]:
    """A prompt that was not answered: its `response` is null, `error` says why."""
    return answer_record(prompt, "") | {"response": None, "error": reason}


def slot_record(answer: Answer, tokenizer: Tokenizer) -> dict[str, Any]:
    """What stands in each slot, and the call (from 0) that put it there; -1: given."""
    slots = answer.response.tolist()
    return {
        "canvas": slot_texts(slots, tokenizer),
        "committed_at": answer.committed_at.tolist(),
    }


def trace_record(answer: Answer, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a viewer needs to replay the generation.

    `start` is the region before the first call, `changes` are `[call, slot, token]` in order, and
    `confidence` is the probability of the token that was committed last in each slot (null where
    the text was given, or no commit of its own put the token there).
    """
    assert answer.trace is not None
    frames, offered = np.asarray(answer.trace.frames), np.asarray(answer.trace.confidence)
    mask = tokenizer.ids.mask
    changes = []
    confidence: list[float | None] = [None] * frames.shape[1]
    for call, (before, frame) in enumerate(itertools.pairwise(frames)):
        for slot in np.flatnonzero(frame != before):
            changes.append([call, int(slot), slot_texts([int(frame[slot])], tokenizer)[0]])
            if before[slot] == mask and offered[call, slot] > 0:
                confidence[slot] = round(float(offered[call, slot]), 4)
    return {
        "calls": answer.calls,
        "start": slot_texts(frames[0].tolist(), tokenizer),
        "changes": changes,
        "confidence": confidence,
        **slot_record(answer, tokenizer),
    }


def show_line(prompt: Prompt, text: str, answer: Answer, tokenizer: Tokenizer, canvas: bool) -> str:
    """`prompt -> response`, below it (`canvas`) the slots and the order of their commits."""
    line = f"{prompt.shown} -> {text}"
    if not canvas:
        return line
    slots = without_end(answer.response.tolist(), tokenizer)
    tokens = [visible(token) for token in slot_texts(slots, tokenizer)]
    return f"{line}\n{_table(tokens, answer.committed_at.tolist())}"


def _table(tokens: Sequence[str], order: Sequence[int]) -> str:
    calls = [str(call) if call >= 0 else "" for call in order[: len(tokens)]]
    widths = [max(len(token), len(call)) for token, call in zip(tokens, calls, strict=True)]
    top = " ".join(token.ljust(width) for token, width in zip(tokens, widths, strict=True))
    bottom = " ".join(call.ljust(width) for call, width in zip(calls, widths, strict=True))
    return f"  slot {top.rstrip()}\n  call {bottom.rstrip()}"


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
    try:
        with open(path, "rb") as file:
            lines = list(number_lines(file, path))
    except OSError as error:
        raise ConfigError(f"{path} must be a file of --trace, but {error}") from error
    if not lines:
        raise ConfigError(f"{path} must hold at least one generation of --trace, it is empty")
    return [_parse_trace(line) for line in lines]


def _parse_trace(line: Line) -> dict[str, Any]:
    try:
        record = parse_object(line)
    except ConfigError:  # no JSON, no object, or no text at all
        record = {}
    if "changes" not in record:
        raise ConfigError(
            f"{line.origin} must be a generation of --trace, it is not; write the file again "
            "with python -m jax_mdlm.sample --trace"
        )
    return record
