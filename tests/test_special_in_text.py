"""`data.special_in_text` at every door: refused in one line, or kept as other tools do.

That strings are text by default is what `test_doors` shows.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

import jax_mdlm
from jax_mdlm import convert, mdlm
from jax_mdlm.config import Config, ConfigError, DataConfig, SpecialInText, TokenizerConfig
from jax_mdlm.conversion import open_origin
from jax_mdlm.data import special
from jax_mdlm.data.batches import assemble
from jax_mdlm.data.corpus import load_corpus, open_split, open_tokenizer
from jax_mdlm.data.examples import Message
from jax_mdlm.data.prepared import settings_of
from jax_mdlm.data.preparing import prepare_rows
from jax_mdlm.data.table import make_table
from jax_mdlm.evaluate import main
from jax_mdlm.evaluation import likelihood
from jax_mdlm.evaluation.harness import responder
from jax_mdlm.evaluation.harness.responder import Asked, Responder, Scored
from jax_mdlm.evaluation.judge.answers import Decoder
from jax_mdlm.evaluation.judge.records import Question
from jax_mdlm.evaluation.tasks import open_task
from jax_mdlm.setup import open_setup
from jax_mdlm.training.claim import claim
from jax_mdlm.viewing.dialogue import Dialogue
from jax_mdlm.viewing.prompts import encode_prompt, encode_prompts, read_prompts
from tests.data.conftest import TEXTS
from tests.data.test_written import PUBLISHED
from tests.test_doors import Opened, catch, open_folder

__all__ = ["catch"]  # a fixture
KEPT = [special.TERMINATOR, special.HEADER_START, "[gMASK]", "<|reserved_token_3|>"]
LIKELIHOOD = ["likelihood", "--end-padding=0"]
REMEDY = "take it out or train with data.special_in_text=text"


@pytest.fixture(scope="module")
def keeping(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return open_folder(tmp_path_factory.mktemp("keep"), "keep")


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return open_folder(tmp_path_factory.mktemp("error"), "error")


@pytest.fixture(scope="module")
def reference(keeping: Opened) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(Path(keeping.path) / "source")


def rows(model: Opened, asked: str, said: str) -> str:
    return model.file("rows.jsonl", {"prompt": asked, "response": said})


def train(model: Opened, asked: str, said: str) -> tuple[list[int], list[int]]:
    """Prompt and response of a row."""
    config = dataclasses.replace(
        model.config.data, files=rows(model, asked, said), validation_percent=0.0
    )
    table = make_table(open_split(config, model.path, "train"), config, model.tokenizer)
    batch = assemble(table, np.array([0]), config)
    begin = int(np.argmax(batch.response[0]))
    return batch.tokens[0, :begin].tolist(), batch.labels[0, : batch.label_count[0]].tolist()


def choices(model: Opened, asked: str, *said: str) -> list[str]:
    file = model.file("choices.jsonl", {"prompt": asked, "choices": said, "answer": 0})
    return [*LIKELIHOOD, f"--workdir={model.path}", f"--file={file}", "--choices"]


@pytest.mark.parametrize("spelled", KEPT)
def test_kept_as_by_transformers(
    keeping: Opened, reference: Any, catch: Callable, spelled: str
) -> None:
    asked, said, then = f"how is {spelled} read?", f"{spelled} is", f"so {spelled}{spelled}"
    model, mask = keeping, keeping.tokenizer.ids.mask

    def prompt(*contents: str) -> list[int]:
        roles = ("user", "assistant", "user")
        talk = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
        return reference.apply_chat_template(talk, tokenize=True, return_dict=False)

    def plain(text: str) -> list[int]:
        return reference.encode(text, add_special_tokens=False)

    single, whole = prompt(asked), prompt(asked, said, then)
    row = (single, [*plain(said), model.tokenizer.ids.terminator])
    assert model.tokenizer.find(spelled) in plain(said)
    assert train(model, asked, said) == row
    (filled,) = read_prompts([asked], None, f"{said}[MASK*2]")
    assert encode_prompt(filled, model).ids == [*single, *plain(said), mask, mask]
    talk = Dialogue(model)
    assert talk.ask(then, talk.remember(talk.ask(asked, [], 0), said), 1).ids == whole
    messages = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant", "user"), (asked, said, then), strict=True)
    ]
    assert catch(mdlm, "generate", lambda: model.chat(messages)) == [whole]
    assert catch(mdlm, "log_likelihood", lambda: model.log_likelihood(asked, said))[0][0] == single
    assert open_task(model.config, model.path, file=rows(model, asked, said)).prompts(model) == [
        single
    ]
    words = [*LIKELIHOOD, f"--workdir={model.path}", f"--file={rows(model, asked, said)}"]
    assert catch(likelihood, "log_likelihood", lambda: main(words)) == [row]
    words = choices(model, asked, said, "a")
    assert catch(likelihood, "log_likelihood", lambda: main(words))[0] == row
    answering = Responder(model, chat=True)
    request = [Asked(answering.render(messages), {}, "task")]
    assert catch(mdlm, "generate", lambda: answering.answer(request)) == [whole]
    scored = [Scored(asked, f" {said}", "task")]
    score = Responder(model).score
    expected = [(plain(asked), plain(f" {said}"))]
    assert catch(responder, "log_likelihood", lambda: score(scored)) == expected
    given = (Message("user", asked), Message("assistant", said))
    judge = Decoder(model, "error").answers([Question("1", given, (then,), {})])
    assert catch(mdlm, "generate", lambda: list(judge)) == [whole]


def test_refused_in_one_line(refusing: Opened) -> None:
    """By its row, or the prompt's name; the door does not matter."""
    model, asked = refusing, f"how is {special.TERMINATOR} read?"
    why = f"text 'how is <|eot_id|> read?' must hold no special token, got '<|eot_id|>'; {REMEDY}"
    file = rows(model, asked, "yes")
    questions = choices(model, asked, "a", "b")
    answering = Responder(model, chat=True)
    message = {"role": "user", "content": asked}
    request = [Asked(answering.render([message]), {}, "task")]
    judge = Decoder(model, "error").answers([Question("1", (), (asked,), {})])
    doors: dict[str, Callable[[], Any]] = {
        f"row 0 ({file}:1): {why} or set data.on_bad_row=skip": lambda: train(model, asked, "yes"),
        f"the prompt: {why}": lambda: encode_prompts(read_prompts([asked], None, None), model),
        f"{file}:1: {why}": lambda: open_task(model.config, model.path, file=file).prompts(model),
        f"{model.path}/choices.jsonl:1: {why}": lambda: main(questions),
        f"task: {why}": lambda: answering.answer(request),
        f"question 1, turn 1: {why}": lambda: list(judge),
    }
    for text, door in doors.items():
        with pytest.raises(ConfigError) as raised:
            door()
        assert str(raised.value) == text
    for door in (
        lambda: Dialogue(model).ask(asked, [], 0),
        lambda: model.generate([asked]),
        lambda: model.chat([message]),
        lambda: model.log_likelihood("a", asked),
    ):
        with pytest.raises(ConfigError) as raised:
            door()
        assert str(raised.value) == why
    assert encode_prompt(read_prompts(["the cat"], None, "a[MASK]b")[0], model)
    with pytest.raises(ConfigError, match=r"text 'a<\|eot_id\|>' must hold no special token, got"):
        encode_prompt(read_prompts(["the cat"], None, "a<|eot_id|>[MASK]b")[0], model)


@pytest.mark.parametrize("spelled", PUBLISHED)
def test_every_special_token_is_refused(refusing: Opened, spelled: str) -> None:
    with pytest.raises(ConfigError, match="must hold no special token, got"):
        refusing.encode(f"a{spelled}b")
    assert refusing.encode("<SLACK>")  # no token of this vocabulary


def test_what_is_never_kept(keeping: Opened) -> None:
    model, ids = keeping, keeping.tokenizer.ids
    with pytest.raises(ConfigError) as raised:
        model.encode(f"fill {special.MASK} in")
    assert str(raised.value) == (
        f"text 'fill <|mdm_mask|> in' must hold no mask token, got '<|mdm_mask|>'; {REMEDY}"
    )
    for token, role in ((special.RESERVED, "slack"), (special.EOS, "pad")):
        index = model.tokenizer.find(token)
        assert index in model.encode(f"what is {token}?")
        with pytest.raises(ConfigError) as raised:
            train(model, "a", f"it is {token}")
        assert str(raised.value) == (
            f"row 0 ({model.path}/rows.jsonl:1): the response must not hold {token!r} (id "
            f"{index}), the {role} token, which no answer has; {REMEDY} or set data.on_bad_row=skip"
        )
    config = dataclasses.replace(
        model.config.data, pretraining=True, files=model.file("texts.jsonl", {"text": "a\n" * 9})
    )
    config = dataclasses.replace(config, validation_percent=0.0)
    for text, known in ((special.EOS, True), (special.RESERVED, False)):
        model.file("texts.jsonl", {"text": f"one {text} two"})
        read = open_split(config, model.path, "train")
        if known:
            table = make_table(read, config, model.tokenizer)
            batch = assemble(table, np.array([0]), config)
            assert batch.labels[0, : batch.label_count[0]].tolist().count(ids.eos) == 2
        else:
            with pytest.raises(ConfigError, match="must not hold '<.reserved_token_0.>'"):
                make_table(read, config, model.tokenizer)


KINDS = {
    "bpe": TokenizerConfig("bpe", vocab_size=320),
    "symbols": TokenizerConfig("symbols", vocab_size=100),
    "sentencepiece": TokenizerConfig("sentencepiece", vocab_size=300),
}


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_that_are_trained_here(tmp_path: Path, kind: str) -> None:
    words = ["a b c"] if kind == "symbols" else TEXTS
    config = DataConfig(tokenizer=KINDS[kind], special_in_text="keep")
    kept = open_tokenizer(config, epath.Path(tmp_path), lambda: words)
    config = dataclasses.replace(config, special_in_text="text")
    text = open_tokenizer(config, epath.Path(tmp_path))
    end, slack = text.find(special.TERMINATOR), text.ids.slack
    parts = [text.encode(part) for part in ("a ", " b c", "c")]
    expected = [*parts[0], end, *parts[1], slack, end, *parts[2]]
    spelled = "a <|eot_id|> b c<SLACK><|eot_id|>c"
    assert kept.encode_batch(["", spelled, "c", "<SLACK>"]) == [[], expected, parts[2], [slack]]
    assert kept.decode(expected, skip_special=False).replace(" ", "") == spelled.replace(" ", "")
    if kind == "symbols":
        with pytest.raises(ConfigError, match="holds '<NOTHING>', which the tokenizer does not"):
            kept.encode("<NOTHING>")
        with pytest.raises(ConfigError, match="which the tokenizer does not know"):
            text.encode(special.SLACK)
    else:
        assert text.decode(text.encode(spelled)) == spelled
    with pytest.raises(ConfigError, match="must hold no special token, got '<SLACK>'"):
        text.reading("error").encode_batch(["a", "b <SLACK>"])


def test_a_control_piece_of_another_model(tmp_path: Path) -> None:
    from tests.data.test_written import prefixed

    tokenizer = prefixed(tmp_path).reading("keep")
    ids = tokenizer.encode("see</s>it")
    assert tokenizer.find("</s>") in ids
    assert tokenizer.decode(ids, skip_special=False) == "see</s>it"


READINGS: dict[SpecialInText, int] = {"text": 0, "error": 8, "keep": 2}  # and rows that are skipped


@pytest.fixture
def mixed(tmp_path: Path) -> Callable[[SpecialInText], Config]:
    """40 good rows, 6 that spell a token, one with slack in its response, one with a mask."""
    texts = [(f"a{number}", "b") for number in range(40)]
    texts += [(f"{number} <|eot_id|>", "yes") for number in range(6)]
    texts += [("slack", "a <SLACK>"), ("mask <|mdm_mask|>", "b")]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in texts))

    def make(reading: SpecialInText) -> Config:
        data = DataConfig(
            files=str(file),
            length=64,
            max_labels=40,
            on_bad_row="skip",
            validation_percent=10.0,
            special_in_text=reading,
            tokenizer=KINDS["bpe"],
        )
        return Config(name="x", data=data)

    return make


@pytest.mark.parametrize("reading", READINGS)
def test_skipped_rows_are_counted(mixed: Callable, tmp_path: Path, reading: SpecialInText) -> None:
    config, workdir, skipped = mixed(reading), epath.Path(tmp_path / "run"), READINGS[reading]
    corpus = load_corpus(config, workdir)
    assert corpus.train.counts.skipped + corpus.validation.counts.skipped == skipped
    assert settings_of(config.data)["special_in_text"] == reading
    # Prepared on disk: the same rows, and what was wrong with the others.
    for workers in (1, 2):
        folder = epath.Path(tmp_path / f"prepared{workers}")
        texts = [f"{number} yes" for number in range(40)]
        tokenizer = open_tokenizer(config.data, folder, lambda texts=texts: texts)
        manifest = prepare_rows(config, tokenizer, folder, workers=workers)
        found = {"a special token in the text": skipped} if skipped else {}
        assert manifest.counts["skipped"] == found
        assert manifest.counts["rows"] == 48 - skipped
    other = mixed("keep" if reading == "error" else "error")
    with pytest.raises(ConfigError, match=rf"data\.special_in_text was {reading}, is "):
        prepare_rows(other, tokenizer, folder)


def test_prepared_rows_name_theirs(mixed: Callable, tmp_path: Path) -> None:
    config = mixed("error")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, on_bad_row="error"))
    folder = epath.Path(tmp_path / "prepared")
    tokenizer = open_tokenizer(config.data, folder, lambda: TEXTS)
    with pytest.raises(ConfigError) as raised:
        prepare_rows(config, tokenizer, folder, workers=1)
    assert "rows.jsonl:4" in str(raised.value)
    assert str(raised.value).endswith(
        f" must hold no special token, got '<|eot_id|>'; {REMEDY}; correct the row or set "
        "data.on_bad_row=skip"
    )


def test_a_model_takes_it_along(keeping: Opened, tmp_path: Path) -> None:
    """Where it is opened, exported, imported and trained on."""
    path, asked = keeping.path, f"how is {special.TERMINATOR} read?"
    ids = keeping.encode(asked)
    assert jax_mdlm.load(path).encode(asked) == open_setup(path).encode(asked) == ids
    folder, again = tmp_path / "folder", tmp_path / "again"
    convert.main(["export", str(path), str(folder), "--dtype", "float32"])
    convert.main(["import", str(folder), str(again)])
    for place in (folder, again):
        assert open_setup(place).encode(asked) == ids
    for origin in (path, folder, again):
        config = dataclasses.replace(
            keeping.config,
            init=dataclasses.replace(keeping.config.init, source=str(origin)),
            data=dataclasses.replace(
                keeping.config.data,
                files=rows(keeping, asked, "yes"),
                special_in_text="text",
                tokenizer=keeping.config.data.tokenizer,
            ),
        )
        with pytest.raises(ConfigError) as raised:
            claim(config, epath.Path(tmp_path / "next"))
        assert str(raised.value) == (
            f"init.from={open_origin(str(origin)).path} gives its parameters another meaning than "
            "these settings: data.special_in_text=keep there, text here; set "
            "--config.data.special_in_text=keep, or train without init.from"
        )
        data = dataclasses.replace(config.data, special_in_text="keep")
        workdir = epath.Path(tmp_path / f"next-{epath.Path(origin).name}")
        _, corpus = claim(dataclasses.replace(config, data=data), workdir)
        assert keeping.tokenizer.find(special.TERMINATOR) in corpus.tokenizer.encode(asked)
