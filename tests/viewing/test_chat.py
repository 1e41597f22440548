"""`sample --chat`: what is remembered, refused, stopped and compiled, and how it is drawn."""

import dataclasses
import logging
import os
import re
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.text import Text

from jax_mdlm import mdlm
from jax_mdlm.config import ConfigError, MeshConfig
from jax_mdlm.containers import SampleState
from jax_mdlm.data.examples import Message
from jax_mdlm.mdlm import Mdlm
from jax_mdlm.sampling import Answer, SampleOptions, make_canvas, read_answers, stream
from jax_mdlm.sharding import make_layout
from jax_mdlm.viewing import chat
from jax_mdlm.viewing.chat import Conversation
from jax_mdlm.viewing.dialogue import Dialogue, PreparedMessage, cost_line, fit
from jax_mdlm.viewing.view import Reader, escape_controls
from tests.viewing.talk import QUESTION, Talk, talk


@pytest.fixture
def run(talking: tuple[Mdlm, Path]) -> Mdlm:
    return talking[0]


def expected(now: Talk, messages: list[Message], number: int) -> str:
    """The answer, as the sampler gives it in one part."""
    ids = now.model.encode(messages)
    key = jax.random.fold_in(jax.random.key(now.model.config.sample.seed), number)
    options, model = now.options, now.model.config.model
    (state,) = stream(now.model.params, model, [ids], options, key, every=10_000)
    return now.model.tokenizer.decode(read_answers(state, 1, options)[0].tokens)


def test_turns_are_remembered_and_draw_for_themselves(run: Mdlm) -> None:
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


def test_what_is_compiled_and_what_is_new(run: Mdlm, monkeypatch: pytest.MonkeyPatch) -> None:
    """One note per bucket; a frame highlights what came since the frame before."""
    now = talk(run)
    notes, frames = [], []
    status, canvas = now.console.status, Reader.canvas
    monkeypatch.setattr(now.console, "status", lambda text: notes.append(text) or status(text))

    def seen(self: Reader, answer: Answer, *, since: int, block: range) -> tuple[Text, int]:
        frames.append((since, answer.calls, block.start))
        return canvas(self, answer, since=since, block=block)

    monkeypatch.setattr(Reader, "canvas", seen)
    now.ask(QUESTION)
    assert notes == ["compiling..."]
    assert len(frames) > 1
    assert [since for since, _, _ in frames] == [0, *[calls for _, calls, _ in frames[:-1]]]
    assert all(start == calls // 4 * 4 for _, calls, start in frames), "blocks of 4 calls, 4 slots"
    for text, compiled in ((QUESTION, 1), ("short", 2), (QUESTION, 2), ("other", 2)):
        now.conversation.forget()
        now.ask(text)
        assert notes == ["compiling..."] * compiled


def test_stream_asks_how_far_to_go(run: Mdlm) -> None:
    now = talk(run)
    ids = now.model.encode(QUESTION)
    parts = iter([1, 3, 2, 9])
    key = jax.random.key(0)
    model, options = now.model.config.model, now.options
    states = stream(run.params, model, [ids], options, key, every=lambda: next(parts))
    assert [int(state.step) for state in states] == [1, 4, 6, 8]


@pytest.fixture
def slow_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled takes 5.64 s, whatever these tests have compiled before."""
    compile = Dialogue.compile
    monkeypatch.setattr(Dialogue, "compile", lambda *asked: compile(*asked) and 5.64)


@pytest.mark.usefixtures("slow_compiler")
def test_an_answer_is_printed_alone_with_its_cost(run: Mdlm) -> None:
    """A wait for the compiler is a part of it; the calls' own time is apart."""
    now = talk(run)
    now.console.width = 100
    printed = now.ask(QUESTION)
    answer = escape_controls(now.conversation.turns[0][1].content)
    text, cost, empty, rest = printed.rsplit("\n", 3)
    assert "".join(text.split()) == "".join(answer.split())
    assert re.fullmatch(
        r"8 calls, \d+\.\d\d s \+ 5\.6 s compiling, [\d,]+ tokens/s, \d+ slack"
        r"(, no end in 8 slots)?",
        cost,
    )
    assert empty == rest == ""
    now.conversation.forget()
    assert "s compiling" not in now.ask(QUESTION), "its program is there"


def test_the_cost_counts_what_stands_before_the_end(run: Mdlm) -> None:
    now = talk(run)
    ids = now.options.ids
    slots = np.full(8, 33, np.int32)
    slots[:] = [30, ids.slack, 31, ids.slack, 32, ids.terminator, ids.slack, 33]
    answer = Answer([30, 31, 32], slots, np.zeros(8, int), np.zeros(8, bool), 1)
    assert cost_line(answer, 0.5, 0.0, now.options) == "1 call, 0.50 s, 6 tokens/s, 2 slack"
    waited = cost_line(answer, 0.5, 5.64, now.options)
    assert waited == "1 call, 0.50 s + 5.6 s compiling, 6 tokens/s, 2 slack"
    slots[5] = 33
    assert cost_line(answer, 0.5, 0.0, now.options).endswith(
        "6 tokens/s, 3 slack, no end in 8 slots"
    )


def holding(model: Mdlm, max_length: int) -> Mdlm:
    """The model with other slots at most."""
    network = dataclasses.replace(model.config.model, max_length=max_length)
    return dataclasses.replace(model, config=dataclasses.replace(model.config, model=network))


@pytest.mark.parametrize("limit", [0, 12])
def test_the_oldest_turns_give_way(run: Mdlm, limit: int) -> None:
    """Against a search over all ways to leave turns out."""
    now = talk(run, limit=limit)
    turns = [
        (Message("user", "a" * (5 + number)), Message("assistant", "b" * (3 * number)))
        for number in range(5)
    ]
    message = Message("user", "c" * 9)

    def size(first: int) -> int:
        told = [said for turn in turns[first:] for said in turn]
        return len(run.encode([*told, message]))

    seen = set()
    for max_length in range(size(5) + 8, size(0) + 14):
        ids, kept = fit(holding(now.model, max_length), turns, message)
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
        fit(holding(now.model, 20), turns, message)


def test_a_long_conversation_goes_on(run: Mdlm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each turn fits, the notes say what is left out, and few programs are compiled."""
    now = talk(run)
    prompts = []
    words = run.tokenizer.encode("some answer")
    slots = np.full(8, now.options.ids.terminator, np.int32)
    answer = Answer(words, slots, np.zeros(8, int), np.zeros(8, bool), 8)

    def generated(self: Conversation, question: PreparedMessage) -> tuple[Answer, float, float]:
        prompts.append(question.ids)
        return answer, 1.0, 0.0

    monkeypatch.setattr(Conversation, "_generate", generated)
    printed = "".join(now.ask(f"{number} " + "word " * (number % 7)) for number in range(40))
    assert max(map(len, prompts)) <= 640 - 8
    assert min(map(len, prompts[20:])) > 500, "as much is kept as fits"
    left_out = re.findall(r"the oldest (turn is|\d turns are) left out: prompt and answer", printed)
    gone = sum(1 if "turn is" in found else int(found[0]) for found in left_out)
    kept = [asked.content.split()[0] for asked, _ in now.conversation.turns]
    assert kept == [str(number) for number in range(gone, 40)]
    regions = {make_canvas([ids], now.options, max_length=640).region for ids in prompts}
    assert len(regions) <= 6


def test_one_program_on_a_mesh(
    run: Mdlm, eight_devices: list[jax.Device], caplog: pytest.LogCaptureFixture
) -> None:
    """Each part leaves every array of the state where the next one expects it."""
    now = talk(run, cache="dual", remask=True)
    layout = make_layout(MeshConfig(data=2, fsdp=1, tensor=2), eight_devices[:4])
    params = jax.device_put(run.params, layout.replicated)
    spread = dataclasses.replace(now.model, params=params, layout=layout)
    conversation = Conversation(Dialogue(spread), now.console)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        conversation.ask("a question")
    found = re.compile(r"Compiling \S*continue_batch\b")
    compiled = [line for line in caplog.messages if found.match(line)]
    assert len(compiled) == 1, compiled


def test_messages_and_answers_that_spell_the_mask(
    run: Mdlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are text: asked, answered, remembered, and no gap in the next prompt."""
    now = talk(run)
    asked, spelled, prompts = "fill <|mdm_mask|> in", "see <|mdm_mask|>", []
    original = mdlm.stream

    def spelling(state: SampleState, count: int, options: SampleOptions) -> list:
        tokens = run.tokenizer.encode(spelled)
        return [dataclasses.replace(a, tokens=tokens) for a in read_answers(state, count, options)]

    def seen(params: object, model: object, rows: Any, *rest: Any, **more: Any) -> Any:
        prompts.extend(rows)
        return original(params, model, rows, *rest, **more)

    monkeypatch.setattr(mdlm, "read_answers", spelling)
    monkeypatch.setattr(mdlm, "stream", seen)
    assert now.ask(asked).startswith(f"{spelled}\n")
    turn = (Message("user", asked), Message("assistant", spelled))
    assert now.conversation.turns == [turn]
    now.ask("and?")
    expected = run.encode([*turn, Message("user", "and?")])
    assert prompts[-1] == expected
    assert all(now.options.ids.mask not in prompt for prompt in prompts)


def test_answers_are_no_markup(run: Mdlm, monkeypatch: pytest.MonkeyPatch) -> None:
    now = talk(run)
    evil = run.tokenizer.encode("[red]a[/red] \x1b[2J [/]")
    original = mdlm.read_answers
    monkeypatch.setattr(
        mdlm,
        "read_answers",
        lambda *args: [dataclasses.replace(a, tokens=evil) for a in original(*args)],
    )
    assert now.ask(QUESTION).startswith("[red]a[/red] \\x1b[2J [/]\n")
    assert now.conversation.turns[0][1].content == "[red]a[/red] \x1b[2J [/]", "as the model wrote"


def test_ctrl_c_stops_an_answer_and_keeps_the_conversation(
    run: Mdlm, monkeypatch: pytest.MonkeyPatch
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
