"""What a row says, as a conversation: the forms that people write rows in.

Enters: the fields of a row. Leaves: an `Example`; what cannot be one is refused, with the kind of
its fault. `FORMS` are told apart by their fields; where a row has the fields of several, the first
of them counts. A field that is null, as tables write one that a row has not, is none, as long as
the others make a form. Other fields are ignored.
"""

from collections.abc import Mapping
from typing import Any

from jax_mdlm.data.examples import (
    WRONG_TYPE,
    BadRowError,
    Example,
    Message,
    answers,
    check_text,
    kind_of,
    parse_messages,
)
from jax_mdlm.data.jsonl import shown_name

# Name -> fields that a row of this form has.
FORMS = {
    "messages": ("messages",),
    "prompt and response": ("prompt", "response"),
    "question and answer": ("question", "answer"),
    "conversations (ShareGPT)": ("conversations",),
    "instruction and output (Alpaca)": ("instruction", "output"),
    "prompt and completion": ("prompt", "completion"),
    "text": ("text",),
}
_ASKING = ("prompt", "question", "instruction")  # fields that ask without an answer
_UNKNOWN = "no known form"
_SHOWN = 12  # fields that an error lists


def form_of(row: Mapping[str, Any]) -> str:
    """The name of a row's form, of `FORMS`; "" where it has none."""
    given = {field for field, value in row.items() if value is not None}
    for fields in (given, row.keys()):
        for name, needed in FORMS.items():
            if fields >= set(needed):
                return name
    return ""


def parse_row(row: dict[str, Any], origin: str, pretraining: bool = False) -> Example:
    """One row that is learned, or scored against, as a conversation.

    Args:
      row: Its fields.
      origin: Opens the error's text, "file:line".
      pretraining: Texts, and conversations without an answer, are accepted too.

    Raises:
      BadRowError: the row has no known form, or no answer.
    """
    form = form_of(row)
    if not form:
        expected = "must have messages, prompt and response, or question and answer"
        raise _unknown(row, origin, expected)
    if form == "text":
        if not pretraining:
            raise BadRowError(
                f"{origin} has only a text, which needs data.pretraining=True", "only a text"
            )
        return (Message("text", _text(row, "text", origin)),)
    example = _conversation(row, form, origin)
    if pretraining:
        for number, message in enumerate(example, start=1):
            if not message.weight:
                raise BadRowError(
                    f"{origin}: weight of message {number} must be 1 with data.pretraining=True, "
                    "which learns the whole text, got 0",
                    "a weight of 0",
                )
        return example
    learned = answers(example)
    if not learned:
        roles = {message.role for message in example}
        found = "all have weight 0" if "assistant" in roles else "got none"
        raise BadRowError(
            f"{origin}: messages must hold an assistant message to learn, {found}", "no answer"
        )
    if not all(example[at].content.strip() for at in learned):
        raise BadRowError(
            f"{origin}: the response is empty; there is nothing to learn, fill it",
            "empty response",
        )
    return example


def parse_prompt(row: dict[str, Any], origin: str) -> Example:
    """One row that is to be answered, as a conversation; it may have an answer already.

    Raises:
      BadRowError: the row has no known form.
    """
    form = form_of(row)
    if form and form != "text":
        return _conversation(row, form, origin)
    for field in _ASKING:
        if field in row:
            return _asked(row, field, origin)
    raise _unknown(row, origin, "must have messages, prompt or question")


def _conversation(row: dict[str, Any], form: str, origin: str) -> Example:
    if form == "messages":
        return parse_messages(row["messages"], origin)
    if form == "conversations (ShareGPT)":
        turns = row["conversations"]
        named = isinstance(turns, list) and any(
            isinstance(turn, Mapping) and "role" in turn for turn in turns
        )
        names = ("role", "content") if named else ("from", "value")
        return parse_messages(turns, origin, "conversations", names)
    asking, answering = FORMS[form]
    return _asked(row, asking, origin) + _turns(row, answering, "assistant", origin)


def _asked(row: dict[str, Any], field: str, origin: str) -> Example:
    if field == "instruction" and row.get("input") is not None:
        instruction, more = _text(row, field, origin), _text(row, "input", origin)
        text = f"{instruction}\n\n{more}" if more.strip() else instruction
        return (Message("user", text),)
    return _turns(row, field, "user", origin)


def _turns(row: dict[str, Any], field: str, role: str, origin: str) -> Example:
    """A text as the turn of a role; or messages, as TRL writes prompts and completions."""
    value = row[field]
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        return parse_messages(value, f"{origin}: {field}")
    return (Message(role, _text(row, field, origin)),)


def _text(row: dict[str, Any], field: str, origin: str) -> str:
    if not isinstance(row[field], str):
        raise BadRowError(
            f"{origin}: {field} must be a string, got {kind_of(row[field])}", WRONG_TYPE
        )
    return check_text(row[field], f"{origin}: {field}")


def _unknown(row: Mapping[str, Any], origin: str, expected: str) -> BadRowError:
    if "chosen" in row and "rejected" in row:
        return BadRowError(
            f"{origin} is a row of preferences (chosen, rejected); give one of the two as messages",
            _UNKNOWN,
        )
    shown = ", ".join(shown_name(name) for name in list(row)[:_SHOWN]) or "none"
    more = f" and {len(row) - _SHOWN} more" if len(row) > _SHOWN else ""
    return BadRowError(f"{origin} {expected}; its fields are: {shown}{more}", _UNKNOWN)
