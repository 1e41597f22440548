"""Prompts to canvases and back, the options, and every error they raise."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_mdlm.config import ConfigError, SampleConfig
from jax_mdlm.sampling import (
    AboveThreshold,
    AtRandom,
    ByConfidence,
    ByEntropy,
    ByMargin,
    SampleOptions,
    bucket_length,
    make_canvas,
    options_from,
    response_tokens,
)
from tests.sampling.standin import IDS

OPTIONS = SampleOptions(length=4, block_length=2, steps=4, ids=IDS)
MASK, SLACK, PAD, EOS, END = IDS.mask, IDS.slack, IDS.pad, IDS.eos, IDS.terminator


@given(st.integers(0, 8192))
def test_buckets(length):
    size = bucket_length(length)
    assert size >= length
    assert size % 8 == 0
    if length <= 64:
        assert size < length + 8
    else:
        assert size < 2 * length
        assert size & (size - 1) == 0


def test_number_of_buckets():
    assert len({bucket_length(length) for length in range(1, 8193)}) == 15


def test_canvas_is_padded_at_the_left():
    canvas, valid = make_canvas([[1, 2, 3], [4]], OPTIONS, max_length=64, bucket=lambda n: n + 1)
    np.testing.assert_array_equal(
        canvas, [[PAD, 1, 2, 3, *[MASK] * 4], [PAD, PAD, PAD, 4, *[MASK] * 4]]
    )
    np.testing.assert_array_equal(valid, canvas != PAD)
    assert canvas.dtype == np.int32


def test_canvas_fills_a_batch_up():
    canvas, valid = make_canvas([[1, 2]], OPTIONS, max_length=64, rows=3, bucket=lambda n: n)
    np.testing.assert_array_equal(canvas[1:], PAD)
    # Keys to attend to: a row without any would be NaN.
    assert valid[1:].any(axis=1).all()


def test_canvas_of_an_empty_prompt():
    canvas, valid = make_canvas([[]], OPTIONS, max_length=64)
    np.testing.assert_array_equal(canvas, [[MASK] * 4])
    assert valid.all()


def test_bucket_is_cut_to_the_model():
    """A prompt of 11 would be rounded to 16; the model leaves 12."""
    canvas, _ = make_canvas([[1] * 11], OPTIONS, max_length=16)
    assert canvas.shape == (1, 16)
    assert (canvas[0] == PAD).sum() == 1


@pytest.mark.parametrize(
    ("prompts", "rows", "message"),
    [
        ([], None, "prompts must hold at least one prompt, got an empty list"),
        (
            [[1], [1] * 13],
            None,
            r"prompt 1 with 13 tokens and sample\.length=4 new slots must fit "
            r"model\.max_length=16; shorten the prompt or lower sample\.length",
        ),
        (
            [[1, MASK, 2]],
            None,
            r"prompt 0 must not contain the mask token \(id 11\), found at position 1; remove it",
        ),
        ([[1], [2]], 1, "a batch of 1 rows must hold all prompts, got 2; raise sample.batch_size"),
    ],
)
def test_errors_of_the_canvas(prompts, rows, message):
    with pytest.raises(ConfigError, match=message):
        make_canvas(prompts, OPTIONS, max_length=16, rows=rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_length": 3}, r"sample\.block_length must be positive and divide sample\.length=4"),
        ({"block_length": 0}, r"sample\.block_length must be positive .* got 0"),
        ({"steps": 1}, r"sample\.steps must give each of the 2 blocks a step, got 1; raise"),
        ({"temperature": -1.0}, r"sample\.temperature must be 0 or more, got -1\.0"),
    ],
)
def test_errors_of_the_options(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(OPTIONS, **changes)


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("confidence", ByConfidence()),
        ("entropy", ByEntropy()),
        ("margin", ByMargin()),
        ("random", AtRandom()),
    ],
)
def test_options_from_config(name, strategy):
    config = SampleConfig(
        length=12, block_length=6, steps=7, strategy=name, temperature=0.5, early_stop=False
    )
    want = SampleOptions(
        length=12,
        block_length=6,
        steps=7,
        ids=IDS,
        collapse="slack_only",
        strategy=strategy,
        temperature=0.5,
        early_stop=False,
    )
    got = options_from(config, "slack_only", IDS)
    assert got == want
    assert hash(got) == hash(want)
    config = dataclasses.replace(config, threshold=0.9, early_stop=True)
    got = options_from(config, "merge", IDS)
    assert got.strategy == AboveThreshold(0.9, order=strategy)
    assert (got.early_stop, got.collapse) == (True, "merge")


@pytest.mark.parametrize(
    ("collapse", "response", "want"),
    [
        ("merge", [1, SLACK, 1, 1, SLACK, 2, END, 5], [1, 1, 2]),
        ("slack_only", [1, SLACK, 1, 1, SLACK, 2, END, 5], [1, 1, 1, 2]),
        ("merge", [1, EOS, 2, END, 3, 3, 3, 3], [1]),
        ("merge", [1, 2, 3, 4, 5, 0, 1, 2], [1, 2, 3, 4, 5, 0, 1, 2]),
        ("merge", [END, 1, 1, 1, 1, 1, 1, 1], []),
        ("merge", [1, MASK, 6, 2, PAD, 3, SLACK, SLACK], [1, 2, 3]),
    ],
)
def test_response_tokens(collapse, response, want):
    options = SampleOptions(length=8, block_length=8, steps=1, ids=IDS, collapse=collapse)
    assert response_tokens(np.asarray([3, END, 3, *response]), options) == want
