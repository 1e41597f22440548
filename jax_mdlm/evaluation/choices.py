"""Multiple choice by likelihood: the answer that the model finds likeliest."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_mdlm.config import ConfigError
from jax_mdlm.data.examples import check_text
from jax_mdlm.data.jsonl import shown_name
from jax_mdlm.likelihood.estimate import Estimate


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt with answers to choose from.

    Attributes:
      prompt: Text of the prompt.
      choices: Text of each answer, two or more.
      answer: Index of the right one.
      origin: Where it comes from, for messages, e.g. "questions.jsonl:3".
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int
    origin: str


def choose(estimates: Sequence[Estimate], lengths: Sequence[int] | None = None) -> int:
    """Picks one of several responses to the same prompt.

    Args:
      estimates: Log-likelihood of each response.
      lengths: What each is divided by: characters of the answers for lm-eval's `acc_norm`, or
        tokens; a long answer is less likely whatever it says. None = nothing (`acc`).

    Returns:
      The index of the largest, the first of equals.
    """
    values = np.array([estimate.value for estimate in estimates])
    return int(np.argmax(values if lengths is None else values / np.asarray(lengths)))


def parse_question(row: Mapping[str, Any], origin: str) -> Question:
    """One row, `{"prompt": str, "choices": [str, ...], "answer": index}`.

    Args:
      row: Its fields.
      origin: Opens the error's text, "file:line".

    Raises:
      ConfigError: the row is no such object.
    """
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(row.get("prompt"), str) or "choices" not in row:
        form = '{"prompt": text, "choices": [text, text, ...], "answer": index}'
        found = ", ".join(map(shown_name, row)) or "none"
        raise ConfigError(f"{origin} must be {form}; its fields are: {found}")
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(choice, str) and choice.strip() for choice in choices)
    ):
        raise ConfigError(f"{origin}: choices must be two or more texts, got {repr(choices)[:60]}")
    if type(answer) is not int or not 0 <= answer < len(choices):  # True is an int, and no index
        raise ConfigError(
            f"{origin}: answer must be an index of its {len(choices)} choices, counted from 0, "
            f"got {repr(answer)[:60]}"
        )
    for number, choice in enumerate(choices, start=1):
        check_text(choice, f"{origin}: choice {number}")
    return Question(check_text(row["prompt"], f"{origin}: prompt"), tuple(choices), answer, origin)
