"""Chat templates: messages to ids.

A template says what stands before the first message, how a past message reads and what opens the
response. Its control tokens are ids; contents and role names are text, whatever they spell. Past
messages are encoded one by one: every message ends with a control token, so that the ids are those
of the whole text (equal to `apply_chat_template` for LLaDA-Instruct).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from jax_mdlm.config import DataConfig
from jax_mdlm.data.examples import Example, Message, answers, check_text, parse_messages
from jax_mdlm.data.special import HEADER_END, HEADER_START, START, TERMINATOR
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.data.written import Piece, Written, control, encode_written

Conversation = str | Sequence[Message] | Sequence[Mapping[str, Any]]


class Template(Protocol):
    """How a conversation is written."""

    @property
    def start(self) -> Written:
        """What stands before the first message."""
        ...

    @property
    def opening(self) -> Written:
        """What stands after the last message; the response follows."""
        ...

    @property
    def slots(self) -> int:
        """A shorter prompt is filled up with pad tokens to here, before the opening; 0 = none is.

        All responses then start at one slot: distances between prompt and response are fixed.
        """
        ...

    def past(self, message: Message) -> Written:
        """A message of the history."""
        ...


@dataclasses.dataclass(frozen=True)
class LladaTemplate:
    """The template of LLaDA-Instruct; the terminator after a response is `<|eot_id|>`.

    Attributes:
      first: Before all messages.
      header_start: Before a role.
      header_end: After a role.
      terminator: After every past message.
      slots: See `Template`.
    """

    first: Piece
    header_start: Piece
    header_end: Piece
    terminator: Piece
    slots: int = 0

    @property
    def start(self) -> Written:
        """The start of text."""
        return (self.first,)

    @property
    def opening(self) -> Written:
        """The header of an answer, and an empty line."""
        return (self.header_start, "assistant", self.header_end, "\n\n")

    def past(self, message: Message) -> Written:
        """Header, empty line, trimmed content, end of turn."""
        header = (self.header_start, message.role, self.header_end, "\n\n")
        return (*header, message.content.strip(), self.terminator)


@dataclasses.dataclass(frozen=True)
class PlainTemplate:
    """Prompt, separator, response: for data that has no roles to tell apart.

    Attributes:
      separator: After every message that is no answer.
      terminator: After every past answer.
    """

    separator: Piece
    terminator: Piece
    start: Written = ()
    opening: Written = ()
    slots: int = 0

    def past(self, message: Message) -> Written:
        """Trimmed content and what closes it."""
        answer = message.role == "assistant"
        return (message.content.strip(), self.terminator if answer else self.separator)


def make_template(
    name: Literal["llada", "plain"], tokenizer: Tokenizer, prompt_slots: int = 0
) -> Template:
    """The template of `data.template` and `data.prompt_slots`.

    The separator of "plain" is `<|end_header_id|>` where the tokenizer has that token, else a
    newline.
    """
    if name == "llada":
        tokens = (START, HEADER_START, HEADER_END, TERMINATOR)
        return LladaTemplate(*(control(tokenizer, token) for token in tokens), slots=prompt_slots)
    separator = tokenizer.find(HEADER_END)
    return PlainTemplate(
        "\n" if separator is None else separator, tokenizer.ids.terminator, slots=prompt_slots
    )


def template_of(config: DataConfig, tokenizer: Tokenizer) -> Template:
    """How prompts read for a model that was trained with these settings.

    Pre-training joins the messages of a row by newlines, so a prompt is the text up to there.
    """
    if config.pretraining:
        return PlainTemplate(separator="\n", terminator="\n")
    return make_template(config.template, tokenizer, config.prompt_slots)


def history(template: Template, messages: Sequence[Message]) -> list[Written]:
    """What stands before a response, without `opening`; encode each alone and join the ids."""
    return [template.start, *(template.past(message) for message in messages)]


def render_prompt(
    tokenizer: Tokenizer, conversation: Conversation, template: Template
) -> list[int]:
    """Ids after which a response follows.

    Args:
      tokenizer: Encodes.
      conversation: One prompt, or messages (`Message` or objects with role and content).
      template: See `make_template`.

    Raises:
      ConfigError: a message lacks its role or content, or has a role that no template writes.
    """
    if isinstance(conversation, str):
        messages: Example = (Message("user", check_text(conversation, "a prompt")),)
    else:
        messages = parse_messages(conversation, "conversation") if len(conversation) else ()
    return _prompt_ids(tokenizer, messages, template)


def render_example(
    tokenizer: Tokenizer, example: Example, template: Template, turn: int = -1
) -> tuple[list[int], list[int]]:
    """Prompt and response ids for one assistant turn; what comes after that turn is left out.

    Args:
      tokenizer: Encodes.
      example: The conversation.
      template: See `make_template`.
      turn: Which of the assistant's turns is the response; -1 = the last.

    Returns:
      (prompt ids, response ids with the terminator at the end)
    """
    position = answers(example)[turn]
    prompt = _prompt_ids(tokenizer, example[:position], template)
    response = tokenizer.encode(example[position].content.strip())
    return prompt, [*response, tokenizer.ids.terminator]


def _prompt_ids(tokenizer: Tokenizer, messages: Sequence[Message], template: Template) -> list[int]:
    texts = [*history(template, messages), template.opening]
    *parts, opening = encode_written(tokenizer, texts)
    ids = [index for part in parts for index in part]
    return [*ids, *[tokenizer.ids.pad] * (template.slots - len(ids)), *opening]
