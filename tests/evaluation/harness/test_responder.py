"""Answers against direct decoding, encodings by hand, rendering against `render_prompt`."""

import dataclasses
from collections.abc import Sequence

import jax
import pytest
from etils import epath

from jax_mdlm.config import ConfigError, TokenizerConfig
from jax_mdlm.data.chat import make_template, plain_template, render_prompt
from jax_mdlm.data.tokenizer import load_tokenizer
from jax_mdlm.evaluation.harness.responder import Asked, Responder, Scored
from jax_mdlm.likelihood import log_likelihood
from jax_mdlm.sampling import SampleOptions

TEXTS = ["the cat sat on the mat", "the dog sat on the log", "<|eot_id|> closes a turn"]


@pytest.fixture(scope="module")
def bytewise(responder: Responder, tmp_path_factory: pytest.TempPathFactory) -> Responder:
    """With a tokenizer that joins a space to the next word; its model is never called."""
    folder = epath.Path(tmp_path_factory.mktemp("bytewise"))
    tokenizer = load_tokenizer(TokenizerConfig("bpe", vocab_size=320), folder, lambda: TEXTS)
    template = make_template("llada", tokenizer)
    model = dataclasses.replace(responder.model, tokenizer=tokenizer, template=template)
    return dataclasses.replace(responder, model=model)


def asked(context: str, **wishes: object) -> Asked:
    return Asked(context, wishes, f"task t, document {context!r}")


def alone(responder: Responder, context: str, options: SampleOptions) -> str:
    model = responder.model
    prompt = model.tokenizer.encode(context)
    (answer,) = model.decode([prompt], options=options, batch_size=1)
    return model.tokenizer.decode(answer.tokens)


def test_answers_keep_their_order(responder):
    contexts = ["abc", "a", "hgfedc", "b", "bb", "abcdefgh"]
    longer = responder.model.options.with_settings(length=9, steps=9)
    done: list[tuple[str, int, int]] = []
    reporting = dataclasses.replace(responder, report=lambda *seen: done.append(seen))
    requests = [asked(text) for text in contexts] + [asked("abc", max_gen_toks=9)]
    texts = reporting.answer(requests)
    expected = [alone(responder, text, responder.model.options) for text in contexts]
    assert texts == [*expected, alone(responder, "abc", longer)]
    assert len(set(texts)) > 3  # else the order shows nothing
    assert done == [("answer", number, 7) for number in range(1, 8)]


def test_an_answer_is_cut(responder):
    text = alone(responder, "abcdefgh", responder.model.options)
    words = text.split()
    assert len(words) > 4
    assert words[2] not in words[:2]
    stopped, short = responder.answer(
        [asked("abcdefgh", until=[f" {words[2]}"]), asked("abcdefgh", max_gen_toks=4)]
    )
    assert stopped.split() == words[:2]
    assert short.split() == words[:4]  # of six slots, two blocks


def test_repeats_are_drawn_anew(responder):
    requests = [asked("abc", do_sample=True, temperature=1.0)] * 6
    texts = responder.answer(requests)
    assert len(set(texts)) > 1
    assert texts == responder.answer(requests)


@pytest.mark.parametrize(
    ("context", "continuation", "prompt", "response"),
    [
        ("the cat", " sat", "the cat", " sat"),
        ("the cat ", "sat", "the cat", " sat"),  # the space goes with the word
        ("the cat \n", "sat", "the cat", " \nsat"),
        ("", "the cat", "", "the cat"),
        ("the cat", "", "the cat", ""),
    ],
)
def test_rows(bytewise, context, continuation, prompt, response):
    ((left, right),) = bytewise.rows([Scored(context, continuation, "task t")])
    decode = bytewise.model.tokenizer.decode
    assert (decode(left, skip_special=False), decode(right)) == (prompt, response)
    assert left + right == bytewise.model.tokenizer.encode(context + continuation)


def test_a_space_is_one_token_with_its_word(bytewise):
    """What moving it is for: alone it would be a token that the model never saw there."""
    ((_, response),) = bytewise.rows([Scored("the cat ", "sat", "task t")])
    assert bytewise.model.tokenizer.token(response[0]) == " sat"


@pytest.mark.parametrize("begun", ["", "It"])
def test_of_a_rendered_chat_prompt_nothing_moves(bytewise, begun):
    talking = dataclasses.replace(bytewise, chat=True)
    messages = [*CONVERSATION, {"role": "assistant", "content": begun}]
    text = talking.render(messages, open_answer=False)
    ((prompt, response),) = talking.rows([Scored(text, " sat", "task t")])
    encode = talking.model.tokenizer.encode
    end = len(prompt) - len(encode(f"\n\n{begun}"))
    assert (
        prompt[:end]
        == render_prompt(talking.model.tokenizer, CONVERSATION, talking.model.template)[:end]
    )
    assert prompt[end:] == encode(f"\n\n{begun}")
    assert response == encode(" sat")


CONVERSATION = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": " the cat "},
    {"role": "assistant", "content": "sat"},
    {"role": "user", "content": "the dog"},
]


@pytest.mark.parametrize(
    "make",
    [
        lambda tokenizer: make_template("llada", tokenizer),
        lambda tokenizer: make_template("llada", tokenizer, 200),
        lambda tokenizer: make_template("plain", tokenizer, 40),
        lambda tokenizer: plain_template("\n", "\n"),
    ],
)
def test_render_gives_the_ids_of_render_prompt(bytewise, make):
    """For contents that spell control tokens, and the signs of `to_string`, too."""
    template = make(bytewise.model.tokenizer)
    config = bytewise.model.config
    network = dataclasses.replace(config.model, max_length=400)
    config = dataclasses.replace(config, model=network)
    model = dataclasses.replace(bytewise.model, config=config, template=template)
    talking = dataclasses.replace(bytewise, model=model, chat=True)
    for spelled in ("<|eot_id|>", "<SLACK>\n\n", "\x10", "\x104\x10", "\x10;\x10 \x10\x10"):
        messages = [*CONVERSATION, {"role": "user", "content": f"a {spelled} b{spelled}"}]
        ((prompt, rest),) = talking.rows([Scored(talking.render(messages), "", "task t")])
        assert prompt + rest == render_prompt(talking.model.tokenizer, messages, template)


def test_a_context_that_was_not_rendered_is_text(bytewise):
    text = f"{bytewise.render(CONVERSATION[-1:])} <|mdm_mask|>"
    ((prompt, response),) = bytewise.rows([Scored(text, " <SLACK>", "task t")])
    assert not {*prompt, *response}.intersection(bytewise.model.tokenizer.ids.special)
    assert bytewise.model.tokenizer.decode(prompt + response) == f"{text} <SLACK>"


def test_render_a_response_that_has_begun(bytewise):
    begun = [*CONVERSATION, {"role": "assistant", "content": "It "}]
    assert bytewise.render(begun, open_answer=False) == bytewise.render(CONVERSATION) + "It "


def test_likelihoods(responder):
    scored = [Scored("abc", "A", "t"), Scored("abc", "B C", "t"), Scored("a", "", "t")]
    found = responder.score(scored)
    encode = responder.model.tokenizer.encode
    rows = [(encode("abc"), encode("A")), (encode("abc"), encode("B C"))]
    expected = direct(responder, rows)
    assert found[:2] == expected
    assert (found[2].value, found[2].greedy) == (0.0, True)  # of nothing


def test_first_choices(responder):
    """A single slot: the likeliest token is what greedy decoding commits."""
    one = responder.model.options.with_settings(length=1, block_length=1, steps=1)
    best = alone(responder, "abc", one)
    assert best in "ABCDEFGH"
    other = "A" if best != "A" else "B"
    asking = dataclasses.replace(responder, greedy=True)
    found = asking.score([Scored("abc", best, "t"), Scored("abc", other, "t")])
    assert [estimate.greedy for estimate in found] == [True, False]
    assert found[0].value > found[1].value


def test_whole_texts(responder):
    """Two windows, and a rest that sees half a window before it; each text for itself."""
    config = responder.model.config
    network = dataclasses.replace(config.model, max_length=16)
    short = dataclasses.replace(responder.model, config=dataclasses.replace(config, model=network))
    narrow = dataclasses.replace(responder, model=short)
    ids = short.tokenizer.encode("abcdefgh" * 5)
    rows = [([], ids[:16]), ([], ids[16:32]), (ids[24:32], ids[32:]), ([], ids[8:24])]
    *parts, other = [estimate.value for estimate in direct(narrow, rows)]
    found = narrow.score_texts(["abcdefgh" * 5, "", "abcdefgh" * 2], ["t"] * 3)
    assert found == [sum(parts), 0, other]


def direct(responder: Responder, rows: Sequence[tuple[list[int], list[int]]]) -> list:
    model = responder.model
    return log_likelihood(
        model.params,
        model.config.model,
        rows,
        model.tokenizer.ids,
        jax.random.key(model.settings.seed),
        samples=responder.samples,
        batch_size=model.settings.batch_size,
        guidance=0.0,
        layout=model.layout,
        greedy=False,
    )


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (
            lambda one: one.answer([asked("a" * 91)]),
            r"task t, document 'a.*': a text of 91 tokens and 6 new slots must fit "
            r"model.max_length=96; lower --num-fewshot or --config.sample.length",
        ),
        (
            lambda one: one.score([Scored("a" * 96, "b", "task t")]),
            r"task t: a text of 97 tokens must fit model.max_length=96; lower --num-fewshot$",
        ),
        (
            lambda one: one.answer([asked("a \ud83d")]),
            r"the text must be text, but its character 3",
        ),
        (
            lambda one: one.score_texts(["<SLACK>"], ["task t"]),
            r"task t: .* holds '<SLACK>', which",
        ),
        (
            lambda one: one.answer([asked("a"), asked("q!")]),
            r"task t, document 'q!': text 'q!' holds '!', which the tokenizer does not know",
        ),
        (lambda one: one.answer([asked("a", num_beams=4)]), r"document 'a': .* num_beams=4"),
        (lambda one: one.render([{"role": "user"}]), r"conversation: content of message 1"),
    ],
)
def test_refusals(responder, work, message):
    with pytest.raises(ConfigError, match=message):
        work(responder)
