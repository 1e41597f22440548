"""Prompts to canvases and back, the options, and every error they raise."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_mdlm.config import ConfigError, SampleConfig
from jax_mdlm.containers import Region
from jax_mdlm.sampling import (
    AboveThreshold,
    AtRandom,
    ByConfidence,
    ByEntropy,
    ByFactor,
    ByMargin,
    bucket_length,
    make_canvas,
    options_from,
    response_end,
    response_tokens,
)
from jax_mdlm.sampling.canvas import batches
from tests.sampling.making import changed, make_options
from tests.sampling.standin import IDS

OPTIONS = make_options(length=4, block_length=2, steps=4, ids=IDS)
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
    canvas = make_canvas([[1, 2, 3], [4]], OPTIONS, max_length=64, bucket=lambda n: n + 1)
    np.testing.assert_array_equal(
        canvas.tokens, [[PAD, 1, 2, 3, *[MASK] * 4], [PAD, PAD, PAD, 4, *[MASK] * 4]]
    )
    np.testing.assert_array_equal(canvas.valid, canvas.tokens != PAD)
    assert canvas.region == Region(start=4, length=4, limit=4)
    assert canvas.tokens.dtype == np.int32


def test_canvas_fills_a_batch_up():
    canvas = make_canvas([[1, 2]], OPTIONS, max_length=64, rows=3, bucket=lambda n: n)
    np.testing.assert_array_equal(canvas.tokens[1:], PAD)
    # Keys to attend to: a row without any would be NaN.
    assert canvas.valid[1:].any(axis=1).all()


def test_canvas_of_an_empty_prompt():
    canvas = make_canvas([[]], OPTIONS, max_length=64)
    np.testing.assert_array_equal(canvas.tokens, [[MASK] * 4])
    assert canvas.valid.all()


def test_bucket_is_cut_to_the_model():
    """A prompt of 11 would be rounded to 16; the model leaves 12."""
    canvas = make_canvas([[1] * 11], OPTIONS, max_length=16)
    assert canvas.tokens.shape == (1, 16)
    assert (canvas.tokens[0] == PAD).sum() == 1


# --- blocks that may be appended ---


def test_slots_that_may_be_appended_hold_eos_until_then():
    options = changed(OPTIONS, limit=8)
    canvas = make_canvas([[1, 2], [3]], options, max_length=64, rows=3, bucket=lambda n: n)
    rows = [[1, 2, *[MASK] * 4, *[EOS] * 4], [PAD, 3, *[MASK] * 4, *[EOS] * 4], [PAD] * 10]
    np.testing.assert_array_equal(canvas.tokens, rows)
    assert canvas.region == Region(start=2, length=4, limit=8)
    np.testing.assert_array_equal(canvas.valid[:2], canvas.tokens[:2] != PAD)
    assert canvas.valid[2].any()


def test_the_limit_is_cut_to_whole_blocks_that_the_model_leaves():
    """20 slots, 9 of them prompt: 4 visible ones and three blocks of 2 fit, not the fourth."""
    options = changed(OPTIONS, limit=12)
    canvas = make_canvas([[1] * 9], options, max_length=20, bucket=lambda n: n)
    assert canvas.region == Region(start=9, length=4, limit=10)
    assert canvas.tokens.shape == (1, 19)


@pytest.mark.parametrize("limit", [0, 64, 1024])
def test_number_of_shapes(limit):
    """One program a bucket, also where the limit is more than the model leaves."""
    options = make_options(length=32, block_length=16, steps=8, ids=IDS, limit=limit)
    lengths = range(1, 1024 - 32 + 1)
    regions = {make_canvas([[1] * n], options, max_length=1024).region for n in lengths}
    assert len(regions) <= 15
    assert all(region.start + region.limit <= 1024 for region in regions)


# --- text around gaps ---

GAPS = [[1, 2, MASK, 3, MASK], [MASK, 4], [5, MASK, MASK, MASK, 6]]


def test_prompts_with_masks_are_aligned_at_the_first_one():
    """Padded at both sides; no masks are added, and the region is whole blocks of 2."""
    canvas = make_canvas(GAPS, OPTIONS, max_length=64, bucket=lambda n: n)
    rows = [
        [1, 2, MASK, 3, MASK, PAD],
        [PAD, PAD, MASK, 4, PAD, PAD],
        [PAD, 5, MASK, MASK, MASK, 6],
    ]
    np.testing.assert_array_equal(canvas.tokens, rows)
    np.testing.assert_array_equal(canvas.valid, canvas.tokens != PAD)
    assert canvas.region == Region(start=2, length=4, limit=4)


def test_infilling_does_not_grow():
    canvas = make_canvas(GAPS, changed(OPTIONS, limit=8), max_length=64)
    assert canvas.region == Region(start=8, length=4, limit=4)


def test_text_that_looks_like_padding_is_valid():
    """LLaDA's padding is EOS, which may stand in a prompt: what is padding is known by place."""
    same = dataclasses.replace(IDS, pad=EOS)
    options = changed(OPTIONS, ids=same)
    canvas = make_canvas([[EOS, MASK, EOS], [1, 2, MASK]], options, max_length=64, bucket=int)
    np.testing.assert_array_equal(canvas.tokens, [[EOS, EOS, MASK, EOS], [1, 2, MASK, EOS]])
    np.testing.assert_array_equal(canvas.valid, [[False, True, True, True], [True] * 3 + [False]])


@given(
    st.lists(
        st.lists(st.sampled_from([0, 1, MASK]), min_size=1, max_size=9), min_size=1, max_size=12
    ),
    st.integers(1, 4),
)
def test_batches_are_in_order_and_each_makes_a_canvas(prompts, batch_size):
    """Nothing is lost, nothing could have gone into the batch before it."""
    options = make_options(length=4, block_length=2, steps=4, ids=IDS)
    cuts = batches(prompts, options, 14, batch_size)
    assert [number for part in cuts for number in part] == list(range(len(prompts)))
    for part in cuts:
        assert len(part) <= batch_size
        canvas = make_canvas([prompts[i] for i in part], options, max_length=14, rows=batch_size)
        assert canvas.tokens.shape[1] <= 14
        if any(MASK in prompts[i] for i in part):
            first = (canvas.tokens[: len(part)] == MASK).argmax(axis=1)
            assert (first == canvas.region.start).all()
        for row, number in enumerate(part):
            seen = canvas.tokens[row][canvas.valid[row]].tolist()
            assert seen[: len(prompts[number])] == prompts[number]
    for left, right in itertools.pairwise(cuts):
        if len(left) < batch_size:
            with pytest.raises(ConfigError, match="prompts of one batch must all have masks or"):
                make_canvas(
                    [prompts[i] for i in range(left.start, right.start + 1)],
                    options,
                    max_length=14,
                )


def test_a_prompt_that_is_none_keeps_its_place():
    """It is a row as those that fill a batch up, and goes with prompts of either kind."""
    options = changed(OPTIONS, length=4, block_length=2)
    for prompts in ([[1, 2], None, [3]], [[1, MASK], None, [3, MASK, 4]]):
        assert batches(prompts, options, 16, 8) == [range(3)]
        canvas = make_canvas(prompts, options, max_length=16, bucket=int)
        others = make_canvas(
            [prompt for prompt in prompts if prompt], options, max_length=16, rows=3, bucket=int
        )
        order = [0, 2, 1]
        np.testing.assert_array_equal(canvas.tokens[order], others.tokens)
        np.testing.assert_array_equal(canvas.valid[order], others.valid)
    mixed = [None, [1], None, [MASK], None]
    assert batches(mixed, options, 16, 8) == [range(3), range(3, 5)]
    assert batches([None] * 5, options, 16, 2) == [range(2), range(2, 4), range(4, 5)]


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
            [[1], [1] * 13 + [MASK] * 3],
            None,
            r"prompt 1 with 16 tokens, rounded up to 17 by sample\.block_length=2 behind its first "
            r"mask, must fit model\.max_length=16; shorten it or lower sample\.block_length",
        ),
        ([[1], [2]], 1, "a batch of 1 rows must hold all prompts, got 2; raise sample.batch_size"),
        (
            [[1, MASK, 2], [1, 2]],
            None,
            r"prompts of one batch must all have masks or none, and fit model\.max_length=16 when "
            "they are aligned at their first mask; use generate, which cuts batches",
        ),
        (
            [[1] * 14 + [MASK], [MASK] * 4],
            None,
            r"prompts of one batch must all have masks or none, and fit model\.max_length=16 when",
        ),
    ],
)
def test_errors_of_the_canvas(prompts, rows, message):
    with pytest.raises(ConfigError, match=message):
        make_canvas(prompts, OPTIONS, max_length=16, rows=rows)


# --- options ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_length": 3}, r"sample\.block_length must be positive and divide sample\.length=4"),
        ({"block_length": 0}, r"sample\.block_length must be positive .* got 0"),
        ({"steps": 1}, r"sample\.steps must give each of the 2 blocks a step, got 1; raise"),
        ({"temperature": -1.0}, r"sample\.temperature must be 0 or more, got -1\.0"),
        ({"limit": 2}, r"sample\.limit must be 0 or a multiple of sample\.block_length=2 and at"),
        ({"limit": 7}, r"at least sample\.length=4, got 7"),
        ({"top_k": -1}, r"sample\.top_k must be 0 or more, got -1"),
        ({"top_p": 0.0}, r"sample\.top_p must lie above 0 and at most at 1, got 0\.0"),
        ({"top_p": 1.5}, r"sample\.top_p must lie above 0 and at most at 1, got 1\.5"),
        ({"top_k": 3}, r"sample\.top_k and sample\.top_p choose among drawn tokens and need"),
        ({"top_p": 0.9}, r"need sample\.temperature above 0, got 0; raise it, or leave them"),
        ({"guidance": -0.5}, r"sample\.guidance must be 0 or more, got -0\.5"),
        (
            {"remask": True, "strategy": AboveThreshold(0.9)},
            r"sample\.remask counts what stays committed and needs a quota; set sample\.threshold",
        ),
        ({"refresh": 2}, r"sample\.refresh must be 0 or more, and 0 without a cache, got 2 with"),
        (
            {"refresh": -1, "cache": "dual"},
            r"sample\.refresh must be 0 or more, and 0 without a cache, got -1 with .*dual",
        ),
    ],
)
def test_errors_of_the_options(changes, message):
    with pytest.raises(ConfigError, match=message):
        changed(OPTIONS, **changes)


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
    """Every field of the section that a generation depends on reaches the options."""
    same = {
        "length": 12,
        "limit": 24,
        "block_length": 6,
        "steps": 7,
        "temperature": 0.5,
        "top_k": 9,
        "top_p": 0.8,
        "guidance": 1.5,
        "suppress_eos": True,
        "defer_eos": True,
        "remask": True,
        "cache": "dual",
        "refresh": 3,
        "early_stop": False,
    }
    got = options_from(SampleConfig(**same, strategy=name), "slack_only", IDS, trace=True)
    want = make_options(**same, ids=IDS, collapse="slack_only", strategy=strategy, trace=True)
    assert got == want
    assert hash(got) == hash(want)
    plain = options_from(SampleConfig(strategy=name), "merge", IDS)
    assert plain == make_options(
        length=128, block_length=32, steps=128, ids=IDS, strategy=strategy, early_stop=True
    )


def test_what_no_program_reads_makes_no_other_options():
    """Two runs that differ in nothing else share a compiled program."""
    plain = options_from(SampleConfig(), "merge", IDS)
    other = SampleConfig(batch_size=3, seed=8, weights="int8")
    assert options_from(other, "merge", IDS) == plain
    own = options_from(SampleConfig(threshold=0.5), "merge", IDS, strategy=ByConfidence())
    assert own == plain
    assert hash(own) == hash(plain)


def test_options_from_config_with_a_rule():
    section = SampleConfig(strategy="entropy")
    threshold = options_from(dataclasses.replace(section, threshold=0.9), "merge", IDS)
    assert threshold.strategy == AboveThreshold(0.9, order=ByEntropy())
    factor = options_from(dataclasses.replace(section, factor=1.5), "merge", IDS)
    assert factor.strategy == ByFactor(1.5, order=ByEntropy())
    with pytest.raises(
        ConfigError, match=r"sample\.threshold=0\.9 and sample\.factor=1\.5 are two"
    ):
        options_from(dataclasses.replace(section, threshold=0.9, factor=1.5), "merge", IDS)


# --- back to text ---


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
    options = make_options(length=8, block_length=8, steps=1, ids=IDS, collapse=collapse)
    assert response_tokens(np.asarray(response), options) == want
    end = response_end(response, IDS)
    assert response_tokens(response[:end], options) == want
    assert end == len(response) or response[end] in (EOS, END)


@pytest.mark.parametrize(
    ("collapse", "region", "kinds", "want"),
    [
        ("merge", [1, 1, 1, 1], "ccgc", [1, 1, 1]),  # equal slots merge within a gap only
        ("slack_only", [1, SLACK, 1, 1], "ccgc", [1, 1, 1]),
        ("merge", [2, 2, 1, SLACK], "ggcc", [2, 2, 1]),  # given repeats are text
        ("merge", [END, 1, 2, EOS, 3], "cggcc", [1, 2]),  # the end is behind all given text
        ("merge", [1, 2, END, 3], "cggc", [1, 2]),  # unless the given text ends itself
        ("merge", [1, 2, PAD, PAD], "cgpp", [1, 2]),
    ],
)
def test_response_tokens_of_filled_gaps(collapse, region, kinds, want):
    """`c` committed, `g` given by the caller, `p` padding."""
    options = make_options(length=8, block_length=8, steps=1, ids=IDS, collapse=collapse)
    fixed = np.asarray([kind == "g" for kind in kinds])
    assert response_tokens(np.asarray(region), options, fixed) == want
