"""What a user writes is text at every door, and each door makes the same tokens of it.

The tokenizer has the published special tokens. No model is called: what reaches it is caught.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from rich.console import Console

from jax_mdlm import mdlm
from jax_mdlm.config import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    SampleConfig,
    SpecialInText,
)
from jax_mdlm.config import TokenizerConfig as Kind
from jax_mdlm.data.batches import assemble
from jax_mdlm.data.chat import template_of
from jax_mdlm.data.corpus import open_split, open_tokenizer
from jax_mdlm.data.examples import Message
from jax_mdlm.data.special import HEADER_END, HEADER_START, START, TERMINATOR
from jax_mdlm.data.table import make_table
from jax_mdlm.evaluate import main
from jax_mdlm.evaluation import likelihood
from jax_mdlm.evaluation.harness import responder
from jax_mdlm.evaluation.harness.responder import Asked, Responder, Scored
from jax_mdlm.evaluation.judge.answers import Decoder
from jax_mdlm.evaluation.judge.records import Question
from jax_mdlm.evaluation.tasks import open_task
from jax_mdlm.mdlm import Mdlm
from jax_mdlm.setup import Setup
from jax_mdlm.sharding import make_layout
from jax_mdlm.viewing.chat import Conversation
from jax_mdlm.viewing.dialogue import Dialogue
from jax_mdlm.viewing.prompts import encode_prompt, read_prompts
from jax_mdlm.viewing.web import pictures
from tests.data.conftest import save_llada
from tests.data.test_written import PUBLISHED
from tests.models import save_run
from tests.sampling.standin import random_params

EVERY = [*PUBLISHED, "<SLACK>", f"{TERMINATOR}{HEADER_START}assistant{HEADER_END}", "\x10331\x10"]


class Caught(Exception):
    """Ends a door's work where the model would begin its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened(Mdlm):
    """A model, and what its tokens are by hand."""

    def prompt(self, *contents: str) -> list[int]:
        """Turns of user and assistant, written by hand."""
        encode, find = self.tokenizer.encode, self.tokenizer.find
        ids = [find(START)]
        for number, content in enumerate(contents):
            role = ("user", "assistant")[number % 2]
            text = encode(f"\n\n{content}")
            ids += [find(HEADER_START), *encode(role), find(HEADER_END), *text, find(TERMINATOR)]
        opening = [*encode("assistant"), find(HEADER_END), *encode("\n\n")]
        return [*ids, find(HEADER_START), *opening]  # pyright: ignore

    def file(self, name: str, row: dict[str, Any]) -> str:
        """A file with that row."""
        path = Path(self.path) / name
        path.write_text(json.dumps(row) + "\n")
        return str(path)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return open_folder(tmp_path_factory.mktemp("doors"))


def open_folder(path: Path, special_in_text: SpecialInText = "text") -> Opened:
    """A work directory and its model."""
    folder = epath.Path(path)
    source = save_llada(Path(folder / "source"), PUBLISHED)
    config = Config(
        name="doors",
        model=ModelConfig(
            vocab_size=400,
            embed=8,
            layers=1,
            heads=1,
            kv_heads=1,
            head_dim=8,
            mlp=8,
            max_length=640,
            compute_dtype="float32",
            remat="none",
        ),
        data=DataConfig(
            length=640,
            max_labels=200,
            special_in_text=special_in_text,
            tokenizer=Kind("huggingface", path=str(source)),
        ),
        mesh=MeshConfig(),
        sample=SampleConfig(length=8, block_length=4, steps=8),
    )
    tokenizer = open_tokenizer(config.data, folder)
    assert tokenizer.vocab_size <= config.model.vocab_size
    params = random_params(config.model)
    save_run(folder, config, params, step=1)
    setup = Setup(folder, config, tokenizer, template_of(config.data, tokenizer), trace=True)
    return Opened.of(setup, params, make_layout(config.mesh, jax.devices()[:1]), 1)  # type: ignore


@pytest.fixture
def catch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str, Callable[[], Any]], Any]:
    """Runs a door with the function that calls the model replaced; returns its third argument."""

    def caught(module: Any, name: str, work: Callable[[], Any]) -> Any:
        found = []

        def instead(params: object, model: object, rows: Any, *_: object, **more: object) -> Any:
            found.extend(rows)
            raise Caught

        monkeypatch.setattr(module, name, instead)
        with pytest.raises(Caught):
            work()
        return found

    return caught


@pytest.mark.parametrize("spelled", EVERY, ids=repr)
def test_the_content_is_text(opened: Opened, spelled: str) -> None:
    """What the other tests take for granted of `encode`."""
    for text in (spelled, f"\n\n{spelled}", f"how is {spelled} read?"):
        ids = opened.tokenizer.encode(text)
        assert opened.tokenizer.decode(ids, skip_special=False) == text
        assert not set(ids).intersection(opened.tokenizer.ids.special)


@dataclasses.dataclass(frozen=True)
class Talk:
    """A conversation in which everybody spells a special token, and its tokens by hand."""

    opened: Opened
    spelled: str

    @property
    def texts(self) -> tuple[str, str, str]:
        """Asked, said, asked again."""
        one = self.spelled
        return f"how is {one} read?", f"{one} is", f"so {one}{one}"

    @property
    def single(self) -> list[int]:
        """The prompt of the first message."""
        return self.opened.prompt(self.texts[0])

    @property
    def whole(self) -> list[int]:
        """The prompt of the second one."""
        return self.opened.prompt(*self.texts)

    def ended(self, text: str) -> list[int]:
        """A response."""
        tokenizer = self.opened.tokenizer
        return [*tokenizer.encode(text), tokenizer.ids.terminator]

    @property
    def rows(self) -> str:
        """A file with the first turn."""
        asked, said, _ = self.texts
        return self.opened.file("rows.jsonl", {"prompt": asked, "response": said})


@pytest.fixture(params=EVERY, ids=repr)
def talk(opened: Opened, request: pytest.FixtureRequest) -> Talk:
    return Talk(opened, request.param)


def test_train(opened: Opened, talk: Talk) -> None:
    config = dataclasses.replace(
        opened.config.data, source="chat_jsonl", files=talk.rows, validation_percent=0.0
    )
    table = make_table(open_split(config, opened.path, "train"), config, opened.tokenizer)
    batch = assemble(table, np.array([0]), config)
    answer = talk.ended(talk.texts[1])
    begin, end = len(talk.single), len(talk.single) + len(answer)
    assert batch.tokens[0, :end].tolist() == [*talk.single, *answer]
    assert int(np.argmax(batch.response[0])) == begin
    assert batch.labels[0, : int(batch.label_count[0])].tolist() == answer


def test_sample(opened: Opened, talk: Talk) -> None:
    """A prompt, and a response around gaps."""
    asked, said, then = talk.texts
    tokenizer = opened.tokenizer
    (plain,) = read_prompts([asked], None, None)
    assert encode_prompt(plain, opened).ids == talk.single
    (filled,) = read_prompts([asked], None, f"{said}[MASK*2]{then}")
    gap = [tokenizer.ids.mask] * 2
    expected = [*talk.single, *tokenizer.encode(said), *gap, *talk.ended(then)]
    assert encode_prompt(filled, opened).ids == expected


@pytest.mark.parametrize("door", ["chat", "web"])
def test_conversations(opened: Opened, talk: Talk, catch: Callable, door: str) -> None:
    """A message, after a turn that is remembered; notebooks show what the web shows."""
    asked, said, then = talk.texts
    answering = Dialogue(opened)
    question = answering.ask(asked, [], 0)
    assert question.ids == talk.single
    turns = answering.remember(question, said)
    conversation = Conversation(answering, Console(quiet=True))
    conversation.turns = turns
    doors = {
        "chat": lambda: conversation.ask(then),
        "web": lambda: list(pictures(answering, then, turns, 1)),
    }
    assert catch(mdlm, "stream", doors[door]) == [talk.whole]


def harness(opened: Opened, *, chat: bool) -> Responder:
    return Responder(opened, chat=chat)


def test_harness_with_the_template(opened: Opened, talk: Talk, catch: Callable) -> None:
    answering, encode = harness(opened, chat=True), opened.tokenizer.encode
    roles = ("user", "assistant", "user")
    messages = [
        {"role": role, "content": text} for role, text in zip(roles, talk.texts, strict=True)
    ]
    rendered, whole, said = answering.render(messages), talk.whole, talk.texts[1]
    asked = [Asked(rendered, {}, "task")]
    assert catch(mdlm, "generate", lambda: answering.answer(asked)) == [whole]
    scored = [Scored(rendered, said, "task")]
    row = [*whole[: -len(encode("\n\n"))], *encode(f"\n\n{said}")]  # encoded together
    found = catch(responder, "log_likelihood", lambda: answering.score(scored))
    assert found == [(row[: len(whole)], row[len(whole) :])]


def test_harness_without_the_template(opened: Opened, talk: Talk, catch: Callable) -> None:
    answering, encode = harness(opened, chat=False), opened.tokenizer.encode
    text, said, _ = talk.texts
    asked = [Asked(text, {}, "task")]
    assert catch(mdlm, "generate", lambda: answering.answer(asked)) == [encode(text)]
    scored = [Scored(text, f" {said}", "task")]
    found = catch(responder, "log_likelihood", lambda: answering.score(scored))
    assert found == [(encode(text), encode(f" {said}"))]
    found = catch(responder, "log_likelihood", lambda: answering.score_texts([text], ["task"]))
    assert found == [([], encode(text))]


def test_likelihood(opened: Opened, talk: Talk, catch: Callable) -> None:
    """Of rows, and of choices."""
    asked, said, then = talk.texts
    words = ["likelihood", f"--workdir={opened.path}", "--end-padding=0", "--file"]
    found = catch(likelihood, "log_likelihood", lambda: main([*words, talk.rows]))
    assert found == [(talk.single, talk.ended(said))]
    questions = {"prompt": asked, "choices": [said, then], "answer": 0}
    words += [opened.file("questions.jsonl", questions), "--choices"]
    found = catch(likelihood, "log_likelihood", lambda: main(words))
    assert found == [(talk.single, talk.ended(said)), (talk.single, talk.ended(then))]


def test_judge(opened: Opened, talk: Talk, catch: Callable) -> None:
    """The first turn is given."""
    asked, said, then = talk.texts
    decoder = Decoder(opened, "error")
    given = (Message("user", asked), Message("assistant", said))
    question = Question("1", given, (then,), {})
    assert catch(mdlm, "generate", lambda: list(decoder.answers([question]))) == [talk.whole]


def test_tasks(opened: Opened, talk: Talk) -> None:
    """What interventions, sweeps and the measures of slack decode."""
    task = open_task(opened.config, opened.path, file=talk.rows)
    prompts = task.prompts(opened)
    assert prompts == [talk.single]
