"""Chat templates: messages to ids.

A template says what stands before the first message, how a past message reads and what opens the
response. Past messages are encoded one by one: every message ends with a special token, so that
the ids are those of the whole text (equal to `apply_chat_template` for LLaDA-Instruct).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from jax_mdlm.config import DataConfig
from jax_mdlm.data.examples import Example, Message, answers, check_text, parse_messages
from jax_mdlm.data.special import HEADER_END, HEADER_START, START, TERMINATOR
from jax_mdlm.data.tokenizer import Tokenizer

Conversation = str | Sequence[Message] | Sequence[Mapping[str, Any]]


class Template(Protocol):
    """How a conversation is written."""

    @property
    def start(self) -> str:
        """Text before the first message."""
        ...

    @property
    def opening(self) -> str:
        """Text after the last message; the response follows."""
        ...

    @property
    def slots(self) -> int:
        """A shorter prompt is filled up with pad tokens to here, before the opening; 0 = none is.

        All responses then start at one slot: distances between prompt and response are fixed.
        """
        ...

    def past(self, message: Message) -> str:
        """A message of the history."""
        ...


@dataclasses.dataclass(frozen=True)
class LladaTemplate:
    """The template of LLaDA-Instruct; the terminator after a response is `<|eot_id|>`."""

    start: str = START
    opening: str = f"{HEADER_START}assistant{HEADER_END}\n\n"
    slots: int = 0

    def past(self, message: Message) -> str:
        """Header, empty line, trimmed content, end of turn."""
        header = f"{HEADER_START}{message.role}{HEADER_END}\n\n"
        return f"{header}{message.content.strip()}{TERMINATOR}"


@dataclasses.dataclass(frozen=True)
class PlainTemplate:
    """Prompt, separator, response: for data that has no roles to tell apart.

    Attributes:
      separator: After every message that is no answer.
      terminator: After every past answer.
    """

    separator: str
    terminator: str
    start: str = ""
    opening: str = ""
    slots: int = 0

    def past(self, message: Message) -> str:
        """Trimmed content and what closes it."""
        answer = message.role == "assistant"
        return message.content.strip() + (self.terminator if answer else self.separator)


def make_template(
    name: Literal["llada", "plain"], tokenizer: Tokenizer, prompt_slots: int = 0
) -> Template:
    """The template of `data.template` and `data.prompt_slots`.

    The separator of "plain" is `<|end_header_id|>` where the tokenizer has that token, else a
    newline.
    """
    if name == "llada":
        return LladaTemplate(slots=prompt_slots)
    separator = HEADER_END if len(tokenizer.encode(HEADER_END)) == 1 else "\n"
    return PlainTemplate(separator, tokenizer.token(tokenizer.ids.terminator), slots=prompt_slots)


def template_of(config: DataConfig, tokenizer: Tokenizer) -> Template:
    """How prompts read for a model that was trained with these settings.

    Pre-training joins the messages of a row by newlines, so a prompt is the text up to there.
    """
    if config.pretraining:
        return PlainTemplate(separator="\n", terminator="\n")
    return make_template(config.template, tokenizer, config.prompt_slots)


def history(template: Template, messages: Sequence[Message]) -> list[str]:
    """The texts before a response, without `opening`; encode each alone and join the ids."""
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
    *parts, opening = tokenizer.encode_batch(texts)
    ids = [index for part in parts for index in part]
    return [*ids, *[tokenizer.ids.pad] * (template.slots - len(ids)), *opening]
