"""`sample --chat`: what is remembered, refused, stopped and drawn, and the command on a terminal."""

import dataclasses
import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest
from rich.console import Console

from jax_mdlm.config import ConfigError, MeshConfig
from jax_mdlm.containers import SampleState
from jax_mdlm.data.chat import make_template, render_prompt
from jax_mdlm.data.examples import Message
from jax_mdlm.sample import chat
from jax_mdlm.sample.chat import Conversation, converse, fit, report
from jax_mdlm.sampling import SampleOptions, bucket_length, options_from, read_answers, sample
from jax_mdlm.sharding import make_layout
from jax_mdlm.training.run import Run
from tests.sample.conftest import talking_config
from tests.sample.pseudo_terminal import Session

ROOT = Path(__file__).parent.parent.parent


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
    config = talking_config(**settings)
    options = options_from(config.sample, config.objective.collapse, run.tokenizer.ids)
    return Talk(dataclasses.replace(run, config=config), options)


@pytest.fixture
def run(talking: tuple[Run, Path]) -> Run:
    return talking[0]


def expected(now: Talk, messages: list[Message], number: int) -> str:
    """The answer by the sampler alone."""
    ids = render_prompt(now.run.tokenizer, messages, now.template)
    key = jax.random.fold_in(jax.random.key(now.run.config.sample.seed), number)
    state = sample(now.run.params, now.run.config.model, [ids], now.options, key)
    return now.run.tokenizer.decode(read_answers(state, 1, now.options)[0].tokens)


def test_turns_are_remembered_and_draw_for_themselves(run: Run) -> None:
    now = talk(run, temperature=1.0, seed=3)
    messages: list[Message] = []
    for number, text in enumerate(["what is masked?", "and then", "and then"]):
        messages.append(Message("user", text))
        now.ask(text)
        answer = now.conversation.turns[-1][1]
        assert answer == Message("assistant", expected(now, messages, number))
        messages.append(answer)
    assert [said for turn in now.conversation.turns for said in turn] == messages
    now.conversation.forget()
    now.ask("what is masked?")
    again = now.conversation.turns
    assert len(again) == 1
    assert again[0][1].content == expected(now, messages[:1], 3) != messages[1].content


def test_an_answer_is_printed_alone_with_its_cost(run: Run) -> None:
    now = talk(run, early_stop=False, temperature=1.0)
    printed = now.ask("abc")
    text, cost, end = printed.rsplit("\n", 3)[0], *printed.rsplit("\n", 3)[1:3]
    answer = now.conversation.turns[-1][1].content
    assert text == chat.plain(answer).rstrip() or text.replace("\n", "") in chat.plain(answer)
    assert re.fullmatch(
        r"8 calls, \d+\.\d\d s, [\d,]+ tokens/s, \d+ slack(, no end in 16 slots)?", cost
    )
    assert end == ""
    assert "░" not in printed


def test_the_cost_counts_what_stands_before_the_end(run: Run) -> None:
    now = talk(run)
    ids = now.options.ids
    state = sample(run.params, now.run.config.model, [[20]], now.options, jax.random.key(0))
    (answer,) = read_answers(state, 1, now.options)
    slots = answer.response.copy()
    slots[:8] = [30, ids.slack, 31, ids.slack, 32, ids.terminator, ids.slack, 33]
    ended = dataclasses.replace(answer, response=slots, tokens=[30, 31, 32], calls=1)
    assert report(ended, 0.5, now.options) == "1 call, 0.50 s, 6 tokens/s, 2 slack"
    slots[:] = 30
    assert report(ended, 0.5, now.options).endswith("6 tokens/s, 0 slack, no end in 16 slots")


@pytest.mark.parametrize("limit", [0, 24])
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
    for max_length in range(size(5) + 16, size(0) + 26):
        ids, kept = fit(tokenizer, template, turns, message, now.options, max_length)
        assert kept == turns[len(turns) - len(kept) :]
        assert len(ids) == size(5 - len(kept))
        room = max_length - (limit or 16)
        best = min((first for first in range(5) if size(first) <= room), default=5)
        assert len(kept) == 5 - best
        seen.add(len(kept))
    assert seen == set(range(6))
    with pytest.raises(
        ConfigError,
        match=rf"the message takes {size(5)} slots, model.max_length=30 leaves 14 beside "
        "sample.length=16; shorten it",
    ):
        fit(tokenizer, template, turns, message, now.options, 30)


def test_a_long_conversation_goes_on(run: Run) -> None:
    """Each turn fits, the notes say what is left out, and few programs are compiled."""
    now = talk(run, temperature=1.0, early_stop=False)
    lengths, notes = [], []
    original = chat.make_canvas

    def noted(prompts, options, *, max_length):
        lengths.append(len(prompts[0]))
        return original(prompts, options, max_length=max_length)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat, "make_canvas", noted)
        for number in range(9):
            printed = now.ask(f"{number} " + "word " * 6)
            notes += re.findall(r"the oldest (?:turn is|\d+ turns are) left out", printed)
    assert max(lengths) + 16 <= 320
    assert lengths[-1] > 200
    assert notes
    kept = [turn[0].content for turn in now.conversation.turns]
    assert kept[-1].startswith("8 ")
    assert kept[0][0] == str(9 - len(kept)), "the oldest are gone, no other"
    regions = now.conversation._compiled
    assert len(regions) <= len({min(bucket_length(n), 304) for n in lengths}) <= 4


@pytest.fixture
def continued() -> Iterator[Callable[[], int]]:
    """Programs of the part that repeats."""
    program = importlib.import_module("jax_mdlm.sampling.generate")._continue
    before = program._cache_size()
    yield lambda: program._cache_size() - before


@pytest.mark.parametrize("settings", [{}, {"cache": "dual"}, {"remask": True}], ids=str)
def test_one_program_on_a_mesh(
    run: Run, eight_devices: list[jax.Device], continued: Callable[[], int], settings: dict
) -> None:
    """Each part leaves the state where the next expects it."""
    now = talk(run, **settings)
    layout = make_layout(MeshConfig(data=2, fsdp=1, tensor=2), eight_devices[:4])
    params = jax.device_put(run.params, layout.replicated)
    spread = dataclasses.replace(now.run, params=params)
    conversation = Conversation(spread, now.options, now.template, layout, now.console)
    conversation.ask("a question")
    assert continued() == 1
    if not settings:  # rounding differs over devices, and a draw may hang on it; argmax not here
        assert conversation.turns[0][1].content == expected(now, [Message("user", "a question")], 0)


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
    printed = now.ask("hello")
    assert printed.startswith("see <|mdm_mask|>\n")
    assert "the answer spells the mask's token; this turn is not remembered" in printed
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
    assert now.ask("hello").startswith("[red]a[/red] \\x1b[2J [/]\n")
    assert now.conversation.turns[0][1].content == "[red]a[/red] \x1b[2J [/]", "as the model wrote"


def test_ctrl_c_stops_an_answer_and_keeps_the_conversation(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = talk(run, early_stop=False, length=64, steps=64)
    now.ask("first")
    before, frames = list(now.conversation.turns), []
    handler = signal.getsignal(signal.SIGINT)

    def press(*_: object) -> str:
        frames.append(1)
        os.kill(os.getpid(), signal.SIGINT)
        return ""

    with monkeypatch.context() as patch:
        patch.setattr(chat, "status", press)
        with pytest.raises(KeyboardInterrupt):
            now.ask("second")
    assert len(frames) == 1, "at the next frame at the latest"
    assert now.conversation.turns == before
    assert signal.getsignal(signal.SIGINT) is handler
    now.ask("third")
    assert [asked.content for asked, _ in now.conversation.turns] == ["first", "third"]


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
    printed = transcript(monkeypatch, capsys, talk(run), *lines, leave)
    ended = [""] if not isinstance(leave, str) else []
    assert printed == [
        "tiny at step 7; /help lists the commands",
        *chat.HELP.splitlines(),
        "a new conversation",
        "there is no command /nwe; /help lists them",
        "a message must not hold <|mdm_mask|>, which the sampler would fill in; leave it out",
        "the message takes 1020 slots, model.max_length=320 leaves 304 beside sample.length=16; "
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
    now.template = dataclasses.replace(now.template, slots=40)
    alone = []
    monkeypatch.setattr(
        chat, "render_prompt", lambda *args: alone.append(args[1]) or render_prompt(*args)
    )
    printed = transcript(monkeypatch, capsys, now, "a", "b", EOFError)
    assert printed[1] == "every message is answered alone: this model knows prompts of 40 slots"
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
    assert session.echoes()

    # Line editing: the cursor goes back, a letter is put in. The answer is stopped midway.
    session.type("hllo\x1b[D\x1b[D\x1b[De\r")
    frame = session.until(lambda text: "masked" in text and "░" in text)
    assert not session.echoes()
    assert not session.screen.cursor_shown
    session.type("typed too early")  # is not seen until it is asked for
    session.type("\x03")
    session.until(lambda text: text.endswith("you> typed too early"))
    assert session.screen.cursor_shown
    session.type("\x15/new\r")  # Ctrl-U, what was typed is taken back
    session.until(lambda text: "a new conversation" in text and asked(text))

    # A pasted text of two lines is one message, and answered.
    session.type("\x1b[200~two\nlines\x1b[201~\r")
    session.until(lambda text: "tokens/s" in text and asked(text))
    assert session.echoes()
    session.type("\x04")
    assert session.finish() == 0

    said = [*session.screen.scrolled, *str(session.screen).splitlines()]
    assert not any("masked" in line or "░" in line for line in said), "a frame stayed"
    assert said[0] == "tiny at step 7; /help lists the commands"
    assert said[1:4] == ["you> hello", "stopped; this turn is not remembered", "you> /new"], frame
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
