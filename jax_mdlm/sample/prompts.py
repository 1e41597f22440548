"""What the user wants continued or filled in: from arguments, lines, or JSON rows, to token ids.

A response with gaps is filled in: `[MASK]` stands for one slot, `[MASK*12]` for twelve. The text
between gaps is kept; slack may stand in a gap, so that its text may be shorter than the gap.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from etils import epath

from jax_mdlm.config import ConfigError
from jax_mdlm.data.chat import Template, render_prompt
from jax_mdlm.data.tokenizer import Tokenizer

_GAP = re.compile(r"\[MASK(?:\*(\d+))?\]")
_PROMPT_KEYS = ("prompt", "messages", "question")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One thing to sample.

    Attributes:
      conversation: A text, or a list of messages.
      response: Text with gaps; None = all of the response is to be found.
      row: The JSON object that it came from; repeated in the output.
    """

    conversation: Any
    response: str | None
    row: dict[str, Any]

    @property
    def shown(self) -> str:
        """The text, or the last message's."""
        if isinstance(self.conversation, str):
            return self.conversation
        return str(self.conversation[-1]["content"])


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A prompt in tokens.

    Attributes:
      ids: What the sampler gets: prompt, and in infilling the response with masks.
      opening: Tokens of the response before its first gap; the sampler's answer follows them.
    """

    ids: list[int]
    opening: list[int]


def read_prompts(words: Sequence[str], file: str | None, response: str | None) -> list[Prompt]:
    """Prompts from arguments, or from a file (text lines, or JSON rows), or from stdin.

    Args:
      words: Arguments.
      file: Path; `*.jsonl` has a JSON object on each line.
      response: Text with gaps for all of them; None = as the rows say.

    Raises:
      ConfigError: two sources, no prompt, no such file, a row that is not understood.
    """
    if words and file:
        raise ConfigError("prompts must come as arguments or from --file, got both; drop one")
    if response is not None and not _GAP.search(response):
        raise ConfigError(
            f"--response must have a gap such as [MASK*8] to fill in, got {response!r}"
        )
    if words:
        return [Prompt(word, response, {"prompt": word}) for word in words]
    name = file or "stdin"
    if file:
        path = epath.Path(file)
        if not path.is_file():
            raise ConfigError(f"prompt file {file} was not found; check --file")
        lines = path.read_text().splitlines()
    else:
        lines = sys.stdin.read().splitlines()
    as_json = name.endswith(".jsonl")
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if as_json:
            prompts.append(_parse(line, f"{name}:{number}", response))
        else:
            text = line.strip()
            prompts.append(Prompt(text, response, {"prompt": text}))
    if not prompts:
        raise ConfigError(
            f"{name} must hold at least one prompt, it is empty; give words as arguments, a "
            "--file, or --chat"
        )
    return prompts


def encode_prompt(prompt: Prompt, tokenizer: Tokenizer, template: Template) -> Encoded:
    """Renders the conversation; behind it the response, with masks for its gaps.

    A response that does not end with a gap is closed with the terminator: it ends there.
    """
    ids = render_prompt(tokenizer, prompt.conversation, template)
    if prompt.response is None:
        return Encoded(ids, [])
    mask = tokenizer.ids.mask
    response: list[int] = []
    end = 0
    for gap in _GAP.finditer(prompt.response):
        response += _encode(tokenizer, prompt.response[end : gap.start()])
        response += [mask] * int(gap[1] or 1)
        end = gap.end()
    if prompt.response[end:].strip():
        response += [*_encode(tokenizer, prompt.response[end:]), tokenizer.ids.terminator]
    return Encoded(ids + response, response[: response.index(mask)])


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text) if text.strip() else []


def _parse(line: str, origin: str, response: str | None) -> Prompt:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{origin} must be a JSON object, but {error.msg}") from error
    found = [key for key in _PROMPT_KEYS if isinstance(row, dict) and key in row]
    if not found:
        shown = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise ConfigError(f"{origin} must have one of {', '.join(_PROMPT_KEYS)}, got {shown}")
    own = row.get("response")
    if response is None and isinstance(own, str) and _GAP.search(own):
        response = own
    return Prompt(row[found[0]], response, row)
