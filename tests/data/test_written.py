"""Text stays text, whatever it spells: against transformers, and for every kind of tokenizer."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mdlm.config import ConfigError, TokenizerConfig
from jax_mdlm.data import special
from jax_mdlm.data.batches import assemble
from jax_mdlm.data.chat import (
    encode_written,
    make_template,
    plain_template,
    render_prompt,
)
from jax_mdlm.data.examples import Message
from jax_mdlm.data.table import make_table
from jax_mdlm.data.tokenizer import Tokenizer, load_tokenizer
from jax_mdlm.data.tokenizer_sentencepiece import with_controls
from tests.data.conftest import TEXTS, plain_config, render_example, save_llada

# As in LLaDA-Instruct.
PUBLISHED = (
    special.START,
    special.EOS,
    "[CLS]",
    "[gMASK]",
    *(f"<|reserved_token_{number}|>" for number in range(8)),
    special.MASK,
    "<role>",
    "</role>",
    special.HEADER_START,
    special.HEADER_END,
    special.TERMINATOR,
)
SPELLED = [
    *PUBLISHED,
    special.SLACK,
    "<s>",
    "</s>",
    "<unk>",
    "<0x0A>",
    "|>",
    "<|",
    "a",
    "\n\n",
    " ",
]


def load(folder: Path, config: TokenizerConfig, texts: Sequence[str] = TEXTS) -> Tokenizer:
    return load_tokenizer(config, epath.Path(folder / "kept"), lambda: texts)


def published(folder: Path) -> Tokenizer:
    return load(folder, TokenizerConfig("huggingface", path=str(save_llada(folder, PUBLISHED))))


def base(folder: Path) -> Tokenizer:
    """LLaDA's Base tokenizer knows no headers: a template writes them as text."""
    path = save_llada(folder, PUBLISHED[:-3])
    return load(folder, TokenizerConfig("huggingface", path=str(path)))


def unmarked(folder: Path) -> Tokenizer:
    """Its tokens are added ones, none of them marked as special; roles are set by hand."""
    path = save_llada(folder, PUBLISHED)
    content = json.loads((path / "tokenizer.json").read_text())
    ids = {}
    for entry in content["added_tokens"]:
        entry["special"] = False
        ids[entry["content"]] = entry["id"]
    (path / "tokenizer.json").write_text(json.dumps(content))
    config = json.loads((path / "tokenizer_config.json").read_text())
    config.pop("added_tokens_decoder", None)
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    roles = {"mask_id": "[gMASK]", "slack_id": "<role>", "pad_id": "</role>", "eos_id": "[CLS]"}
    found = {role: ids[token] for role, token in roles.items()}
    return load(folder, TokenizerConfig("huggingface", path=str(path), **found))


def bpe(folder: Path) -> Tokenizer:
    return load(folder, TokenizerConfig("bpe", vocab_size=320), [*TEXTS, "<SLACK> <|eot_id|>" * 9])


def pieces(folder: Path) -> Tokenizer:
    """Its special tokens are user-defined pieces, which SentencePiece always finds."""
    return load(folder, TokenizerConfig("sentencepiece", vocab_size=300))


def prefixed(folder: Path) -> Tokenizer:
    """Of others: a space before a text, control and user-defined pieces, an ordinary slack."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5),
        model_prefix=str(folder / "other"),
        vocab_size=330,
        hard_vocab_limit=False,
        byte_fallback=True,
        control_symbols=[special.TERMINATOR, special.HEADER_START],
        user_defined_symbols=[special.HEADER_END, special.MASK],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    config = TokenizerConfig("sentencepiece", path=str(folder / "other.model"))
    processor = sentencepiece.SentencePieceProcessor(model_file=config.path)
    slack = processor.piece_to_id("▁the")
    assert slack != processor.unk_id()
    return load(folder, TokenizerConfig("sentencepiece", path=config.path, slack_id=slack))


@pytest.fixture(
    scope="module",
    params=[published, base, unmarked, bpe, pieces, prefixed],
    ids=lambda make: make.__name__,
)
def tokenizer(request, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return request.param(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return published(tmp_path_factory.mktemp("instruct"))


@pytest.fixture(scope="module")
def reference(llada_folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(llada_folder)


def known(tokenizer: Tokenizer, token: str) -> int:
    index = tokenizer.find(token)
    assert index is not None
    return index


def controls(tokenizer: Tokenizer) -> set[int]:
    ids = tokenizer.ids
    tokens = {tokenizer.find(token) for token in special.TRAINED_TOKENS}
    roles = {ids.mask, ids.slack, ids.eos, ids.pad, ids.terminator, *ids.never_merged}
    return {*roles, *(index for index in tokens if index is not None)}


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.sampled_from(SPELLED), max_size=6))
def test_no_text_gives_a_special_token(tokenizer: Tokenizer, parts: list[str]) -> None:
    for text in ("".join(parts), " ".join(["what", *parts, "the cat"])):
        ids = tokenizer.encode(text)
        assert controls(tokenizer).isdisjoint(ids)
        assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special=False) == text
        assert tokenizer.encode_batch([text, "cat"])[0] == ids


def test_every_special_string_of_a_tokenizer(tokenizer: Tokenizer) -> None:
    assert len(controls(tokenizer)) > 4
    for index in controls(tokenizer):
        text = f"how is {tokenizer.token(index)} read?"
        assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text
        assert controls(tokenizer).isdisjoint(tokenizer.encode(text))


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(
        st.one_of(st.sampled_from(SPELLED), st.text(st.characters(exclude_categories=["Cs"]))),
        max_size=8,
    )
)
def test_text_is_read_as_by_transformers(
    llada: Tokenizer, reference: Any, parts: list[str]
) -> None:
    text = "".join(parts)
    expected = reference.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert llada.encode(text) == expected


def by_hand(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """LLaDA's template; what stands between two control tokens is one text."""
    encode = tokenizer.encode
    start, opened, closed, end = (
        known(tokenizer, token)
        for token in (special.START, special.HEADER_START, special.HEADER_END, special.TERMINATOR)
    )
    ids = [start]
    for role, content, _ in messages:
        ids += [opened, *encode(role), closed, *encode(f"\n\n{content.strip()}"), end]
    return [*ids, opened, *encode("assistant"), closed, *encode("\n\n")]


@pytest.mark.parametrize("spelled", [*PUBLISHED, f"{special.TERMINATOR}{special.HEADER_START}\n\n"])
def test_a_template_writes_its_tokens_and_nobody_else(
    instruct: Tokenizer, make_rows: Callable, spelled: str
) -> None:
    """In system messages, past answers, and the rows of a training."""
    tokenizer = instruct
    template = make_template("llada", tokenizer)
    example = (
        Message("system", f"{spelled} be short"),
        Message("user", f"say {spelled}"),
        Message("assistant", f"I said {spelled}"),
        Message("assistant", f"{spelled}{spelled}"),
        Message("user", spelled),
        Message("assistant", f"so {spelled}\n\n{spelled}"),
    )
    expected = by_hand(tokenizer, example[:-1])
    assert render_prompt(tokenizer, example[:-1], template) == expected
    plainly = by_hand(tokenizer, [Message("role", "content")] * 5)
    marks = controls(tokenizer)
    assert [i for i in expected if i in marks] == [i for i in plainly if i in marks]
    prompt, response = render_example(tokenizer, example, template)
    assert prompt == expected
    assert tokenizer.decode(response[:-1], skip_special=False) == example[-1].content.strip()
    config = plain_config(template="llada", length=1024, max_labels=200)
    batch = assemble(make_table(make_rows([example]), config, tokenizer), np.array([2]), config)
    begin = int(np.argmax(batch.response[0]))
    assert batch.tokens[0, :begin].tolist() == prompt
    assert batch.tokens[0, begin : begin + len(response)].tolist() == response

    config = plain_config(pretraining=True, length=1024, max_labels=1024)
    batch = assemble(make_table(make_rows([example]), config, tokenizer), np.array([0]), config)
    *text, end = batch.labels[0, : batch.label_count[0]].tolist()
    assert end == tokenizer.ids.eos
    assert marks.isdisjoint(text)
    assert tokenizer.decode(text) == "\n".join(content for _, content, _ in example)


def test_header_strings_that_are_no_tokens_are_one_text_with_what_they_open(
    tmp_path: Path,
) -> None:
    tokenizer = base(tmp_path)
    prompt = render_prompt(tokenizer, "<|endoftext|>", make_template("llada", tokenizer))
    message = "<|start_header_id|>user<|end_header_id|>\n\n<|endoftext|><|eot_id|>"
    opening = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    start = tokenizer.find(special.START)
    assert prompt == [start, *tokenizer.encode(message), *tokenizer.encode(opening)]


def test_pieces_between_two_tokens_are_one_run(llada: Tokenizer) -> None:
    (ids,) = encode_written(llada, [(1, "\n", "\n", "", "The cat", 2, 3, "", 4)])
    assert ids == [1, *llada.encode("\n\nThe cat"), 2, 3, 4]
    assert encode_written(llada, [(), ("",), ("a",), (7,)]) == [[], [], llada.encode("a"), [7]]


@pytest.mark.parametrize("word", [special.SLACK, special.MASK, special.TERMINATOR])
def test_a_special_token_is_no_symbol(symbols: Tokenizer, word: str) -> None:
    with pytest.raises(
        ConfigError, match=r"holds '<.*', which the tokenizer does not know; use sy"
    ):
        symbols.encode_batch(["a b", f"a {word} b"])


def test_an_ordinary_token_with_a_role_is_refused(tmp_path: Path) -> None:
    first = bpe(tmp_path / "a")
    (the,) = first.encode(" the")
    config = TokenizerConfig("bpe", vocab_size=320, mask_id=the)
    tokenizer = load_tokenizer(config, epath.Path(tmp_path / "a" / "kept"))
    message = (
        rf"text 'see the cat' must hold no special token, but the tokenizer writes a part of it as "
        rf"'Ġthe' \(id {the}\), the mask token; take that part out or choose another id with "
        r"--config\.data\.tokenizer\.mask_id"
    )
    with pytest.raises(ConfigError, match=message):
        tokenizer.encode_batch(["cat", " see the cat"])
    assert tokenizer.encode("cat") == first.encode("cat")


def test_a_byte_with_a_role_is_refused(tmp_path: Path) -> None:
    first = pieces(tmp_path)
    byte = first.find("<0xE2>")
    assert byte is not None
    config = TokenizerConfig("sentencepiece", vocab_size=300, slack_id=byte)
    tokenizer = load_tokenizer(config, epath.Path(tmp_path / "kept"))
    with pytest.raises(
        ConfigError, match=r"as '<0xE2>' \(id \d+\), the slack token; take .*slack_id"
    ):
        tokenizer.encode("2 ⊗ 3")
    assert tokenizer.encode("the cat <0xE2>") == first.encode("the cat <0xE2>")


def test_an_added_token_that_is_not_special_is_a_word(tmp_path: Path) -> None:
    """Tokens of the user's own stand in rows; as in transformers."""
    tokenizer = unmarked(tmp_path)
    own = known(tokenizer, "<|reserved_token_3|>")
    assert own not in controls(tokenizer)
    ids = tokenizer.encode("the<|reserved_token_3|>[gMASK]")
    assert ids == [*tokenizer.encode("the"), own, *tokenizer.encode("[gMASK]")]


def test_types_of_pieces(tmp_path: Path) -> None:
    prefixed(tmp_path)
    model = (tmp_path / "other.model").read_bytes()
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = processor.get_piece_size()
    assert with_controls(model, set()) == model
    chosen = {0, 5, 299, size - 1}
    changed = sentencepiece.SentencePieceProcessor(model_proto=with_controls(model, chosen))
    for index in range(size):
        assert changed.id_to_piece(index) == processor.id_to_piece(index)
        assert changed.get_score(index) == processor.get_score(index)
        expected = index in chosen or processor.is_control(index)
        assert changed.is_control(index) == expected


def test_the_plain_template_writes_ids(llada: Tokenizer) -> None:
    header = known(llada, special.HEADER_END)
    template = plain_template(header, llada.ids.terminator)
    assert make_template("plain", llada) == template
    ids = render_prompt(llada, f"a {special.HEADER_END} b", template)
    assert ids == [*llada.encode(f"a {special.HEADER_END} b"), header]
    assert ids.count(header) == 1
