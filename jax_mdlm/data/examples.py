"""The example: what every source yields and what `chat` renders; all of a split."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jax_mdlm.config import ConfigError

# Role of a row -> role of a message. A template writes the role into its header; `Message` says
# which there are, and a row with another one is refused: nothing would ever ask for it.
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
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


class BadRowError(ConfigError):
    """A row that cannot be used, as opposed to a file: whoever skips rows can go on after it.

    Attributes:
      kind: What is wrong with it, as skipped rows are counted, e.g. "not JSON".
    """

    def __init__(self, text: str, kind: str = "malformed") -> None:
        super().__init__(text)  # what it is pickled with; `kind` goes along as state
        self.kind = kind


class Message(NamedTuple):
    """One turn.

    Attributes:
      role: "system", "user", "assistant", or "tool" for what a tool gave back; "text" for a text of
        pre-training.
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


WRONG_TYPE = "a field of another type"  # a kind of bad rows
_FILES = 20  # that the log names
_KEPT = 3  # errors of skipped rows that are shown
Example = tuple[Message, ...]  # a conversation; a text for pre-training is one message


@dataclasses.dataclass(frozen=True)
class BadRows:
    """The malformed rows that were left out.

    Attributes:
      kinds: How many of each kind.
      first: The errors of the first three, each names its row.
    """

    kinds: Counter[str] = dataclasses.field(default_factory=Counter)
    first: list[str] = dataclasses.field(default_factory=list)

    def add(self, error: BadRowError) -> None:
        """Counts one more."""
        self.kinds[error.kind] += 1
        if len(self.first) < _KEPT:
            self.first.append(str(error))

    @property
    def total(self) -> int:
        """How many there are."""
        return self.kinds.total()

    def lines(self) -> list[str]:
        """For the log: the kinds, the most frequent first, and the first errors; [] = none."""
        if not self.total:
            return []
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.kinds.most_common())
        return [
            f"rows that were left out: {kinds}; the first:",
            *(f"  {one}" for one in self.first),
        ]


class Part(NamedTuple):
    """The rows of one source.

    Attributes:
      name: For the log.
      rows: How many there are.
      weight: How often each is in an epoch of training.
    """

    name: str
    rows: int
    weight: float = 1.0

    @property
    def drawn(self) -> int:
        """Rows that it has in an epoch."""
        return max(1, round(self.rows * self.weight)) if self.rows else 0


@dataclasses.dataclass(frozen=True)
class SplitRows:
    """The examples of a split, in memory.

    Attributes:
      name: For messages, e.g. "pronunciations/train".
      examples: Conversations.
      origins: Where each comes from, e.g. "train.jsonl:17".
      bad: Malformed rows that were left out.
      forms: What each file held, for the log, e.g. "train.parquet: parquet, messages, 1,234 rows".
      note: What was done that nobody asked for; "" = nothing.
      parts: The sources, in the order of their rows; () = all rows are one.
    """

    name: str
    examples: Sequence[Example]
    origins: Sequence[str]
    bad: BadRows = dataclasses.field(default_factory=BadRows)
    forms: tuple[str, ...] = ()
    note: str = ""
    parts: tuple[Part, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def origin(self, index: int) -> str:
        """Where row `index` comes from."""
        return self.origins[index]

    def lines(self) -> list[str]:
        """For the log: what each file held, and which rows were left out."""
        more = len(self.forms) - _FILES
        held = [*self.forms[:_FILES], *([f"and {more:,} more files"] if more > 0 else [])]
        return held + self.bad.lines()

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


def parse_messages(
    value: Any, subject: str, field: str = "messages", names: tuple[str, str] = ("role", "content")
) -> Example:
    """Messages as in `{"messages": [{"role": ..., "content": ...}, ...]}`.

    Roles become those that templates write (`ROLES`, in any case of letters). A content is a text,
    or a list of texts and parts `{"type": "text", "text": ...}`, which are joined by nothing.

    Args:
      value: What stands in the field `messages`; or messages themselves.
      subject: Opens the error's text, e.g. "train.jsonl:17".
      field: What the field is called.
      names: What role and content are called.

    Raises:
      BadRowError: `value` is no list of objects with a role of `ROLES`, a text as `content` and
        perhaps a `weight` of 0 or 1.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        kind = "an empty list" if value == [] else kind_of(value)
        raise BadRowError(
            f"{subject}: {field} must be a list with at least one message, got {kind}", WRONG_TYPE
        )
    return tuple(
        _parse_message(entry, f"message {number}", subject, names)
        for number, entry in enumerate(value, start=1)
    )


def _parse_message(entry: Any, name: str, subject: str, names: tuple[str, str]) -> Message:
    if isinstance(entry, Message):
        entry = entry._asdict()
    says, holds = names
    if not isinstance(entry, Mapping):
        raise BadRowError(
            f"{subject}: {name} must be an object with {says} and {holds}, got {kind_of(entry)}",
            WRONG_TYPE,
        )
    content = _content(entry.get(holds), f"{subject}: {holds} of {name}")
    for field, value in ((says, entry.get(says)), (holds, content)):
        if not isinstance(value, str):
            found = kind_of(value) if field in entry else "nothing"
            raise BadRowError(
                f"{subject}: {field} of {name} must be a string, got {found}", WRONG_TYPE
            )
    role = ROLES.get(entry[says].lower())
    if role is None:
        raise BadRowError(
            f"{subject}: {says} of {name} must be one of {', '.join(ROLES)}, got "
            f"{entry[says][:40]!r}",
            "unknown role",
        )
    check_text(content, f"{subject}: {holds} of {name}")
    weight = entry.get("weight")
    if weight is not None and weight not in (0, 1):
        raise BadRowError(
            f"{subject}: weight of {name} must be 1 (learned) or 0 (not learned), got "
            f"{repr(weight)[:40]}",
            "a weight that is neither 0 nor 1",
        )
    return Message(role, content, 1 if weight is None else int(weight))


def _content(value: Any, subject: str) -> Any:
    """A content as text where it is a list of parts; anything else as it is."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        kind, text = "text", part
        if isinstance(part, Mapping):
            kind, text = part.get("type"), part.get("text")
        if kind != "text" or not isinstance(text, str):
            found = kind_of(text) if kind == "text" else f"type {str(kind)[:40]!r}"
            raise BadRowError(
                f"{subject} must be text, got a part of {found}", "content that is no text"
            )
        texts.append(text)
    return "".join(texts)


def check_text(text: str, subject: str) -> str:
    r"""The text, if it is one: JSON can name half of a surrogate pair (`\ud83d`) alone.

    Raises:
      BadRowError: it holds such a half.
    """
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRowError(
            f"{subject} must be text, but its character {error.start + 1} is half of a surrogate "
            f"pair (\\u{ord(text[error.start]):04x})",
            "not text",
        ) from error
    return text


def kind_of(value: Any) -> str:
    """What a value is called in an error's text."""
    return "null" if value is None else type(value).__name__
