"""`sample --chat`: what the user types, line by line."""

import dataclasses
import io
import sys
from pathlib import Path

import jax
import pytest

from jax_mdlm.config import ConfigError
from jax_mdlm.data.examples import Message
from jax_mdlm.mdlm import Mdlm
from jax_mdlm.viewing import chat
from jax_mdlm.viewing.chat import Conversation, converse
from jax_mdlm.viewing.dialogue import Dialogue
from tests.viewing.talk import Talk, talk


@pytest.fixture
def run(talking: tuple[Mdlm, Path]) -> Mdlm:
    return talking[0]


class Script:
    """What the user types, and presses."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self.lines = list(lines)

    def __call__(self, prompt: str) -> str:
        assert prompt == "you> "
        line = self.lines.pop(0)
        if isinstance(line, str):
            return line
        raise line(*(("utf-8", b"\xff", 0, 1, "") if line is UnicodeDecodeError else ()))


def transcript(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    now: Talk,
    *lines: str | type[BaseException],
) -> list[str]:
    script = Script(*lines)
    monkeypatch.setattr("builtins.input", script)
    monkeypatch.setenv("COLUMNS", "200")
    converse(Dialogue(now.model))
    assert script.lines == []
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("leave", ["/quit", " /quit ", EOFError, KeyboardInterrupt])
def test_commands(
    run: Mdlm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    leave: str | type[BaseException],
) -> None:
    """None of these lines reaches the model."""
    monkeypatch.setattr(Conversation, "_generate", None)
    lines = ["", "   ", "/help", "/new", "/nwe", "x" * 999]
    lines += ["half \udcff", UnicodeDecodeError]
    now = talk(run)
    size = len(run.encode("x" * 999))
    printed = transcript(monkeypatch, capsys, now, *lines, leave)
    ended = [""] if not isinstance(leave, str) else []
    assert printed == [
        "tiny at step 7; /help lists the commands",
        *chat.HELP.splitlines(),
        "a new conversation",
        "there is no command /nwe; /help lists them",
        f"the message takes {size} slots, model.max_length=640 leaves 632 beside sample.length=8; "
        "shorten it",
        *["that line is not text in this terminal's encoding; type it again"] * 2,
        *ended,
    ]


def test_a_terminal_without_utf8(
    run: Mdlm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    transcript(monkeypatch, capsys, talk(run), "/help", EOFError)
    sys.stdout.flush()
    assert "? is masked, · is slack".encode("latin-1") in written.getvalue()


def test_a_slash_may_begin_a_message(
    run: Mdlm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr(Conversation, "ask", lambda self, text: asked.append(text))
    transcript(monkeypatch, capsys, talk(run), "/usr/bin is", " /2 ", "a /new", EOFError)
    assert asked == ["/usr/bin is", "/2", "a /new"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "stopped; this turn is not remembered"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB"),
            "the canvas does not fit into memory; /new begins a shorter one",
        ),
        (ConfigError("text 'É' holds 'É'"), "text 'É' holds 'É'"),
    ],
)
def test_what_ends_an_answer_does_not_end_the_conversation(
    run: Mdlm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    said: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Conversation, "ask", fail)
    assert transcript(monkeypatch, capsys, talk(run), "a", "/new", "/quit")[1:] == [
        said,
        "a new conversation",
    ]


def test_other_errors_are_not_hidden(
    run: Mdlm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: x")

    monkeypatch.setattr(Conversation, "ask", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        transcript(monkeypatch, capsys, talk(run), "a")


def test_prompts_of_a_fixed_width_are_answered_alone(
    run: Mdlm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = talk(run)
    template = dataclasses.replace(now.model.template, slots=100)
    now.model = dataclasses.replace(now.model, template=template)
    alone, encode = [], Mdlm.encode
    monkeypatch.setattr(
        Mdlm, "encode", lambda self, asked: alone.append(asked) or encode(self, asked)
    )
    printed = transcript(monkeypatch, capsys, now, "a", "b", EOFError)
    assert printed[1] == "every message is answered alone: this model knows prompts of 100 slots"
    asked = [one for one in alone if isinstance(one[0], Message)]  # not yet in tokens
    assert asked == [[Message("user", "a")], [Message("user", "b")]]
