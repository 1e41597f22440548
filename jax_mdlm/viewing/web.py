"""An answer as a browser sees it: canvases while it is made, then the page that replays it.

Enters: a dialogue. Leaves: HTML (`pictures`), which `notebook` puts below a cell, and a Gradio app
(extra `colab`) that shows it in a chat: `sample --web`. The page is the one of `--html`, which
needs no Gradio.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

from jax_mdlm.config import ConfigError
from jax_mdlm.extras import how_to_install
from jax_mdlm.viewing.dialogue import Dialogue, Turn, cost_line, left_out, status
from jax_mdlm.viewing.player import framed, page, still
from jax_mdlm.viewing.prompts import Prompt
from jax_mdlm.viewing.show import trace_of
from jax_mdlm.viewing.view import Pace

_Said = list[dict[str, str]]  # as `gr.Chatbot` holds a conversation
_FRAME_SECONDS = 1 / 5  # between two canvases: each is sent whole, perhaps around the world


def make_app(dialogue: Dialogue) -> Any:
    """The app, a `gradio.Blocks`; `launch(share=True)` gives it a public address.

    Every visitor has a conversation of their own; answers are made one after another.

    Raises:
      ConfigError: Gradio is not installed.
    """
    try:
        import gradio as gr
    except ImportError as error:
        raise ConfigError(
            f"--web needs Gradio, which is not installed: {how_to_install('colab')}; a page that "
            "replays answers needs none: --html FILE"
        ) from error

    def answer(
        message: str, said: _Said, turns: list[Turn], number: int
    ) -> Iterator[tuple[str, _Said, str, str, list[Turn], int]]:
        """Streams (message box, conversation, canvas, notes, turns, number)."""
        if not message.strip():
            yield message, said, "", "", turns, number
            return
        asked: _Said = [*said, {"role": "user", "content": message}]
        try:
            for picture in pictures(dialogue, message, turns, number):
                told = [{"role": "assistant", "content": picture.text}] if picture.text else []
                yield "", asked + told, picture.html, picture.notes, picture.turns, number + 1
        except ConfigError as error:
            raise gr.Error(str(error), print_exception=False) from error

    model = dialogue.model
    alone = " Every message is answered alone." if dialogue.answers_alone else ""
    with gr.Blocks(title=model.config.name, analytics_enabled=False) as app:
        gr.Markdown(f"### {model.config.name} at step {model.step:,}\n{alone}")
        turns, number = gr.State([]), gr.State(0)
        said = gr.Chatbot(label="Conversation", height=320, render_markdown=False)
        message = gr.Textbox(label="Message", submit_btn=True, autofocus=True)
        canvas = gr.HTML(label="Canvas")
        notes = gr.Markdown()
        forget = gr.Button("New conversation")
        seen = [message, said, canvas, notes, turns, number]
        message.submit(answer, [message, said, turns, number], seen, api_name="answer")
        forget.click(lambda: ("", [], "", "", [], 0), None, seen, api_visibility="private")
    return app


def serve(dialogue: Dialogue, share: bool) -> None:
    """Serves the app until Ctrl-C.

    Args:
      dialogue: What answers.
      share: Also at a public address, through Gradio's servers.
    """
    app = make_app(dialogue)
    app.queue(default_concurrency_limit=1).launch(share=share, quiet=False)


@dataclasses.dataclass(frozen=True)
class Picture:
    """What stands on the screen.

    Attributes:
      html: The canvas; of a finished answer the page that replays it, in a frame.
      text: The answer; empty until it is finished.
      notes: What is to be said beside it: what it cost, turns that were left out.
      turns: The conversation after it; until the end the one before it.
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
    cost = cost_line(answer, time.perf_counter() - began, compiling, dialogue.model.options)
    text = dialogue.text(answer)
    yield Picture(
        framed(page({model.config.name: [record]}, ended=True)),
        text,
        f"{gone}; {cost}" if gone else cost,
        dialogue.remember(question, text),
        record,
    )
