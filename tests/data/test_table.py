"""Rows on the canvas: against a slow reference, the policies for long rows, pre-training."""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.containers import Batch
from jax_mdlm.data.batches import assemble, evaluation_batches
from jax_mdlm.data.chat import make_template
from jax_mdlm.data.examples import BadRows, Example, Message, SplitRows, answers, pair
from jax_mdlm.data.table import Table, make_table
from jax_mdlm.data.tokenizer import Tokenizer
from tests.data.conftest import dialogue, example, plain_config, render_example


def lay_out(
    tokenizer: Tokenizer, conversation: Example, turn: int, config: DataConfig
) -> dict[str, list | int]:
    """One row slot by slot, for a response and a prompt that fit."""
    template = make_template(config.template, tokenizer)
    prompt, response = render_example(tokenizer, conversation, template, turn)
    ids = tokenizer.ids
    padding = min(config.end_padding, config.length - len(prompt) - len(response))
    learned = len(response) + padding
    unused = config.length - len(prompt) - learned
    return {
        "tokens": prompt + response + [ids.eos] * padding + [ids.pad] * unused,
        "response": [False] * len(prompt) + [True] * learned + [False] * unused,
        "valid": [True] * (len(prompt) + learned) + [False] * unused,
        "labels": response + [ids.pad] * (config.max_labels - len(response)),
        "label_count": len(response),
    }


def row_of(batch: Batch, row: int) -> dict[str, list | int]:
    return {name: np.asarray(value)[row].tolist() for name, value in vars(batch).items()}


def show(tokenizer: Tokenizer, table: Table, config: DataConfig, at: int = 0) -> str:
    """The valid slots of a pair, the first response slot marked."""
    batch = assemble(table, np.array([at]), config)
    texts = [tokenizer.token(index) for index in batch.tokens[0][batch.valid[0]]]
    begin = int(np.argmax(batch.response[0]))
    short = {"<|end_header_id|>": ">", "<|eot_id|>": ".", "<|endoftext|>": "_"}
    signs = [short.get(text, text) for text in texts]
    return "".join([*signs[:begin], "|", *signs[begin:]])


@settings(max_examples=40, deadline=None)
@given(
    conversations=st.lists(
        st.lists(st.integers(1, 6), min_size=2, max_size=7).map(lambda sizes: dialogue(*sizes)),
        min_size=1,
        max_size=5,
    ),
    end_padding=st.integers(0, 5),
    template=st.sampled_from(["plain", "llada"]),
)
def test_rows_equal_the_reference(
    symbols: Tokenizer, make_rows, conversations: list, end_padding: int, template: str
) -> None:
    config = plain_config(
        template=template, length=120, max_labels=9, end_padding=end_padding, too_long="error"
    )
    table = make_table(make_rows(conversations), config, symbols)
    batch = assemble(table, np.arange(len(table.response)), config)
    expected = [
        lay_out(symbols, conversation, turn, config)
        for conversation in conversations
        for turn in range(len(answers(conversation)))
    ]
    assert [row_of(batch, i) for i in range(len(batch.tokens))] == expected
    assert np.diff(table.first_pair).tolist() == [len(answers(c)) for c in conversations]
    assert {name: value.dtype for name, value in vars(batch).items()} == {
        "tokens": np.int32,
        "response": np.bool_,
        "valid": np.bool_,
        "labels": np.int32,
        "label_count": np.int32,
    }


def test_a_response_is_encoded_as_it_follows_the_opening(llada: Tokenizer, make_rows) -> None:
    """In the history it is encoded with the empty line before it, and may merge with that line."""
    conversation = (
        Message("user", "What?"),
        Message("assistant", "It sat."),
        Message("user", "And\nthen?"),
        Message("assistant", "It slept."),
    )
    config = plain_config(template="llada", length=96, max_labels=20)
    table = make_table(make_rows([conversation]), config, llada)
    batch = assemble(table, np.arange(2), config)
    assert [row_of(batch, i) for i in range(2)] == [
        lay_out(llada, conversation, turn, config) for turn in range(2)
    ]


def test_truncation(symbols: Tokenizer, make_rows) -> None:
    """Canvas of 16, 8 labels, a quarter (4 slots) kept for the response; one slot is `>`."""

    def shown(prompt: int, response: int, **changes: Any) -> tuple[str, int]:
        config = plain_config(**changes)
        table = make_table(make_rows([example(prompt, response)]), config, symbols)
        shorter = table.history[0, 1] - table.history[0, 0] < prompt + 1  # the separator
        assert table.counts.shortened == shorter
        return show(symbols, table, config), table.counts.truncated

    assert shown(3, 4) == ("aaa>|bbbb.___", 0)
    assert shown(3, 4, end_padding=0) == ("aaa>|bbbb.", 0)
    assert shown(8, 5) == ("aaaaaaaa>|bbbbb._", 0)  # the canvas ends in the padding
    assert shown(8, 6) == ("aaaaaaaa>|bbbbbb.", 0)  # the terminator takes the last slot
    assert shown(8, 7) == ("aaaaaaaa>|bbbbbbb", 1)  # one too many: no terminator, no padding
    assert shown(3, 7) == ("aaa>|bbbbbbb.___", 0)
    assert shown(3, 8) == ("aaa>|bbbbbbbb", 1)  # more labels than max_labels
    assert shown(14, 9) == ("aaaaaaaaaaa>|bbbb", 1)  # the prompt loses its beginning
    assert shown(30, 2) == ("aaaaaaaaaaaa>|bb.", 0)  # just enough for the response
    assert shown(2, 5, length=8) == ("aa>|bbbbb", 1)


def test_the_oldest_part_of_a_prompt_is_cut(llada: Tokenizer, make_rows) -> None:
    config = plain_config(template="llada", length=40, max_labels=20, end_padding=0)
    text = "the cat sat on the mat and then it slept and then it sat " * 4
    rows = make_rows([(*pair("first", "second"), *pair(text, "It sat."))])
    table = make_table(rows, config, llada)
    tokens = assemble(table, np.array([1]), config).tokens[0]
    prompt, response = render_example(llada, rows[0], make_template("llada", llada), 1)
    cut = len(prompt) + len(response) - 40
    assert cut > 0
    # the start token stays, the end of the prompt stays, the response is whole
    assert tokens.tolist() == prompt[:1] + prompt[1 + cut :] + response


def test_dropping_counts_pairs_and_rows(symbols: Tokenizer, make_rows) -> None:
    rows = make_rows([example(3, 4), example(3, 12), dialogue(2, 3, 2, 9), example(20, 1)])
    table = make_table(rows, plain_config(too_long="drop"), symbols)
    assert len(table) == 2
    assert table.counts.responses == 2
    assert table.counts.dropped == 3
    assert table.counts.line(plain_config()) == (
        "2 rows, 2 responses, 3 dropped (60.0%): 1 by data.max_labels=8, 2 by data.length=16, "
        "0 skipped"
    )
    shown = [show(symbols, table, plain_config(), at) for at in range(2)]
    assert shown == ["aaa>|bbbb.___", "aa>|bbb.___"]


def test_what_cut_is_counted_and_warned_about(symbols: Tokenizer, make_rows) -> None:
    rows = make_rows([example(3, 4), example(3, 12), dialogue(2, 3, 2, 9), example(20, 1)])
    counts = make_table(rows, plain_config(), symbols).counts
    assert (counts.rows, counts.responses, counts.truncated, counts.dropped) == (4, 5, 2, 0)
    cut = "2 truncated (40.0%): 1 by data.max_labels=8, 1 by data.length=16"
    assert counts.line(plain_config()) == (
        f"4 rows, 5 responses, {cut}, the oldest part of 1 prompts cut (20.0%), 0 skipped"
    )
    assert counts.warnings(plain_config(), 16) == [
        f"{cut}; the longest response takes 13 labels, the longest row 23 slots; with "
        "data.max_labels=13 and data.length=23 95% would fit"
    ]
    wide = plain_config(length=23, max_labels=13)
    fitting = make_table(rows, wide, symbols).counts
    assert fitting.line(wide) == "4 rows, 5 responses, 0 truncated, 0 skipped"
    assert fitting.warnings(wide, 16) == []


def test_answers_that_sampling_has_no_slots_for_are_told(symbols: Tokenizer, make_rows) -> None:
    rows = make_rows([example(3, 4)] * 9 + [example(3, 6)])
    counts = make_table(rows, plain_config(), symbols).counts
    assert counts.warnings(plain_config(), 7) == []
    assert counts.warnings(plain_config(), 6) == [
        "sample.length=6 is too short for more than 5% of the responses, the longest of which "
        "takes 7 slots and more with slack; set sample.length, or sample.limit, when sampling"
    ]


@pytest.mark.parametrize(("long", "warned"), [(1, False), (2, True)])
@pytest.mark.parametrize("policy", ["truncate", "drop"])
def test_one_in_twenty_may_be_too_long(
    symbols: Tokenizer, make_rows, long: int, warned: bool, policy: str
) -> None:
    config = plain_config(too_long=policy)
    rows = make_rows([example(3, 4)] * (20 - long) + [example(3, 12)] * long)
    warnings = make_table(rows, config, symbols).counts.warnings(config, 16)
    assert bool(warnings) == warned
    if warned:
        word = {"truncate": "truncated", "drop": "dropped"}[policy]
        assert warnings[0].startswith(f"2 {word} (10.0%): 2 by data.max_labels=8, 0 by data.length")


def test_prompts_that_a_width_does_not_hold_are_told(symbols: Tokenizer, make_rows) -> None:
    config = plain_config(prompt_slots=4)
    rows = make_rows([example(3, 2)] * 9 + [example(6, 2)])
    counts = make_table(rows, config, symbols).counts
    assert counts.warnings(config, 16) == [
        "data.prompt_slots=4 fills prompts up so that all responses begin at one slot, but more "
        "than 5% of the prompts are longer (the longest takes 7 slots); set data.prompt_slots=0, "
        "or a number that holds them"
    ]
    assert counts.warnings(plain_config(prompt_slots=7), 16) == []


def test_a_row_that_is_too_long_is_named(symbols: Tokenizer, make_rows) -> None:
    config = plain_config(too_long="error", max_labels=10)
    rows = make_rows([example(3, 4), example(8, 7)])
    message = (
        r"response of row 1 \(toy\.jsonl:2\) needs 8 slots, the canvas leaves 7; raise "
        r"data\.length or set data\.too_long=truncate"
    )
    with pytest.raises(ConfigError, match=message):
        make_table(rows, config, symbols)
    with pytest.raises(
        ConfigError, match=r"needs 2 slots, the canvas leaves 0; raise data\.length"
    ):
        make_table(make_rows([example(30, 1)]), config, symbols)
    message = (
        r"response of row 0 \(toy\.jsonl:1\) needs 11 labels, data\.max_labels is 10; raise "
        r"data\.max_labels or set data\.too_long=truncate"
    )
    with pytest.raises(ConfigError, match=message):
        make_table(make_rows([example(1, 10)]), config, symbols)


def test_no_row_is_left(symbols: Tokenizer, make_rows) -> None:
    config = plain_config(too_long="drop")
    message = r"no row of toy fits data\.length=16 and data\.max_labels=8; raise them or set data"
    with pytest.raises(ConfigError, match=message):
        make_table(make_rows([example(3, 12)]), config, symbols)
    with pytest.raises(
        ConfigError, match=r"toy holds no rows; give more data or change data\.valid"
    ):
        make_table(make_rows([]), config, symbols)


def test_a_canvas_without_room(llada: Tokenizer, make_rows) -> None:
    config = plain_config(template="llada", length=6, max_labels=2)
    message = r"data\.length must be at least \d+ for data\.template=llada, got 6"
    with pytest.raises(ConfigError, match=message):
        make_table(make_rows([example(1, 1)]), config, llada)


BAD_ROWS = [
    (
        pair("a", "b <SLACK> b"),
        r"text 'b <SLACK> b' holds '<SLACK>', which the tokenizer does not know; use symbols of",
    ),
    (
        pair("<|mdm_mask|>", "b"),
        r"text '<\|mdm_mask\|>' holds '<\|', which the tokenizer does not k",
    ),
    (pair("a", " \n"), r"the response is empty; there is nothing to learn, fill it"),
    (pair("a", "ß"), r"text 'ß' holds 'ß', which the tokenizer does not know; use symbols of"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_ROWS, ids=["slack", "mask", "empty", "unknown"])
def test_bad_rows(symbols: Tokenizer, make_rows, bad: Example, message: str) -> None:
    rows = make_rows([example(1, 1), bad, example(2, 2)])
    message = rf"row 1 \(toy\.jsonl:2\): {message}.* or set data\.on_bad_row=skip"
    with pytest.raises(ConfigError, match=message):
        make_table(rows, plain_config(), symbols)
    config = plain_config(on_bad_row="skip")
    table = make_table(rows, config, symbols)
    assert table.counts.skipped == 1
    assert [show(symbols, table, config, at) for at in (0, 1)] == ["a>|b.___", "aa>|bb.___"]


def test_bad_rows_of_every_kind_are_skipped_together(symbols: Tokenizer, make_rows) -> None:
    rows = make_rows([bad for bad, _ in BAD_ROWS] + [example(1, 1)])
    table = make_table(rows, plain_config(on_bad_row="skip"), symbols)
    assert (len(table), table.counts.skipped) == (1, 4)


@pytest.mark.parametrize("pretraining", [False, True])
def test_skipped_rows_are_added_up_and_cannot_be_all(
    symbols: Tokenizer, make_rows, pretraining: bool
) -> None:
    config = plain_config(on_bad_row="skip", pretraining=pretraining)
    bad = pair("a", "b <SLACK>")
    rows = dataclasses.replace(make_rows([bad, example(1, 1)]), bad=BadRows(Counter(malformed=3)))
    assert make_table(rows, config, symbols).counts.skipped == 4
    with pytest.raises(
        ConfigError, match=r"all 1 rows of toy were skipped; set data\.on_bad_row=e"
    ):
        make_table(make_rows([bad]), config, symbols)


@pytest.mark.parametrize("slack_max", [0.0, 0.5])
def test_pretraining_packs_texts(symbols: Tokenizer, make_rows, slack_max: float) -> None:
    sizes = [5, 1, 30, 7]
    texts = [(Message("text", "abcdefgh"[i] * size),) for i, size in enumerate(sizes)]
    config = plain_config(pretraining=True, max_labels=16)
    table = make_table(make_rows(texts), config, symbols, slack_max=slack_max)
    stream = "".join("abcdefgh"[i] * size + "_" for i, size in enumerate(sizes))
    room = {0.0: 16, 0.5: 10}[slack_max]
    expected = [stream[i : i + room] for i in range(0, len(stream), room)]
    assert [show(symbols, table, config, at) for at in range(len(table))] == [
        "|" + row for row in expected
    ]
    batch = assemble(table, np.arange(len(table)), config)
    assert batch.label_count.tolist() == list(map(len, expected))
    np.testing.assert_array_equal(batch.response, batch.valid)
    np.testing.assert_array_equal(batch.response.sum(axis=1), batch.label_count)


def test_pretraining_on_conversations(symbols: Tokenizer, make_rows) -> None:
    """No template: contents one after the other. `max_labels` bounds a row as well."""
    config = plain_config(pretraining=True, max_labels=4)
    table = make_table(make_rows([example(3, 4)]), config, symbols)
    assert [show(symbols, table, config, at) for at in range(2)] == ["|aaab", "|bbb_"]


def test_filling_rows_hold_one_valid_slot_and_no_label(symbols: Tokenizer, make_rows) -> None:
    config = plain_config()
    table = make_table(make_rows([example(3, 4)]), config, symbols)
    batch = assemble(table, np.array([0, -1]), config)
    assert batch.label_count.tolist() == [5, 0]
    assert not batch.response[1].any()
    assert batch.valid[1].tolist() == [True] + [False] * 15
    assert set(batch.tokens[1].tolist()) == set(batch.labels[1].tolist()) == {symbols.ids.pad}


def test_filled_prompts_in_batches_are_those_of_render_prompt(symbols) -> None:
    config = DataConfig(template="plain", prompt_slots=8, length=24, max_labels=6, end_padding=3)
    examples = [pair("abc", "AH L"), pair("abcabcabc", "AH")]
    rows = SplitRows("test", examples, ["a:1", "a:2"])
    batch = next(iter(evaluation_batches(make_table(rows, config, symbols), config, batch_size=2)))
    template = make_template("plain", symbols, 8)
    for row, conversation in enumerate(examples):
        prompt, response = render_example(symbols, conversation, template)
        begin = len(prompt)
        assert batch.tokens[row, :begin].tolist() == prompt
        assert batch.tokens[row, begin : begin + len(response)].tolist() == response
        assert int(np.argmax(batch.response[row])) == begin
        assert batch.valid[row].sum() == begin + len(response) + 3
