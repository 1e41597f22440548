"""`sample --chat`: what is remembered, refused and stopped; the command on a terminal."""

import dataclasses
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from jax_mdlm.config import ConfigError, MeshConfig
from jax_mdlm.containers import SampleState
from jax_mdlm.data.chat import make_template, render_prompt
from jax_mdlm.data.examples import Message
from jax_mdlm.sample import chat
from jax_mdlm.sample.chat import Conversation, converse, fit, report
from jax_mdlm.sample.view import plain
from jax_mdlm.sampling import (
    Answer,
    SampleOptions,
    make_canvas,
    options_from,
    read_answers,
    stream,
)
from jax_mdlm.sharding import make_layout
from jax_mdlm.training.run import Run
from tests.sample.conftest import talking_config
from tests.sample.pseudo_terminal import Session

ROOT = Path(__file__).parent.parent.parent
# Long enough for one bucket with whatever else these tests ask: programs are what takes time here.
QUESTION = "what stands in a slot that is masked? " * 2


@dataclasses.dataclass
class Talk:
    """A conversation that is printed to a string."""

    run: Run
    options: SampleOptions
    console: Console = dataclasses.field(
        default_factory=lambda: Console(file=io.StringIO(), width=60, height=16, highlight=False)
    )
    conversation: Conversation = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.template = make_template("llada", self.run.tokenizer)
        self.conversation = Conversation(self.run, self.options, self.template, None, self.console)

    def ask(self, message: str) -> str:
        """What is printed for it."""
        before = len(self.printed)
        self.conversation.ask(message)
        return self.printed[before:]

    @property
    def printed(self) -> str:
        return self.console.file.getvalue()  # pyright: ignore


def talk(run: Run, **settings: object) -> Talk:
    """With noise, and every slot to the end, unless told otherwise."""
    config = talking_config(**{"temperature": 1.0, "early_stop": False, **settings})
    options = options_from(config.sample, config.objective.collapse, run.tokenizer.ids)
    return Talk(dataclasses.replace(run, config=config), options)


@pytest.fixture
def run(talking: tuple[Run, Path]) -> Run:
    return talking[0]


def expected(now: Talk, messages: list[Message], number: int) -> str:
    """The answer, as the sampler gives it in one part."""
    ids = render_prompt(now.run.tokenizer, messages, now.template)
    key = jax.random.fold_in(jax.random.key(now.run.config.sample.seed), number)
    options, model = now.options, now.run.config.model
    (state,) = stream(now.run.params, model, [ids], options, key, every=10_000)
    return now.run.tokenizer.decode(read_answers(state, 1, options)[0].tokens)


def test_turns_are_remembered_and_draw_for_themselves(run: Run) -> None:
    now = talk(run, seed=3)
    messages: list[Message] = []
    for number, text in enumerate([QUESTION, "then"]):
        messages.append(Message("user", text))
        now.ask(text)
        answer = now.conversation.turns[-1][1]
        assert answer == Message("assistant", expected(now, messages, number))
        messages.append(answer)
    assert [said for turn in now.conversation.turns for said in turn] == messages
    now.conversation.forget()
    now.ask(QUESTION)
    again = now.conversation.turns
    assert len(again) == 1
    assert again[0][1].content == expected(now, messages[:1], 2) != messages[1].content


def test_an_answer_is_printed_alone_with_its_cost(run: Run) -> None:
    now = talk(run)
    printed = now.ask(QUESTION)
    answer = plain(now.conversation.turns[0][1].content)
    text, cost, empty, rest = printed.rsplit("\n", 3)
    assert "".join(text.split()) == "".join(answer.split())
    assert re.fullmatch(
        r"8 calls, \d+\.\d\d s, [\d,]+ tokens/s, \d+ slack(, no end in 8 slots)?", cost
    )
    assert empty == rest == ""


def test_the_cost_counts_what_stands_before_the_end(run: Run) -> None:
    now = talk(run)
    ids = now.options.ids
    slots = np.full(8, 33, np.int32)
    slots[:] = [30, ids.slack, 31, ids.slack, 32, ids.terminator, ids.slack, 33]
    answer = Answer([30, 31, 32], slots, np.zeros(8, int), np.zeros(8, bool), 1)
    assert report(answer, 0.5, now.options) == "1 call, 0.50 s, 6 tokens/s, 2 slack"
    slots[5] = 33
    assert report(answer, 0.5, now.options).endswith("6 tokens/s, 3 slack, no end in 8 slots")


@pytest.mark.parametrize("limit", [0, 12])
def test_the_oldest_turns_give_way(run: Run, limit: int) -> None:
    """Against a search over all ways to leave turns out."""
    now = talk(run, limit=limit)
    tokenizer, template = run.tokenizer, now.template
    turns = [
        (Message("user", "a" * (5 + number)), Message("assistant", "b" * (3 * number)))
        for number in range(5)
    ]
    message = Message("user", "c" * 9)

    def size(first: int) -> int:
        told = [said for turn in turns[first:] for said in turn]
        return len(render_prompt(tokenizer, [*told, message], template))

    seen = set()
    for max_length in range(size(5) + 8, size(0) + 14):
        ids, kept = fit(tokenizer, template, turns, message, now.options, max_length)
        assert kept == turns[len(turns) - len(kept) :]
        assert len(ids) == size(5 - len(kept))
        room = max_length - (limit or 8)
        best = min((first for first in range(5) if size(first) <= room), default=5)
        assert len(kept) == 5 - best
        seen.add(len(kept))
    assert seen == set(range(6))
    with pytest.raises(
        ConfigError,
        match=rf"the message takes {size(5)} slots, model.max_length=20 leaves 12 beside "
        "sample.length=8; shorten it",
    ):
        fit(tokenizer, template, turns, message, now.options, 20)


def test_a_long_conversation_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each turn fits, the notes say what is left out, and few programs are compiled."""
    now = talk(run)
    prompts = []
    words = run.tokenizer.encode("some answer")
    slots = np.full(8, now.options.ids.terminator, np.int32)
    answer = Answer(words, slots, np.zeros(8, int), np.zeros(8, bool), 8)

    def generated(self: Conversation, ids: list[int], key: jax.Array) -> tuple[Answer, float]:
        prompts.append(ids)
        return answer, 1.0

    monkeypatch.setattr(Conversation, "_generate", generated)
    printed = "".join(now.ask(f"{number} " + "word " * (number % 7)) for number in range(40))
    assert max(map(len, prompts)) <= 320 - 8
    assert min(map(len, prompts[20:])) > 200, "as much is kept as fits"
    left_out = re.findall(r"the oldest (turn is|\d turns are) left out: prompt and answer", printed)
    gone = sum(1 if "turn is" in found else int(found[0]) for found in left_out)
    kept = [asked.content.split()[0] for asked, _ in now.conversation.turns]
    assert kept == [str(number) for number in range(gone, 40)]
    regions = {make_canvas([ids], now.options, max_length=320).region for ids in prompts}
    assert len(regions) <= 5


def test_one_program_on_a_mesh(
    run: Run, eight_devices: list[jax.Device], caplog: pytest.LogCaptureFixture
) -> None:
    """Each part leaves every array of the state where the next one expects it."""
    now = talk(run, cache="dual", remask=True)
    layout = make_layout(MeshConfig(data=2, fsdp=1, tensor=2), eight_devices[:4])
    params = jax.device_put(run.params, layout.replicated)
    spread = dataclasses.replace(now.run, params=params)
    conversation = Conversation(spread, now.options, now.template, layout, now.console)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        conversation.ask("a question")
    found = re.compile(r"Compiling \S*continue_batch\b")
    compiled = [line for line in caplog.messages if found.match(line)]
    assert len(compiled) == 1, compiled


def test_the_mask_is_refused(run: Run) -> None:
    now = talk(run)
    with pytest.raises(
        ConfigError, match=r"a message must not hold <\|mdm_mask\|>, which the sampler would fill"
    ):
        now.ask("fill <|mdm_mask|> in")
    assert now.conversation.turns == []
    assert now.printed == ""


def test_an_answer_that_spells_the_mask_is_not_remembered(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As text it would be read back as the token, and the next prompt would have a gap."""
    now = talk(run)
    spelled = [run.tokenizer.encode(letter)[0] for letter in "see <|mdm_mask|>"]
    assert now.options.ids.mask not in spelled
    original = chat.read_answers

    def spelling(state: SampleState, count: int, options: SampleOptions) -> list:
        return [dataclasses.replace(a, tokens=spelled) for a in original(state, count, options)]

    monkeypatch.setattr(chat, "read_answers", spelling)
    printed = now.ask(QUESTION)
    assert printed.startswith("see <|mdm_mask|>\n")
    told = " ".join(printed.split())
    assert told.endswith("the answer spells the mask's token; this turn is not remembered")
    assert now.conversation.turns == []


def test_answers_are_no_markup(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    now = talk(run)
    evil = run.tokenizer.encode("[red]a[/red] \x1b[2J [/]")
    original = chat.read_answers
    monkeypatch.setattr(
        chat,
        "read_answers",
        lambda *args: [dataclasses.replace(a, tokens=evil) for a in original(*args)],
    )
    assert now.ask(QUESTION).startswith("[red]a[/red] \\x1b[2J [/]\n")
    assert now.conversation.turns[0][1].content == "[red]a[/red] \x1b[2J [/]", "as the model wrote"


def test_ctrl_c_stops_an_answer_and_keeps_the_conversation(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = talk(run)
    now.ask(QUESTION)
    before, frames = list(now.conversation.turns), []
    handler = signal.getsignal(signal.SIGINT)

    def press(*_: object) -> str:
        frames.append(1)
        os.kill(os.getpid(), signal.SIGINT)
        return ""

    with monkeypatch.context() as patch:
        patch.setattr(chat, "status", press)
        with pytest.raises(KeyboardInterrupt):
            now.ask("stop it")
    assert len(frames) == 1, "at the next frame at the latest"
    assert now.conversation.turns == before
    assert signal.getsignal(signal.SIGINT) is handler
    now.ask("go on")
    assert [asked.content for asked, _ in now.conversation.turns] == [QUESTION, "go on"]


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
    converse(
        now.run, now.options, now.template, make_layout(now.run.config.mesh, jax.devices()[:1])
    )
    assert script.lines == []
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("leave", ["/quit", " /quit ", EOFError, KeyboardInterrupt])
def test_commands(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    leave: str | type[BaseException],
) -> None:
    """None of these lines reaches the model."""
    monkeypatch.setattr(Conversation, "_generate", None)
    lines = ["", "   ", "/help", "/new", "/nwe", "a <|mdm_mask|>", "x" * 999]
    lines += ["half \udcff", UnicodeDecodeError]
    now = talk(run)
    size = len(render_prompt(run.tokenizer, "x" * 999, now.template))
    printed = transcript(monkeypatch, capsys, now, *lines, leave)
    ended = [""] if not isinstance(leave, str) else []
    assert printed == [
        "tiny at step 7; /help lists the commands",
        *chat.HELP.splitlines(),
        "a new conversation",
        "there is no command /nwe; /help lists them",
        "a message must not hold <|mdm_mask|>, which the sampler would fill in; leave it out",
        f"the message takes {size} slots, model.max_length=320 leaves 312 beside sample.length=8; "
        "shorten it",
        *["that line is not text in this terminal's encoding; type it again"] * 2,
        *ended,
    ]


def test_a_slash_may_begin_a_message(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    run: Run,
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
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: x")

    monkeypatch.setattr(Conversation, "ask", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        transcript(monkeypatch, capsys, talk(run), "a")


def test_prompts_of_a_fixed_width_are_answered_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = talk(run)
    now.template = dataclasses.replace(now.template, slots=100)
    alone = []
    monkeypatch.setattr(
        chat, "render_prompt", lambda *args: alone.append(args[1]) or render_prompt(*args)
    )
    printed = transcript(monkeypatch, capsys, now, "a", "b", EOFError)
    assert printed[1] == "every message is answered alone: this model knows prompts of 100 slots"
    assert alone == [[Message("user", "a")], [Message("user", "b")]]


# --- the command, on a terminal ---

WIDTH, HEIGHT = 46, 12


@pytest.fixture(scope="module")
def session(
    talking: tuple[Run, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    command = [sys.executable, "-m", "jax_mdlm.sample", "--workdir", str(talking[1]), "--chat"]
    command += [
        f"--config.sample.{setting}"
        for setting in ("length=256", "steps=256", "early_stop=false", "temperature=1")
    ]
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    session = Session(command, environment, ROOT, width=WIDTH, height=HEIGHT)
    yield session
    session.process.kill()
    session.process.wait()


def test_a_session(session: Session) -> None:
    """A tall canvas on a small terminal; what stays is the conversation and nothing else."""

    def asked(text: str) -> bool:
        return text.endswith("you>")

    session.until(asked)

    # Line editing: the cursor goes back, a letter is put in. The answer is stopped midway.
    session.type("hllo\x1b[D\x1b[D\x1b[De\r")
    session.until(lambda text: "masked" in text and "░" in text)
    assert not session.echoes()
    assert not session.screen.cursor_shown
    session.type("\x03")
    session.until(lambda text: "stopped" in text and asked(text))
    assert session.screen.cursor_shown
    session.type("/new\r")
    session.until(lambda text: "a new conversation" in text and asked(text))

    # A pasted text of two lines is one message, and answered.
    session.type("\x1b[200~two\nlines\x1b[201~\r")
    session.until(lambda text: "masked" in text and "░" in text)
    session.type("too early")  # is not seen before it is asked for
    session.until(lambda text: "tokens/s" in text and text.endswith("you> too early"))
    session.type("\x15\x04")  # what is there is taken back; the end
    assert session.finish() == 0
    assert session.echoed_at_the_end

    said = [*session.screen.scrolled, *str(session.screen).splitlines()]
    assert not any("masked" in line or "░" in line for line in said), "a frame stayed"
    assert said[0] == "tiny at step 7; /help lists the commands"
    assert said[1:4] == ["you> hello", "stopped; this turn is not remembered", "you> /new"]
    assert said[4] == "a new conversation"
    assert said[5] == "you> two"
    assert said[6].strip() == "lines"
    cost = [at for at, line in enumerate(said) if re.match(r"256 calls, [\d.]+ s,", line)]
    assert len(cost) == 1
    assert len(said[7 : cost[0]]) > 3, "the answer"
    assert said[-1] == "you>"
    moving = [frame for frame in session.frames if "masked" in frame]
    assert len({frame for frame in moving if "░" in frame}) > 5
    assert any("⋮" in frame for frame in moving), "the canvas is taller than the screen"


def test_no_terminal_is_refused(
    talking: tuple[Run, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from jax_mdlm.sample import main

    with pytest.raises(ConfigError, match="--chat needs a terminal; give prompts as arguments"):
        main(["--workdir", str(talking[1]), "--chat"])
