"""The example: what every source yields and what `chat` renders."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jax_mdlm.config import ConfigError


class Message(NamedTuple):
    """One turn.

    Attributes:
      role: "user", "assistant", or whatever else a template may print.
      content: The text of the turn.
    """

    role: str
    content: str


Example = tuple[Message, ...]  # a conversation; a text for pre-training is one message


def pair(prompt: str, response: str) -> Example:
    """The conversation of one question and one answer."""
    return (Message("user", prompt), Message("assistant", response))


def parse_messages(value: Any, subject: str) -> Example:
    """Messages as in `{"messages": [{"role": ..., "content": ...}, ...]}`.

    Args:
      value: What stands in the field `messages`.
      subject: Opens the error's text, e.g. "train.jsonl:17".

    Raises:
      ConfigError: `value` is no list of objects with the strings `role` and `content`.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        kind = "an empty list" if value == [] else type(value).__name__
        raise ConfigError(
            f"{subject}: messages must be a list with at least one message, got {kind}"
        )
    messages = []
    for number, entry in enumerate(value, start=1):
        if not isinstance(entry, Mapping):
            raise ConfigError(
                f"{subject}: message {number} must be an object with role and content, "
                f"got {type(entry).__name__}"
            )
        for field in Message._fields:
            if not isinstance(entry.get(field), str):
                found = type(entry[field]).__name__ if field in entry else "nothing"
                raise ConfigError(
                    f"{subject}: {field} of message {number} must be a string, got {found}"
                )
        messages.append(Message(entry["role"], entry["content"]))
    return tuple(messages)


def held_out(examples: Sequence[Example], percent: float) -> np.ndarray:
    """Which rows belong to the validation split, by a hash of their content.

    A row keeps its side when rows are added, moved or read from other files, and equal rows are on
    one side. Where the hash holds out none, the row with the smallest hash is taken, so that a
    small file can be evaluated too.

    Args:
      examples: The rows of the source.
      percent: Expected share, in percent; 0 = none.

    Returns:
      bool [rows].
    """
    hashes = np.array([_content_hash(example) for example in examples], dtype=np.uint64)
    if percent <= 0 or len(examples) < 2:
        return np.zeros(len(examples), bool)
    chosen = hashes < np.uint64(min(percent / 100, 1 - 2**-52) * 2.0**64)
    if not chosen.any():
        chosen = hashes == hashes.min()
    return chosen


def _content_hash(example: Example) -> int:
    text = "\x1e".join(f"{role}\x1f{content}" for role, content in example)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
