"""Chat templates: messages to ids.

A template says what stands before the first message, how a past message reads and what opens the
response. A user may spell a control token (`<|eot_id|>`) in a message, and in one string nobody
could tell it from the template's own: so templates write pieces, control tokens as ids and text
that is only text. Past messages are encoded one by one: every message ends with a control token, so
that the ids are those of the whole text (equal to `apply_chat_template` for LLaDA-Instruct).
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from jax_mdlm.config import DataConfig
from jax_mdlm.data.examples import Example, Message, check_text, parse_messages
from jax_mdlm.data.special import HEADER_END, HEADER_START, START, TERMINATOR
from jax_mdlm.data.tokenizer import Tokenizer

Piece = int | str  # a control token's id, or text
Written = Sequence[Piece]
Conversation = str | Sequence[Message] | Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Template:
    """How a conversation is written.

    Attributes:
      start: What stands before the first message.
      opening: What stands after the last message; the response follows.
      header: What stands before and after the role of a past message; () = no role is written.
      separator: After every past message that is no answer.
      terminator: After every past answer.
      slots: A shorter prompt is filled up with pad tokens to here, before the opening; 0 = none is.
        All responses then start at one slot: distances between prompt and response are fixed.
    """

    start: Written
    opening: Written
    header: tuple[Written, Written] | tuple[()]
    separator: Piece
    terminator: Piece
    slots: int = 0

    def past(self, message: Message) -> Written:
        """A message of the history: header, trimmed content, what closes it."""
        header: Written = ()
        if self.header:
            before, after = self.header
            header = (*before, message.role, *after)
        end = self.terminator if message.role == "assistant" else self.separator
        return (*header, message.content.strip(), end)


def plain_template(separator: Piece, terminator: Piece, slots: int = 0) -> Template:
    """Prompt, separator, response: for data that has no roles to tell apart."""
    return Template((), (), (), separator, terminator, slots)


def make_template(
    name: Literal["llada", "plain"], tokenizer: Tokenizer, prompt_slots: int = 0
) -> Template:
    """The template of `data.template` and `data.prompt_slots`.

    "llada" is that of LLaDA-Instruct. The separator of "plain" is `<|end_header_id|>` where the
    tokenizer has that token, else a newline.
    """

    def control(token: str) -> Piece:  # text where it is not one token
        index = tokenizer.find(token)
        return token if index is None else index

    if name == "plain":
        found = tokenizer.find(HEADER_END)
        separator = "\n" if found is None else found
        return plain_template(separator, tokenizer.ids.terminator, prompt_slots)
    before, after = control(HEADER_START), (control(HEADER_END), "\n\n")
    end = control(TERMINATOR)
    opening = (before, "assistant", *after)
    return Template((control(START),), opening, ((before,), after), end, end, prompt_slots)


def template_of(config: DataConfig, tokenizer: Tokenizer) -> Template:
    """How prompts read for a model that was trained with these settings.

    Pre-training joins the messages of a row by newlines, so a prompt is the text up to there.
    """
    return training_template(config, tokenizer) or plain_template("\n", "\n")


def training_template(config: DataConfig, tokenizer: Tokenizer) -> Template | None:
    """How rows are written; None for pre-training, which learns them as they are."""
    if config.pretraining:
        return None
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
    texts = [*history(template, messages), template.opening]
    *parts, opening = encode_written(tokenizer, texts)
    ids = [index for part in parts for index in part]
    return [*ids, *[tokenizer.ids.pad] * (template.slots - len(ids)), *opening]


def encode_written(tokenizer: Tokenizer, texts: Iterable[Written]) -> list[list[int]]:
    """Ids of what was written.

    Text between two control tokens is one run, however many pieces it has: a tokenizer reads an
    empty line before a word otherwise than one at the end. Equal runs are encoded once; where a
    tokenizer cuts after the empty line of a header, so is a message that was also a response.

    Args:
      tokenizer: Encodes the runs.
      texts: Encoded one by one.

    Raises:
      ConfigError: as `Tokenizer.encode_batch`.
    """
    runs: dict[str, int] = {}
    plans, cuts = [], tokenizer.splits_lines
    for pieces in texts:
        plan: list[int] = []  # an id, or the number of a run as -1 - number
        run = ""
        for piece in pieces:
            if isinstance(piece, str):
                run += piece
                continue
            if run:
                plan += [~runs.setdefault(part, len(runs)) for part in _parts(run, cuts)]
                run = ""
            plan.append(piece)
        if run:
            plan += [~runs.setdefault(part, len(runs)) for part in _parts(run, cuts)]
        plans.append(plan)
    encoded = tokenizer.encode_batch(list(runs))
    found = []
    for plan in plans:
        ids: list[int] = []
        for entry in plan:
            if entry < 0:
                ids.extend(encoded[~entry])
            else:
                ids.append(entry)
        found.append(ids)
    return found


def _parts(run: str, cuts: bool) -> tuple[str, ...]:
    """A run as it is encoded; `cuts`: an empty line alone, where text follows it at once."""
    if cuts and run.startswith("\n\n") and not run[2:3].isspace() and len(run) > 2:
        return run[:2], run[2:]
    return (run,)
