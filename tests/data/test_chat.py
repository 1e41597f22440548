"""Templates: LLaDA's against `apply_chat_template`, and the plain one."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data.batches import assemble
from jax_mdlm.data.chat import make_template, render_prompt, template_of
from jax_mdlm.data.examples import Message, answers, pair
from jax_mdlm.data.table import make_table
from jax_mdlm.data.tokenizer import Tokenizer
from tests.data.conftest import render_example

MESSAGES = st.lists(
    st.builds(
        Message,
        st.sampled_from(["system", "user", "assistant", "tool"]),
        st.sampled_from(["What did\nthe cat do?", "  It sat. ", "\n\n72\t", "", "über  a\n\n b"]),
        st.sampled_from([0, 1]),  # what is not learned is rendered as any turn
    ),
    min_size=1,
    max_size=5,
)


@pytest.fixture(scope="module")
def reference(llada_folder: Path):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(llada_folder)


@settings(max_examples=50, deadline=None)
@given(messages=MESSAGES)
def test_llada_equals_apply_chat_template(
    llada: Tokenizer, reference, messages: list[Message]
) -> None:
    template = make_template("llada", llada)
    dicts = [message._asdict() for message in messages]
    expected = reference.apply_chat_template(dicts, tokenize=True, return_dict=False)
    assert render_prompt(llada, messages, template) == expected
    assert render_prompt(llada, dicts, template) == expected


def test_llada_text(llada: Tokenizer) -> None:
    template = make_template("llada", llada)
    ids = render_prompt(llada, "  What? ", template)
    assert llada.decode(ids, skip_special=False) == (
        "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nWhat?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_a_response_ends_with_the_terminator_and_nothing_follows(llada: Tokenizer) -> None:
    template = make_template("llada", llada)
    conversation = (
        Message("user", "one"),
        Message("assistant", " It sat.\n"),
        Message("user", "two"),
        Message("assistant", "It slept."),
        Message("user", "left out"),
    )
    assert answers(conversation) == [1, 3]
    for turn, position in ((0, 1), (1, 3), (-1, 3)):
        prompt, response = render_example(llada, conversation, template, turn)
        assert prompt == render_prompt(llada, conversation[:position], template)
        assert response[:-1] == llada.encode(conversation[position].content.strip())
        assert response[-1] == llada.ids.terminator


def test_plain(symbols: Tokenizer, llada: Tokenizer) -> None:
    template = make_template("plain", symbols)
    prompt, response = render_example(symbols, pair("align", "AH L AY N"), template)
    assert symbols.decode(prompt, False) == "a l i g n <|end_header_id|>"
    assert symbols.decode(response, False) == "AH L AY N <|eot_id|>"
    assert render_prompt(symbols, "align", template) == prompt
    conversation = (*pair("What?", "It sat."), Message("user", "And then?"))
    ids = render_prompt(llada, conversation, make_template("plain", llada))
    assert llada.decode(ids, False) == (
        "What?<|end_header_id|>It sat.<|eot_id|>And then?<|end_header_id|>"
    )


def test_plain_without_a_header_token_separates_by_newline(tmp_path: Path) -> None:
    from etils import epath

    from jax_mdlm.config import TokenizerConfig
    from jax_mdlm.data.special import EOS, MASK, RESERVED, START
    from jax_mdlm.data.tokenizer import load_tokenizer
    from tests.data.conftest import save_llada

    folder = save_llada(tmp_path / "base", (START, EOS, RESERVED, MASK))
    config = TokenizerConfig(kind="huggingface", path=str(folder))
    tokenizer = load_tokenizer(config, epath.Path(tmp_path / "t"))
    template = make_template("plain", tokenizer)
    prompt, response = render_example(tokenizer, pair("What?", "It sat."), template)
    assert tokenizer.decode(prompt, False) == "What?\n"
    assert tokenizer.decode(response, False) == "It sat.<|endoftext|>"


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        (["hello"], "conversation: message 1 must be an object with role and content, got str"),
        ([{"role": "user"}], "conversation: content of message 1 must be a string, got nothing"),
        (
            [{"role": 3, "content": ""}],
            "conversation: role of message 1 must be a string, got int",
        ),
        (
            [{"role": "root", "content": "20C"}],
            "conversation: role of message 1 must be one of system, user, human, assistant, gpt, "
            "bot, chatbot, model, ai, tool, function, observation, got 'root'",
        ),
        (
            "a\ud83d",
            r"a prompt must be text, but its character 2 is half of a surrogate pair \(\\ud83d\)",
        ),
    ],
)
def test_bad_conversations(llada: Tokenizer, conversation: list, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        render_prompt(llada, conversation, make_template("llada", llada))


def test_a_role_is_what_sampling_writes(llada: Tokenizer) -> None:
    template = make_template("llada", llada)
    theirs = [{"role": "Human", "content": "a"}, {"role": "gpt", "content": "b"}]
    ours = [Message("user", "a"), Message("assistant", "b")]
    assert render_prompt(llada, theirs, template) == render_prompt(llada, ours, template)


def test_nothing_asked_is_the_opening_alone(llada: Tokenizer) -> None:
    """As in training, where a conversation may begin with the assistant."""
    template = make_template("llada", llada)
    example = (Message("assistant", "hi"), Message("user", "x"))
    assert render_prompt(llada, [], template) == render_example(llada, example, template)[0]


def test_prompts_are_filled_up_to_their_slots(symbols) -> None:
    """The separator closes the word, pad follows, and responses start at one slot."""
    template = make_template("plain", symbols, prompt_slots=8)
    short, long = (render_prompt(symbols, word, template) for word in ("abc", "abcabcabc"))
    assert short[:4] == render_prompt(symbols, "abc", make_template("plain", symbols))
    assert short[4:] == [symbols.ids.pad] * 4
    assert len(long) == 10, "a longer prompt stays as it is"


def test_prompts_of_pretraining_read_as_its_texts(llada: Tokenizer, make_rows) -> None:
    """A pre-training row joins its messages by newlines; a prompt is its beginning."""
    config = DataConfig(pretraining=True, length=64, max_labels=64)
    row = pair("copy 12", "34 and 5")
    table = make_table(make_rows([row]), config, llada)
    text = assemble(table, np.array([0]), config).labels[0].tolist()
    prompt = render_prompt(llada, row[:1], template_of(config, llada))
    assert llada.decode(prompt, False) == "copy 12\n"
    assert text[: len(prompt)] == prompt
    assert llada.decode(text[len(prompt) :], True) == "34 and 5"
    plain = DataConfig(template="plain", prompt_slots=5)
    assert template_of(plain, llada) == make_template("plain", llada, 5)
