"""Edit distance against its recursion, error rates by hand, and decoding of words end to end."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from jax_mdlm.config import Config, DataConfig, MeshConfig, ModelConfig, SampleConfig, TrainConfig
from jax_mdlm.containers import SpecialIds
from jax_mdlm.data.chat import plain_template
from jax_mdlm.data.examples import Message, SplitRows
from jax_mdlm.evaluation.pronunciations import score_words
from jax_mdlm.evaluation.scores import METRICS
from jax_mdlm.evaluation.tasks import Task, rows_decoded, slack_share, task_of_rows, usual_of
from jax_mdlm.mdlm import Mdlm
from jax_mdlm.sampling import Answer
from jax_mdlm.setup import Setup
from jax_mdlm.sharding import make_layout
from tests.sampling.making import make_options
from tests.sampling.standin import random_params

PHONEMES, WORDS = usual_of(Config(data=DataConfig(source="pronunciations"))).scores


def test_error_rates_by_hand():
    texts = ["A B", "A", "", "B B B"]
    references = [
        ("A B",),  # right
        ("B", "A C C"),  # one substitution in "B" is nearer than two insertions
        ("A B C",),  # three deletions
        ("C C", "B B"),  # one insertion
    ]
    assert PHONEMES.value(texts, references) == 5 / (2 + 1 + 3 + 2)
    assert WORDS.value(texts, references) == 3 / 4


@given(st.permutations(["A", "A B C", "C B"]))
def test_the_order_of_references_does_not_matter(references):
    """Both "A" and "A B C" are one edit away: the shorter one counts."""
    assert PHONEMES.value(["A B"], [references]) == WORDS.value(["A B"], [references]) == 1


def test_errors_may_exceed_the_reference():
    assert PHONEMES.value(["A A A A A"], [("B",)]) == 5.0


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ([], "shorter"),
        ([[]], r"a row must have at least one reference and no empty one, got \[\]"),
        ([["A", ""]], r"a row must have .* got \[\['A'\], \[\]\]"),
    ],
)
def test_errors_of_error_rates(references, message):
    with pytest.raises(ValueError, match=message):
        PHONEMES.value(["A"], references)


LETTERS = "abcdefghij"
IDS = SpecialIds(
    mask=25, slack=24, pad=23, eos=22, terminator=21, never_merged=(20, 21, 22, 23, 24, 25)
)


@dataclasses.dataclass(frozen=True)
class Letters:
    """A tokenizer of ten letters (0-9) and ten symbols P0 to P9 (10-19); 20 separates."""

    ids: SpecialIds = IDS
    vocab_size: int = 26
    splits_lines: bool = False

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


def test_words_are_decoded_and_scored():
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
    sample = SampleConfig(length=8, block_length=4, steps=4, early_stop=True, batch_size=2, seed=1)
    setup = Setup(
        path=epath.Path("letters"),
        config=Config(model=config, sample=sample),
        tokenizer=Letters(),
        template=plain_template(separator=20, terminator=21),
    )
    layout = make_layout(MeshConfig(), jax.devices()[:1])
    model = Mdlm.of(setup, random_params(config), layout, 1)
    words = ["abc", "jig", "bad", "headed", "a"]
    answers = model.answers(words)
    texts = model.generate(words)
    assert len(set(texts)) > 1
    assert all(texts)

    def evaluate(references):
        scores = (PHONEMES, WORDS)
        return score_words(model, Task("words", words, references, METRICS["symbols"], (), scores))

    found = evaluate([(text, "P0 P1") for text in texts])
    assert found["word_error_rate"] == found["phoneme_error_rate"] == 0
    assert 1 <= found["calls_per_word"] <= 4
    assert found["slack_share"] == slack_share(answers, model.options)
    found = evaluate([(texts[(i + 1) % 5] + " P9",) for i in range(5)])
    assert found["word_error_rate"] > 0


def test_slack_share_counts_up_to_the_terminator():
    options = make_options(length=6, block_length=6, steps=1, ids=IDS)

    rows = [[10, 24, 11, 21, 24, 24], [24, 10, 11, 12, 13, 14], [21, 24, 24, 24, 24, 24]]
    answers = [Answer([], np.asarray(row), np.zeros(6, int), np.zeros(6, bool), 1) for row in rows]
    assert slack_share(answers, options) == 2 / 9
    assert slack_share(answers[2:], options) == 0


@pytest.mark.parametrize(
    ("source", "evaluate_rows", "decode_rows", "expected"),
    [
        ("pronunciations", 500, -1, 500),
        ("pronunciations", 0, -1, None),
        ("numbers", 512, -1, 512),
        ("chat_jsonl", 256, -1, 32),
        ("chat_jsonl", 8, -1, 8),
        ("dialogues", 0, -1, 32),
        ("some_tfds", 0, -1, 32),
        ("chat_jsonl", 256, 100, 100),
        ("pronunciations", 500, 0, 0),
    ],
)
def test_rows_that_an_evaluation_decodes(source, evaluate_rows, decode_rows, expected):
    config = Config(
        data=DataConfig(source=source),
        train=TrainConfig(evaluate_rows=evaluate_rows, decode_rows=decode_rows),
    )
    assert rows_decoded(config) == expected


def test_a_run_leaves_out_rows_that_cannot_be_asked():
    examples = [
        (Message("user", "a"), Message("assistant", "b")),
        (Message("text", "a text alone"),),
        (Message("user", "too long"), Message("assistant", "b")),
        (Message("user", "c"), Message("assistant", " ")),
        (
            Message("user", "d"),
            Message("assistant", "e"),
            Message("user", "f"),
            Message("assistant", "g"),
            Message("user", "thanks"),
        ),
        (Message("user", "h"), Message("assistant", "i")),
    ]
    rows = SplitRows("rows", examples, [f"rows:{number}" for number in range(6)])
    config = Config(train=TrainConfig(decode_rows=2))
    task = task_of_rows(config, rows, lambda asked: "too long" not in asked[0])
    assert task.conversations == [examples[0][:1], examples[4][:3]]
    assert task.references == [("b",), ("g",)]
    assert [score.name for score in task.scores] == ["chrf", "exact_match"]


def test_scores_of_a_run_by_hand():
    texts, references = ["A B", "A"], [("A B", "C"), ("B", "A C C")]
    by_name = {
        score.name: score
        for kind in ("pronunciations", "chat_jsonl")
        for score in usual_of(Config(data=DataConfig(source=kind))).scores
    }
    assert by_name["phoneme_error_rate"].value(texts, references) == 1 / 3
    assert by_name["word_error_rate"].value(texts, references) == 0.5
    assert by_name["exact_match"].value(texts, references) == 0.5
    assert by_name["chrf"].value(["A B"], [("A B",)]) == pytest.approx(1.0)
