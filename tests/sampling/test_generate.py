"""Decoding with the model: golden trajectories, padding, compilation, batches, meshes."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mdlm import model
from jax_mdlm.config import ConfigError, MeshConfig, ModelConfig
from jax_mdlm.containers import SpecialIds
from jax_mdlm.sampling import (
    AboveThreshold,
    SampleOptions,
    bucket_length,
    generate,
    make_canvas,
    response_tokens,
    sample,
    stream,
)
from jax_mdlm.sampling.program import decode_batch
from jax_mdlm.sharding import make_layout
from tests.conftest import GOLDEN
from tests.sampling.making import changed, make_options
from tests.sampling.standin import random_params

CONFIG = ModelConfig(
    vocab_size=40,
    embed=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp=48,
    max_length=64,
    compute_dtype="float32",
    remat="none",
)
IDS = SpecialIds(mask=39, slack=38, pad=37, eos=36, terminator=35)
OPTIONS = make_options(length=12, block_length=6, steps=7, ids=IDS)
NOISY = changed(OPTIONS, temperature=0.7)
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11, 12], [13]]


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


@pytest.fixture(scope="module")
def key():
    return jax.random.key(1)


# --- the published samplers ---

GOLDEN_IDS = SpecialIds(mask=150, slack=149, pad=151, eos=151, terminator=152)
GOLDEN_CASES = {
    "full": {"steps": 16, "length": 16, "block_length": 16},
    "block": {"steps": 16, "length": 32, "block_length": 8},
    "uneven": {"steps": 12, "length": 32, "block_length": 16},
    "cfg": {"steps": 8, "length": 16, "block_length": 8, "guidance": 1.5},
}


def golden_options(**settings) -> SampleOptions:
    return make_options(ids=GOLDEN_IDS, collapse="slack_only", trace=True, **settings)


def check_trajectory(state, want: np.ndarray, length: int) -> None:
    """`want` [calls + 1, rows, 7 + length]: the canvas before each call, then the final one."""
    frames = np.asarray(state.trace.frames)[: int(state.step) + 1]
    np.testing.assert_array_equal(frames, want[:, :, 7:])
    np.testing.assert_array_equal(state.canvas[:, -length - 7 :], want[-1])
    # What `committed_at` records is the same story.
    canvas, committed_at = np.asarray(state.canvas), np.asarray(state.committed_at)
    told = [
        np.where(committed_at < call, canvas, GOLDEN_IDS.mask)[:, -length:]
        for call in range(len(want))
    ]
    np.testing.assert_array_equal(told, want[:, :, 7:])


@pytest.mark.parametrize("unstacked", [False, True])
@pytest.mark.parametrize("case", list(GOLDEN_CASES))
def test_every_step_of_lladas_generate(golden, key, case, unstacked):
    params, config, arrays = golden
    params = model.unstack(params) if unstacked else params
    settings = GOLDEN_CASES[case]
    prompts = arrays[f"gen_{case}_prompt"].tolist()
    state = sample(params, config, prompts, golden_options(**settings), key)
    assert state.step == settings["steps"]
    check_trajectory(state, arrays[f"gen_{case}_traj"], settings["length"])


def test_left_padded_prompts_of_lladas_generate(golden, key):
    params, config, arrays = golden
    valid = arrays["gen_padded_mask"].astype(bool)
    prompts = [row[keep].tolist() for row, keep in zip(arrays["gen_padded_prompt"], valid)]
    assert len({len(prompt) for prompt in prompts}) > 1
    options = golden_options(steps=8, length=16, block_length=8)
    state = sample(params, config, prompts, options, key)
    np.testing.assert_array_equal(state.canvas[:, -16:], arrays["gen_padded_out"][:, -16:])


@pytest.mark.parametrize("mode", ["steps", "thr50", "thr35", "thr20"])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_every_step_of_fast_dllm(golden, key, cache, mode):
    """Canvas before each call, number of calls, for both of its caches and without one."""
    params, config, arrays = golden
    cached = np.load(GOLDEN / "golden_cache.npz")
    options = golden_options(steps=16, length=32, block_length=8, cache=cache)
    if mode != "steps":
        options = changed(options, strategy=AboveThreshold(int(mode[3:]) / 100))
    for row in range(2):
        want = cached[f"{cache}_{mode}_traj{row}"]
        state = sample(params, config, [want[0, :7].tolist()], options, key)
        assert state.step == cached[f"{cache}_{mode}_nfe"][row]
        check_trajectory(state, want[:, None], 32)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_rows_of_fast_dllm_together(golden, key, cache):
    """Its rows were run one at a time; in one batch, one of them padded, they are the same."""
    params, config, arrays = golden
    cached = np.load(GOLDEN / "golden_cache.npz")
    options = golden_options(steps=16, length=32, block_length=8, cache=cache)
    prompts = [cached[f"{cache}_steps_traj{row}"][0, :7].tolist() for row in range(2)]
    state = sample(params, config, [*prompts, [1] * 12], options, key)
    for row in range(2):
        want = cached[f"{cache}_steps_out"][row]
        np.testing.assert_array_equal(state.canvas[row, -32:], want[7:])


# --- padding ---


def test_left_padding_does_not_change_logits_or_tokens(params, key):
    together = sample(params, CONFIG, PROMPTS, OPTIONS, key)
    for row, prompt in enumerate(PROMPTS[:3]):
        state = sample(params, CONFIG, [prompt], OPTIONS, key)
        np.testing.assert_array_equal(state.canvas[0, -12:], together.canvas[row, -12:])
        np.testing.assert_array_equal(state.committed_at[0, -12:], together.committed_at[row, -12:])
    apply = jax.jit(model.apply, static_argnames="config")
    canvas = make_canvas(PROMPTS[:2], OPTIONS, max_length=64)
    alone = make_canvas(PROMPTS[1:2], OPTIONS, max_length=64, bucket=lambda n: n)
    assert canvas.tokens.shape[1] - alone.tokens.shape[1] == 7
    want = apply(params, alone.tokens, CONFIG)
    got = apply(params, canvas.tokens, CONFIG, canvas.valid)[1:, 7:]
    np.testing.assert_allclose(got, want, atol=1e-5)


# --- one program ---


def decode_program(params, key, config, options):
    canvas = make_canvas(PROMPTS, options, max_length=64)
    return decode_batch.trace(
        params,
        canvas.tokens,
        canvas.valid,
        key,
        np.int32(0),
        np.float32(0),
        config=config,
        options=options,
        region=canvas.region,
        layout=None,
    )


def compilations(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.message.startswith("Compiling")]


def test_one_executable_that_stays_on_the_device(params, key):
    program = decode_program(params, key, CONFIG, NOISY).lower().compile()
    text = program.as_text()
    assert text is not None
    assert text.count("\nENTRY ") == 1
    assert " while(" in text
    for leak in ("outfeed", "infeed", "callback", " send(", " recv("):
        assert leak not in text, leak


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"cache": "dual", "limit": 24}], ids=["exact", "cached"])
def test_a_mixed_load_compiles_a_program_a_bucket(params, caplog, changes):
    """Fifty prompts of random lengths, one at a time: as many compilations as prompt widths."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 30, rng.integers(0, 40)).tolist() for _ in range(50)]
    options = changed(OPTIONS, **changes)
    widths = {bucket_length(len(prompt)) for prompt in prompts}
    assert len(widths) == 6
    key = jax.random.key(4)
    jax.clear_caches()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for number, prompt in enumerate(prompts):
            sample(params, CONFIG, [prompt], options, key, first_row=number)
        decodings = [text for text in compilations(caplog) if "decode_batch" in text]
    assert len(decodings) == len(widths)


def test_no_compilation_within_a_bucket(params, caplog):
    """Forty random batches of one bucket, after a first one: nothing is compiled again."""
    rng = np.random.default_rng(0)
    keys = list(jax.random.split(jax.random.key(3), 41))

    def batch() -> list[list[int]]:
        return [rng.integers(0, 30, rng.integers(1, 9)).tolist() for _ in range(2)]

    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        sample(params, CONFIG, batch(), NOISY, keys[0])
        caplog.clear()
        with jax.transfer_guard("disallow"):  # and no hidden copy to the device
            for number, key in enumerate(keys[1:]):
                prompts = batch()[: 1 + number % 2]
                sample(params, CONFIG, prompts, NOISY, key, rows=2, first_row=number)
        assert compilations(caplog) == []
        jax.jit(lambda x: x + 1)(1.0)  # the count itself works
        assert len(compilations(caplog)) == 1


# --- batches ---


def test_generate_does_not_depend_on_the_batch_size(params, key):
    """With noise: a row's key is its number in the list."""
    answers = list(generate(params, CONFIG, PROMPTS, NOISY, key, batch_size=2))
    whole = sample(params, CONFIG, PROMPTS, NOISY, key)
    canvas, committed_at = np.asarray(whole.canvas), np.asarray(whole.committed_at)
    assert [answer.tokens for answer in answers] == [
        response_tokens(row[-12:], NOISY) for row in canvas
    ]
    np.testing.assert_array_equal([answer.response for answer in answers], canvas[:, -12:])
    np.testing.assert_array_equal(
        [answer.committed_at for answer in answers], committed_at[:, -12:]
    )
    assert {answer.calls for answer in answers} == {7}
    assert len({tuple(answer.tokens) for answer in answers}) > 1


def test_generate_refuses_a_bad_prompt_before_the_first_call(params, key):
    prompts = [[1], [2], [3] * 60]
    with pytest.raises(ConfigError, match=r"prompt 2 with 60 tokens and sample\.length=12 new"):
        generate(params, CONFIG, prompts, OPTIONS, key, batch_size=1)
    with pytest.raises(ConfigError, match="prompts must hold at least one prompt"):
        generate(params, CONFIG, [], OPTIONS, key, batch_size=1)


def test_master_weights_are_cast_once_before_the_loop(params, key):
    """What the loop reads at each call is bfloat16: half the traffic of the master weights."""
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    program = decode_program(params, key, config, OPTIONS).jaxpr
    (loop,) = [eqn for eqn in program.eqns if eqn.primitive.name == "while"]
    read = [x.aval for x in loop.invars if jnp.issubdtype(x.aval.dtype, jnp.floating)]
    assert len(read) == len(jax.tree.leaves(params))
    assert {x.dtype for x in read} == {jnp.dtype("bfloat16")}


MESHES = [
    ({"data": 2, "fsdp": 2, "tensor": 2}, {}),
    *(
        pytest.param(mesh, changes, marks=pytest.mark.slow)
        for mesh, changes in [
            ({"fsdp": 2, "tensor": 2, "context": 2}, {"cache": "prefix", "refresh": 2}),
            ({"fsdp": 4, "tensor": 2}, {"cache": "dual", "guidance": 0.5}),
            ({"fsdp": 1, "tensor": 1, "context": 8}, {"limit": 18, "cache": "dual"}),
            ({"fsdp": 8}, {"remask": True, "trace": True}),
        ]
    ),
]


@pytest.mark.parametrize(("mesh", "changes"), MESHES)
def test_a_mesh_gives_the_tokens_of_one_device(params, key, eight_devices, mesh, changes):
    """Five prompts are filled up to the parts of the batch; windows need not divide the mesh."""
    options = changed(NOISY, **changes)
    layout = make_layout(MeshConfig(**mesh), eight_devices)
    placed = jax.device_put(params, layout.replicated)
    state = sample(placed, CONFIG, PROMPTS, options, key, layout=layout)
    assert state.canvas.shape[0] == -(-5 // layout.batch_shards) * layout.batch_shards
    assert state.canvas.is_fully_replicated
    want = sample(params, CONFIG, PROMPTS, options, key)
    np.testing.assert_array_equal(state.canvas[:5], want.canvas)
    np.testing.assert_array_equal(state.committed_at[:5], want.committed_at)
    if options.trace:
        np.testing.assert_array_equal(state.trace.frames[:, :5], want.trace.frames)
    for row in np.asarray(state.canvas)[5:]:
        assert response_tokens(row[state.region.start :], options) == []


# --- watching, gaps, growth: the model itself in the loop ---


@pytest.mark.parametrize("changes", [{}, {"cache": "dual"}, {"cache": "prefix", "limit": 24}])
@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_stream_ends_where_a_sample_does(params, key, changes, every):
    options = changed(NOISY, trace=True, **changes)
    want = sample(params, CONFIG, PROMPTS, options, key)
    seen, calls = None, []
    for state in stream(params, CONFIG, PROMPTS, options, key, every=every):
        seen = jax.device_get((state.canvas, state.committed_at, state.trace))
        calls.append(int(state.step))
    assert calls == [*range(every, int(want.step), every), int(want.step)]
    jax.tree.map(np.testing.assert_array_equal, seen, (want.canvas, want.committed_at, want.trace))


def test_gaps_of_any_shape_are_filled_alone_as_together(params, key):
    """Text around the gaps stays; what a row gets does not depend on its neighbours' padding."""
    mask = IDS.mask
    rows = [
        [1, 2, 3, mask, mask, 4, 5, mask, 6],
        [mask, 7],
        [8, 9, 10, 11, 12, 13, 14, 15, 16, mask, mask, mask, 17, 18, 19, 20, 21, 22],
    ]
    options = changed(OPTIONS, length=6, block_length=6, steps=6)
    together = list(generate(params, CONFIG, rows, options, key, batch_size=3))
    for number, (row, answer) in enumerate(zip(rows, together, strict=True)):
        first = row.index(mask)
        region = np.asarray(row[first:])
        given = region != mask
        got = answer.response[: len(region)]
        np.testing.assert_array_equal(got[given], region[given])
        np.testing.assert_array_equal(answer.given[: len(region)], given)
        assert not (got == mask).any()
        assert (answer.response[len(region) :] == IDS.pad).all()
        (alone,) = generate(params, CONFIG, [row], options, key, batch_size=1, first_row=number)
        np.testing.assert_array_equal(alone.response[: len(region)], got)
        assert alone.tokens == answer.tokens


@pytest.mark.slow
def test_lists_of_both_kinds_and_all_lengths(params, key):
    """Prompts with gaps among prompts without; rows that fit the model only apart."""
    mask = IDS.mask
    rows = [[1] * 50, [2] * 3, [3, mask], [4] + [mask] * 45, [5] * 40 + [mask], [6], [7, mask, 8]]
    answers = list(generate(params, CONFIG, rows, OPTIONS, key, batch_size=4))
    assert len(answers) == len(rows)
    for number, row in enumerate(rows):
        (alone,) = generate(params, CONFIG, [row], OPTIONS, key, batch_size=1, first_row=number)
        assert answers[number].tokens == alone.tokens


def test_a_text_grows_until_it_is_closed(golden, key):
    """The golden model never closes its text: it grows to the limit, as a longer canvas would not.

    Its second block is appended after the first is over: until then nothing of it is attended to,
    so that the first block is that of a canvas of one block.
    """
    params, config, arrays = golden
    prompts = arrays["gen_block_prompt"].tolist()
    short = golden_options(steps=4, length=8, block_length=8)
    grown = changed(short, limit=32)
    state = sample(params, config, prompts, grown, key)
    assert state.step == 16
    want = sample(params, config, prompts, short, key)
    np.testing.assert_array_equal(state.canvas[:, :16], want.canvas)
    # The rest is decoded from there: each block like one masked block behind a longer prompt.
    for block in range(1, 4):
        longer = np.asarray(state.canvas)[:, 1 : 8 + 8 * block].tolist()
        want = sample(params, config, longer, short, key)
        got = state.canvas[:, 8 + 8 * block : 16 + 8 * block]
        np.testing.assert_array_equal(got, want.canvas[:, -8:])


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_prompt_that_is_none_gets_an_empty_answer(params, key, batch_size):
    """And the others what they get beside any other prompt."""
    whole = list(generate(params, CONFIG, PROMPTS, NOISY, key, batch_size=batch_size))
    some = [prompt if number in (1, 3) else None for number, prompt in enumerate(PROMPTS)]
    found = list(generate(params, CONFIG, some, NOISY, key, batch_size=batch_size))
    for number, (answer, other) in enumerate(zip(found, whole, strict=True)):
        if number in (1, 3):
            assert answer.tokens == other.tokens
        else:
            assert (answer.tokens, len(answer.response), answer.own_calls) == ([], 0, 0)
