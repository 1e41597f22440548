"""The example: what every source yields and what `chat` renders; all of a split."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jax_mdlm.config import ConfigError

# Role of a row -> role of a message. A template writes the role into its header, and sampling
# writes these three only: under any other header nothing would be learned that is ever asked for.
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "ai": "assistant",
}


class Message(NamedTuple):
    """One turn.

    Attributes:
      role: "system", "user" or "assistant"; "text" for a text of pre-training.
      content: The text of the turn.
      weight: 0: an assistant's turn that stands in the history of later ones and is not learned.
    """

    role: str
    content: str
    weight: int = 1

    def __repr__(self) -> str:
        """Digests of decoded rows are made from it: what is usual is not said."""
        usual = "" if self.weight else f", weight={self.weight!r}"
        return f"Message(role={self.role!r}, content={self.content!r}{usual})"


Example = tuple[Message, ...]  # a conversation; a text for pre-training is one message


@dataclasses.dataclass(frozen=True)
class SplitRows:
    """The examples of a split, in memory.

    Attributes:
      name: For messages, e.g. "pronunciations/train".
      examples: Conversations.
      origins: Where each comes from, e.g. "train.jsonl:17".
      skipped: Malformed rows that were left out.
      note: What was done that nobody asked for; "" = nothing.
    """

    name: str
    examples: Sequence[Example]
    origins: Sequence[str]
    skipped: int = 0
    note: str = ""

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def origin(self, index: int) -> str:
        """Where row `index` comes from."""
        return self.origins[index]

    def texts(self) -> Iterator[str]:
        """All contents, for the training of a tokenizer."""
        return (message.content for example in self.examples for message in example)


def pair(prompt: str, response: str) -> Example:
    """The conversation of one question and one answer."""
    return (Message("user", prompt), Message("assistant", response))


def answers(example: Example) -> list[int]:
    """Positions of the assistant's messages that are learned, or scored against."""
    return [
        at for at, message in enumerate(example) if message.role == "assistant" and message.weight
    ]


def without_answer(example: Example) -> tuple[Example, str | None]:
    """What is asked, and the answer that the conversation ends with; None where it has none."""
    if example and example[-1].role == "assistant":
        return example[:-1], example[-1].content
    return example, None


def parse_messages(value: Any, subject: str) -> Example:
    """Messages as in `{"messages": [{"role": ..., "content": ...}, ...]}`.

    Roles become those that templates write (`ROLES`, in any case of letters).

    Args:
      value: What stands in the field `messages`; or messages themselves.
      subject: Opens the error's text, e.g. "train.jsonl:17".

    Raises:
      ConfigError: `value` is no list of objects with a role of `ROLES`, a text as `content` and
        perhaps a `weight` of 0 or 1.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        kind = "an empty list" if value == [] else kind_of(value)
        raise ConfigError(
            f"{subject}: messages must be a list with at least one message, got {kind}"
        )
    return tuple(
        _parse_message(entry, f"message {number}", subject)
        for number, entry in enumerate(value, start=1)
    )


def _parse_message(entry: Any, name: str, subject: str) -> Message:
    if isinstance(entry, Message):
        entry = entry._asdict()
    if not isinstance(entry, Mapping):
        raise ConfigError(
            f"{subject}: {name} must be an object with role and content, got {kind_of(entry)}"
        )
    for field in ("role", "content"):
        if not isinstance(entry.get(field), str):
            found = kind_of(entry[field]) if field in entry else "nothing"
            raise ConfigError(f"{subject}: {field} of {name} must be a string, got {found}")
    role = ROLES.get(entry["role"].lower())
    if role is None:
        raise ConfigError(
            f"{subject}: role of {name} must be one of {', '.join(ROLES)}, got "
            f"{entry['role'][:40]!r}"
        )
    content = check_text(entry["content"], f"{subject}: content of {name}")
    weight = entry.get("weight")
    if weight is not None and weight not in (0, 1):
        raise ConfigError(
            f"{subject}: weight of {name} must be 1 (learned) or 0 (not learned), got "
            f"{repr(weight)[:40]}"
        )
    return Message(role, content, 1 if weight is None else int(weight))


def check_text(text: str, subject: str) -> str:
    r"""The text, if it is one: JSON can name half of a surrogate pair (`\ud83d`) alone.

    Raises:
      ConfigError: it holds such a half.
    """
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{subject} must be text, but its character {error.start + 1} is half of a surrogate "
            f"pair (\\u{ord(text[error.start]):04x})"
        ) from error
    return text


def kind_of(value: Any) -> str:
    """What a value is called in an error's text."""
    return "null" if value is None else type(value).__name__
