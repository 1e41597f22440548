"""A chat in the browser that shows the canvas while it is denoised: `sample --web`.

Enters: a dialogue. Leaves: a Gradio app (extra `colab`). What it shows is `live`'s: the page that
replays an answer is the one of `--html`, which needs no Gradio.
"""

from collections.abc import Iterator
from typing import Any

from jax_mdlm.config import ConfigError
from jax_mdlm.extras import how_to_install
from jax_mdlm.viewing.dialogue import Dialogue, Turn
from jax_mdlm.viewing.live import pictures

_Said = list[dict[str, str]]  # as `gr.Chatbot` holds a conversation


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
