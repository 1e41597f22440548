"""Generated numbers: what they are, that they never change, and how they are read."""

import hashlib
import re
from pathlib import Path

import pytest
from etils import epath

from jax_mdlm.config import ConfigError, DataConfig, TokenizerConfig
from jax_mdlm.data import numbers
from jax_mdlm.data.numbers import Number, load_numbers
from jax_mdlm.data.rows import open_rows
from jax_mdlm.data.special import TRAINED_TOKENS
from jax_mdlm.data.tokenizer import load_tokenizer

CONFIG = DataConfig(source="numbers", template="plain")


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Number]]:
    return {name: load_numbers(name) for name in ("train", "validation", "test")}


@pytest.fixture(scope="module")
def rows(splits: dict[str, list[Number]]) -> list[Number]:
    return [row for split in splits.values() for row in split]


def answer(row: Number) -> str:
    """What the response must be, worked out from the prompt alone."""
    words = row.prompt.split()
    if words[0] in ("copy", "join"):
        return "".join(words[1:])
    left, sign, right = re.split(r"([*+])", row.prompt)
    result = int(left) * int(right) if sign == "*" else int(left) + int(right)
    return f"{row.prompt}={result}"


def test_every_response_follows_from_its_prompt(rows: list[Number]) -> None:
    assert all(row.response == answer(row) for row in rows)


def test_the_longest_are_as_long_as_said(rows: list[Number]) -> None:
    assert max(len(row.prompt) for row in rows) == numbers.PROMPT
    assert max(len(row.response) for row in rows) == numbers.RESPONSE


def test_splits_are_disjoint_and_have_all_kinds(splits: dict[str, list[Number]]) -> None:
    sizes = {name: len(split) for name, split in splits.items()}
    assert sizes == {"train": 28_000, "validation": 1000, "test": 2000}
    prompts = [row.prompt for split in splits.values() for row in split]
    assert len(set(prompts)) == len(prompts) == 31_000
    for split in splits.values():
        assert {row.kind for row in split} == {"copy", "join", "product", "sum"}


def test_shares_are_those_of_the_docstring(rows: list[Number]) -> None:
    repeats = sum(bool(re.search(r"(.)\1", row.response)) for row in rows) / len(rows)
    zeros = sum(row.response.endswith("00") for row in rows) / len(rows)
    assert (round(100 * repeats), round(100 * zeros)) == (60, 25)
    text = numbers.load_numbers.__doc__ or ""
    assert "60% of the responses have equal" in text
    assert "25% end with two zeros" in text


def test_the_rows_never_change(splits: dict[str, list[Number]]) -> None:
    """Tables of old runs stay comparable: same rows on every machine and Python."""
    assert splits == {name: load_numbers(name) for name in splits}
    text = "\n".join(row.prompt for split in splits.values() for row in split)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "7d7eaf0b6c982f43"


def test_in_words(rows: list[Number]) -> None:
    """The digits of the prompt stand in the question as they are."""
    for row in rows:
        digits = row.prompt.removeprefix("copy ").removeprefix("join ")
        assert digits in row.chat_prompt
        assert not row.chat_prompt.startswith(row.prompt)


def test_as_a_source(splits: dict[str, list[Number]], tmp_path: Path) -> None:
    rows = open_rows(CONFIG, epath.Path(tmp_path), "validation")
    assert rows.name == "numbers/validation"
    asked = [(user.content, assistant.content) for user, assistant in rows.examples]
    assert asked == [(row.prompt, row.response) for row in splits["validation"]]
    assert rows.origin(0) == f"numbers/validation:{rows[0][0].content}"
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    config = DataConfig(source="numbers", split="training")
    message = (
        r"data\.split must be a split of numbers, one of train, validation, test, got training"
    )
    with pytest.raises(ConfigError, match=message):
        open_rows(config, epath.Path(tmp_path), "train")


def test_a_digit_is_a_token(splits: dict[str, list[Number]], tmp_path: Path) -> None:
    """With a vocabulary of special tokens and bytes nothing is merged, so equal digits meet."""
    config = TokenizerConfig(kind="bpe", vocab_size=len(TRAINED_TOKENS) + 256)
    texts = [row.response for row in splits["validation"]]
    tokenizer = load_tokenizer(config, epath.Path(tmp_path), lambda: texts)
    ids = tokenizer.encode("700*100=70000")
    assert len(ids) == len("700*100=70000")
    assert ids[-1] == ids[-2] == ids[1]
    assert tokenizer.decode(ids) == "700*100=70000"
