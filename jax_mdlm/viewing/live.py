"""An answer as a browser sees it: canvases while it is made, then the page that replays it.

Enters: a dialogue and a message. Leaves: HTML. `notebook` puts it below a cell, `web` into a chat.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

from jax_mdlm.viewing.dialogue import Dialogue, Turn, left_out, report, status
from jax_mdlm.viewing.player import framed, page
from jax_mdlm.viewing.prompts import Prompt
from jax_mdlm.viewing.still import still
from jax_mdlm.viewing.traces import trace_of
from jax_mdlm.viewing.view import Pace

_FRAME_SECONDS = 1 / 5  # between two canvases: each is sent whole, perhaps around the world


@dataclasses.dataclass(frozen=True)
class Picture:
    """What stands on the screen.

    Attributes:
      html: The canvas; of a finished answer the page that replays it, in a frame.
      text: The answer; empty until it is finished.
      notes: What is to be said beside it: what it cost, turns that were left out.
      turns: The conversation behind it; until the end the one before it.
      record: The generation so far, as `--trace` writes it.
    """

    html: str
    text: str
    notes: str
    turns: list[Turn]
    record: dict[str, Any]


def pictures(
    dialogue: Dialogue, message: str, turns: Sequence[Turn], number: int
) -> Iterator[Picture]:
    """Answers a message, canvas by canvas.

    Args:
      dialogue: With traces (`open_dialogue`).
      message: What is asked.
      turns: What was said before.
      number: Of the message in its conversation, from 0.

    Yields:
      Pictures, the last one with the text and the new conversation.

    Raises:
      ConfigError: a message that the tokenizer or the model cannot take.
    """
    model, before = dialogue.model, list(turns)
    question = dialogue.ask(message, before, number)
    gone = left_out(question, model.config.model.max_length)
    record: dict[str, Any] = {}
    compiling = 0.0
    if not dialogue.is_compiled(question):
        yield Picture('<p role="status">compiling...</p>', "", gone, before, record)
        compiling = dialogue.compile(question)
    prompt = Prompt(message, None, {"prompt": message})
    pace, began, answer = Pace(_FRAME_SECONDS), time.perf_counter(), None
    for frame in dialogue.frames(question, pace):
        with pace.frame():
            answer = frame.answer
            record = trace_of(prompt, dialogue.text(answer), answer, model.tokenizer)
            html = still(record, status(answer, dialogue.model.options))
            yield Picture(html, "", gone, before, record)
    assert answer is not None
    cost = report(answer, time.perf_counter() - began, compiling, dialogue.model.options)
    text = dialogue.text(answer)
    yield Picture(
        framed(page({model.config.name: [record]}, ended=True)),
        text,
        f"{gone}; {cost}" if gone else cost,
        dialogue.remember(question, text),
        record,
    )
