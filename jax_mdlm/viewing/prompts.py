"""What the user wants continued or filled in: from arguments, lines, or JSON rows, to token ids.

A response with gaps is filled in: `[MASK]` stands for one slot, `[MASK*12]` for twelve. The text
between gaps is kept; slack may stand in a gap, so that its text may be shorter than the gap.
"""

import dataclasses
import functools
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from jax_mdlm.config import ConfigError
from jax_mdlm.data.chat import Conversation
from jax_mdlm.data.examples import check_text, without_answer
from jax_mdlm.data.files import find_files, open_plain
from jax_mdlm.data.forms import parse_prompt
from jax_mdlm.data.jsonl import Line, decode_text, number_lines, parse_lines
from jax_mdlm.data.readers import container_of, container_of_line
from jax_mdlm.data.rows import parse_files
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.sampling import why_too_long
from jax_mdlm.setup import Setup

_GAP = re.compile(r"\[MASK(?:\*(\d+))?\]")
_OF_LINES = ("text", "lines")  # containers that hold a prompt a line
# Of a gap: what no model takes need not be laid out to be refused.
_MOST_SLOTS, _DIGITS = 1 << 20, 9


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One thing to sample.

    Attributes:
      conversation: A text, or messages.
      response: Text with gaps; None = all of the response is to be found.
      row: The JSON object that it came from; repeated in the output.
      reference: The answer that the row has already; None = it has none.
      origin: What it is called in messages, e.g. "rows.jsonl:3".
    """

    conversation: Conversation
    response: str | None
    row: dict[str, Any]
    reference: str | None = None
    origin: str = "the prompt"

    @property
    def shown(self) -> str:
        """The text, or the last message's."""
        if isinstance(self.conversation, str):
            return self.conversation
        return last_text(self.conversation)


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """A prompt in tokens.

    Attributes:
      ids: What the sampler gets: prompt, and in infilling the response with masks.
      opening: Tokens of the response before its first gap; the sampler's answer follows them.
    """

    ids: list[int]
    opening: list[int]


def read_prompts(words: Sequence[str], files: str | None, response: str | None) -> list[Prompt]:
    """Prompts from arguments, or from files (text lines, or rows), or from stdin.

    Args:
      words: Arguments.
      files: Paths and globs, comma-separated. Of rows, as training reads them; one that holds
        none, such as `*.txt`, has a prompt on each line.
      response: Text with gaps for all of them; None = as the rows say.

    Raises:
      ConfigError: two sources, no prompt, no such file, a row that is not understood.
    """
    if words and files:
        raise ConfigError("prompts must come as arguments or from --file, got both; drop one")
    if response is not None and not _GAP.search(response):
        raise ConfigError(
            f"--response must have a gap such as [MASK*8] to fill in, got {response!r}"
        )
    if words:
        many = len(words) > 1
        return [
            _from_text(word, f"prompt {number}" if many else "the prompt", response)
            for number, word in enumerate(words, start=1)
        ]
    if files is None:
        return list(_from_stdin(response))
    found = find_files(files, "--file")
    return [prompt for path in found for prompt in _from_file(path, response)]


def last_text(conversation: Sequence[Any]) -> str:
    """The text of a conversation's last message, "" where it has none."""
    return conversation[-1].content if len(conversation) else ""


def encode_prompts(prompts: Sequence[Prompt], setup: Setup) -> list[EncodedPrompt | str]:
    """Every prompt in tokens; one that the tokenizer or the model cannot take keeps no other back.

    Returns:
      Of each the tokens, or why it cannot be answered: a line that begins with its origin.

    Raises:
      ConfigError: none of them can be answered; says why of the first.
    """
    found: list[EncodedPrompt | str] = []
    for prompt in prompts:
        try:
            encoded = encode_prompt(prompt, setup)
        except ConfigError as error:
            found.append(f"{prompt.origin}: {error}")
            continue
        reason = why_too_long(encoded.ids, setup.options, setup.config.model.max_length)
        found.append(f"{prompt.origin} {reason}" if reason else encoded)
    reasons = [one for one in found if isinstance(one, str)]
    if len(reasons) == len(found):
        more = f" (and so with all {len(found)} prompts)" if len(found) > 1 else ""
        raise ConfigError(reasons[0] + more)
    return found


def encode_prompt(prompt: Prompt, setup: Setup) -> EncodedPrompt:
    """Renders the conversation; after it the response, with masks for its gaps.

    A response that does not end with a gap is closed with the terminator: it ends there.
    """
    ids, tokenizer = setup.encode(prompt.conversation), setup.tokenizer
    if prompt.response is None:
        return EncodedPrompt(ids, [])
    mask = tokenizer.ids.mask
    response: list[int] = []
    end = 0
    for gap in _GAP.finditer(prompt.response):
        response += _encode(tokenizer, prompt.response[end : gap.start()])
        response += [mask] * min(int((gap[1] or "1")[:_DIGITS]), _MOST_SLOTS)
        end = gap.end()
    if prompt.response[end:].strip():
        response += [*_encode(tokenizer, prompt.response[end:]), tokenizer.ids.terminator]
    if mask not in response:
        raise ConfigError(f"a gap must have at least one slot, got {prompt.response!r}")
    return EncodedPrompt(ids + response, response[: response.index(mask)])


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(check_text(text, "the response")) if text.strip() else []


def _from_file(path: epath.Path, response: str | None) -> Iterator[Prompt]:
    if container_of(path) not in _OF_LINES:
        yield from parse_files([path], functools.partial(_from_row, response=response))
        return
    with open_plain(path) as file:
        yield from _from_lines(number_lines(file, str(path)), response)


def _from_stdin(response: str | None) -> Iterator[Prompt]:
    """Prompts, or JSON rows, line by line: nothing is known of what comes later."""
    lines = number_lines(sys.stdin.buffer, "stdin")
    first = next(lines, None)
    if first is None:
        raise ConfigError("stdin is empty; give a file with one prompt a line")
    lines, container = itertools.chain([first], lines), container_of_line(first.text, "stdin")
    if container == "JSONL":
        parse = functools.partial(_from_row, response=response)
        yield from parse_lines(lines, parse)
    elif container in _OF_LINES:
        yield from _from_lines(lines, response)
    else:
        raise ConfigError(
            f"stdin must have a prompt or a JSON object a line, it is {container}; name it as a "
            "file with --file"
        )


def _from_lines(lines: Iterator[Line], response: str | None) -> Iterator[Prompt]:
    for line in lines:
        yield _from_text(decode_text(line).strip(), line.origin, response)


def _from_text(text: str, origin: str, response: str | None) -> Prompt:
    return Prompt(text, response, {"prompt": text}, origin=origin)


def _from_row(row: dict[str, Any], origin: str, response: str | None) -> Prompt:
    """A row's question; an answer that it ends with is kept aside, or is the text with gaps."""
    conversation, reference = without_answer(parse_prompt(row, origin))
    own = row.get("response")
    if isinstance(own, str) and _GAP.search(own):
        reference = None if reference == own else reference
        response = own if response is None else response
    return Prompt(conversation, response, row, reference, origin)
