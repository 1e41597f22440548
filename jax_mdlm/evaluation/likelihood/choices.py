"""Multiple choice by likelihood: the answer that the model finds likeliest."""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from jax_mdlm.config import ConfigError
from jax_mdlm.evaluation.likelihood.estimate import Estimate


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt with answers to choose from.

    Attributes:
      prompt: Text of the prompt.
      choices: Text of each answer, two or more.
      answer: Index of the right one.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int


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


def parse_question(line: bytes, subject: str) -> Question:
    """One line of JSON, `{"prompt": str, "choices": [str, ...], "answer": index}`.

    Args:
      line: UTF-8.
      subject: Opens the error's text, "file:line".

    Raises:
      ConfigError: the line is no such object.
    """
    form = 'an object {"prompt": text, "choices": [text, text, ...], "answer": index}'
    try:
        row = json.loads(line.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{subject} must be JSON, {form}; it cannot be read") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ConfigError(f"{subject} must be {form}, its prompt is no text")
    choices, answer = row.get("choices"), row.get("answer")
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(choice, str) and choice.strip() for choice in choices)
    ):
        raise ConfigError(f"{subject}: choices must be two or more texts, got {choices!r}")
    if type(answer) is not int or not 0 <= answer < len(choices):  # True is an int, and no index
        raise ConfigError(
            f"{subject}: answer must be an index of its {len(choices)} choices, counted from 0, "
            f"got {answer!r}"
        )
    return Question(row["prompt"], tuple(choices), answer)
