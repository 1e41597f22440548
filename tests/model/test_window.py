"""Windows of the network against the whole of it; caches; the forms that sampling reads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mdlm import model
from jax_mdlm.config import MeshConfig, ModelConfig
from jax_mdlm.model import table
from jax_mdlm.model.weights import is_weight
from jax_mdlm.sharding import make_layout
from tests.reference.quantized import rounded
from tests.sampling.standin import random_params

CONFIG = ModelConfig(
    vocab_size=64,
    embed=32,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp=48,
    max_length=64,
    compute_dtype="float32",
    remat="none",
)
WIDTH = 6


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 64, (2, 24)), jnp.int32)
    return tokens, jnp.ones((2, 24), bool).at[0, :3].set(False)


def form(params, name: str):
    return {"stacked": lambda p: p, "unstacked": model.unstack}[name](params)


@pytest.mark.parametrize("name", ["stacked", "unstacked"])
def test_a_window_is_a_part_of_the_whole(params, rows, name):
    tokens, valid = rows
    want = model.encode(params, tokens, CONFIG, valid)
    run = jax.jit(
        lambda params, start: model.encode_window(
            params, tokens, CONFIG, model.Window(start, WIDTH), valid
        )
    )
    for start in (3, 10, 18):
        got, cache = run(form(params, name), start)
        np.testing.assert_allclose(got, want[:, start : start + WIDTH], atol=2e-5)
        assert cache is None


@pytest.mark.parametrize("name", ["stacked", "unstacked"])
@pytest.mark.parametrize("first", [10, 8, 0], ids=["dual", "prefix", "wider than needed"])
def test_a_fresh_cache_changes_nothing(params, rows, name, first):
    """All other slots come from the cache of the same canvas: the result is the exact one."""
    tokens, valid = rows
    params = form(params, name)
    width = WIDTH if first == 10 else 24 - first
    want, cache = model.encode_window(
        params, tokens, CONFIG, model.Window(10, WIDTH), valid, keep=True
    )
    got, _ = model.encode_window(
        params,
        tokens[:, first : first + width],
        CONFIG,
        model.Window(10, WIDTH, first),
        valid,
        past=cache,
    )
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("first", [10, 8], ids=["dual", "prefix"])
def test_a_cache_is_as_old_as_it_is(params, rows, first):
    """Slots before the block count as they were when the cache was made, whatever they are now."""
    tokens, valid = rows
    window = model.Window(10, WIDTH)
    _, cache = model.encode_window(params, tokens, CONFIG, window, valid, keep=True)
    changed = tokens.at[:, 4:10].add(1).at[:, 12].add(1) % 64
    width = WIDTH if first == 10 else 24 - first
    later = model.Window(10, WIDTH, first)

    def run(canvas):
        part = canvas[:, first : first + width]
        return model.encode_window(params, part, CONFIG, later, valid, past=cache)[0]

    # Slots 8 and 9 run in the wider window, but their own keys are the cache's all the same.
    only_inside = tokens.at[:, 12].set(changed[:, 12])
    np.testing.assert_array_equal(run(changed), run(only_inside))
    exact, _ = model.encode_window(params, changed, CONFIG, window, valid)
    assert np.abs(run(changed) - exact).max() > 1e-3, "the stale slots matter"


def test_a_prefix_cache_sees_later_slots_and_a_dual_cache_does_not(params, rows):
    tokens, valid = rows
    _, cache = model.encode_window(
        params, tokens, CONFIG, model.Window(10, WIDTH), valid, keep=True
    )
    window = model.Window(10, WIDTH, 10)

    def run(canvas, width):
        part = canvas[:, 10 : 10 + width]
        return model.encode_window(params, part, CONFIG, window, valid, past=cache)[0]

    changed = tokens.at[:, 20].add(1) % 64
    np.testing.assert_array_equal(run(changed, WIDTH), run(tokens, WIDTH))
    assert np.abs(run(changed, 14) - run(tokens, 14)).max() > 1e-3


# --- the forms that sampling reads ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prepared_parameters_give_the_same_hidden_states(params, rows, dtype):
    tokens, valid = rows
    config = dataclasses.replace(CONFIG, compute_dtype=dtype)
    prepared = model.prepare(params, config)
    assert isinstance(prepared["blocks"], list), "a CPU reads layers apart"
    assert {leaf.dtype for leaf in jax.tree.leaves(prepared)} == {jnp.dtype(dtype)}
    assert prepared["blocks"][0]["q_proj"].shape == (32, 32)
    assert prepared["blocks"][0]["attn_out"].shape == (32, 32)
    want, _ = model.encode_window(params, tokens, config, model.Window(10, WIDTH), valid)
    got, _ = model.encode_window(prepared, tokens, config, model.Window(10, WIDTH), valid)
    error = jnp.linalg.norm(got.astype("float32") - want.astype("float32"))
    # In bfloat16 the two programs round at other places.
    bound = 1e-6 if dtype == "float32" else 2e-2
    assert error <= bound * jnp.linalg.norm(want.astype("float32"))


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_it_computes_with_the_values_it_stands_for(params, rows, weights):
    """Against the same network with the rounded weights in full precision."""
    tokens, valid = rows
    stood_for = rounded(params, CONFIG, weights, group=16)
    want = model.apply(stood_for, tokens, CONFIG, valid)
    exact = model.apply(params, tokens, CONFIG, valid)
    assert np.abs(want - exact).max() > 1e-3, "they are not exact"
    prepared = model.prepare(params, CONFIG, weights, 16)
    for row in table.rows(CONFIG):
        stacked = [layer[row.path[-1]] for layer in prepared["blocks"]] if row.stacked else None
        found = stacked or [table.at(prepared, row.path)]
        kept = [leaf.merged("float32") if is_weight(leaf) else leaf for leaf in found]
        np.testing.assert_allclose(
            np.reshape(kept, table.shape(row, CONFIG)), table.at(stood_for, row.path), atol=1e-6
        )
    window, _ = model.encode_window(prepared, tokens, CONFIG, model.Window(10, WIDTH), valid)
    got = model.project(window, model.head(prepared))
    np.testing.assert_allclose(got, want[:, 10 : 10 + WIDTH], atol=5e-5)


@pytest.mark.parametrize("weights", ["full", "int8", "int4"])
def test_abstract_parameters_describe_prepared_ones(params, eight_devices, weights):
    """What is compiled for a machine elsewhere is what the machine will hold."""
    layout = make_layout(MeshConfig(data=1, fsdp=2, tensor=2, context=2), eight_devices)
    placed = jax.device_put(params, layout.replicated)
    abstract = model.abstract_prepared(CONFIG, model.Form(weights), layout)
    made = model.prepare(placed, CONFIG, weights)
    assert len(made.pop("blocks")) == CONFIG.layers
    blocks = abstract.pop("blocks")
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract
    )
    q_proj = blocks["q_proj"] if weights == "full" else blocks["q_proj"].values
    assert q_proj.shape == (3, 16 if weights == "int4" else 32, 32)
    assert q_proj.sharding.spec == layout.spec(("layers", "embed", "heads"))
