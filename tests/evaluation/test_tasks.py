"""Edit distance against its recursion, error rates by hand, and decoding of words end to end."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import SpecialIds
from jax_mdlm.data.chat import PlainTemplate
from jax_mdlm.evaluation.tasks import (
    ErrorRates,
    error_rates,
    evaluate_pronunciations,
    slack_share,
)
from jax_mdlm.sampling import Answer, generate
from tests.sampling.making import make_options
from tests.sampling.standin import random_params


def test_error_rates_by_hand():
    hypotheses = [["A", "B"], ["A"], [], ["B", "B", "B"]]
    references = [
        [["A", "B"]],  # right
        [["B"], ["A", "C", "C"]],  # one substitution in "B" is nearer than two insertions
        [["A", "B", "C"]],  # three deletions
        [["C", "C"], ["B", "B"]],  # one insertion
    ]
    rates = error_rates(hypotheses, references)
    assert rates == ErrorRates(phoneme_errors=5, phonemes=2 + 1 + 3 + 2, word_errors=3, words=4)
    assert rates.phoneme == 5 / 8
    assert rates.word == 3 / 4


@given(st.permutations([["A"], ["A", "B", "C"], ["C", "B"]]))
def test_the_order_of_references_does_not_matter(references):
    """["A"] and ["A", "B", "C"] are both one edit away: the shorter one counts."""
    assert error_rates([["A", "B"]], [references]) == ErrorRates(1, 1, 1, 1)


def test_errors_may_exceed_the_reference():
    assert error_rates([["A"] * 5], [[["B"]]]).phoneme == 5.0


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        ([], [], "error rates need at least one word, got none"),
        ([["A"]], [], "every hypothesis needs its references, got 1 hypotheses and 0 sets"),
        ([["A"]], [[]], r"a row must have at least one reference and no empty one, got \[\]"),
        ([["A"]], [[["A"], []]], r"a row must have .* got \[\['A'\], \[\]\]"),
    ],
)
def test_errors_of_error_rates(hypotheses, references, message):
    with pytest.raises(ValueError, match=message):
        error_rates(hypotheses, references)


LETTERS = "abcdefghij"
IDS = SpecialIds(
    mask=25, slack=24, pad=23, eos=22, terminator=21, never_merged=(20, 21, 22, 23, 24, 25)
)


@dataclasses.dataclass(frozen=True)
class Letters:
    """A tokenizer of ten letters (0-9) and ten symbols P0 to P9 (10-19); 20 separates."""

    ids: SpecialIds = IDS
    vocab_size: int = 26

    def encode(self, text):
        return [LETTERS.index(letter) for letter in text]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, ids, skip_special=True):
        return " ".join(f"P{index - 10}" if index >= 10 else LETTERS[index] for index in ids)

    def find(self, token):
        raise NotImplementedError

    def token(self, index):
        return str(index)

    def save(self, folder):
        raise NotImplementedError


def test_evaluate_pronunciations():
    """Taking the decoded text as the reference gives 0 errors; another word's text does not."""
    config = ModelConfig(
        vocab_size=26,
        embed=16,
        layers=1,
        heads=2,
        kv_heads=2,
        head_dim=8,
        mlp=32,
        max_length=32,
        compute_dtype="float32",
        remat="none",
    )
    params = random_params(config)
    options = make_options(length=8, block_length=4, steps=4, ids=IDS, early_stop=True)
    tokenizer, template = Letters(), PlainTemplate(separator=20, terminator=21)
    key = jax.random.key(1)
    words = ["abc", "jig", "bad", "headed", "a"]
    prompts = [[*tokenizer.encode(word), 20] for word in words]
    answers = list(generate(params, config, prompts, options, key, batch_size=2))
    texts = [tokenizer.decode(answer.tokens) for answer in answers]
    assert len(set(texts)) > 1
    assert all(texts)

    def evaluate(pronunciations):
        return evaluate_pronunciations(
            params,
            config,
            list(zip(words, pronunciations, strict=True)),
            tokenizer,
            template,
            options,
            key,
            batch_size=2,
        )

    scores = evaluate([[text, "P0 P1"] for text in texts])
    assert scores.rates.word == scores.rates.phoneme == 0
    assert [" ".join(hypothesis) for hypothesis in scores.hypotheses] == texts
    assert 1 <= scores.calls_per_word <= 4
    assert scores.slack_share == slack_share(answers, options)
    scores = evaluate([[texts[(i + 1) % 5] + " P9"] for i in range(5)])
    assert scores.rates.word_errors > 0


def test_slack_share_counts_up_to_the_terminator():
    options = make_options(length=6, block_length=6, steps=1, ids=IDS)

    rows = [[10, 24, 11, 21, 24, 24], [24, 10, 11, 12, 13, 14], [21, 24, 24, 24, 24, 24]]
    answers = [Answer([], np.asarray(row), np.zeros(6, int), np.zeros(6, bool), 1) for row in rows]
    assert slack_share(answers, options) == 2 / 9
    assert slack_share(answers[2:], options) == 0
