"""The denoiser against the published code's numbers and against its own slow forms."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jax_mdlm import model
from jax_mdlm.config import MeshConfig, ModelConfig
from jax_mdlm.containers import Params
from jax_mdlm.model import layers, table
from jax_mdlm.sharding import make_layout
from tests.reference.transformer import forward

GOLDEN = Path(__file__).parent.parent / "data" / "llada_random_mha"
SMALL = ModelConfig(
    vocab_size=40,
    embed=32,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp=48,
    max_length=32,
    compute_dtype="float32",
    remat="none",
)


@pytest.fixture(scope="module")
def golden() -> tuple[Params, ModelConfig, dict[str, np.ndarray]]:
    settings = json.loads((GOLDEN / "config.json").read_text())
    config = ModelConfig(
        vocab_size=settings["vocab_size"],
        embed=settings["d_model"],
        layers=settings["n_layers"],
        heads=settings["n_heads"],
        kv_heads=settings["n_kv_heads"],
        head_dim=settings["d_model"] // settings["n_heads"],
        mlp=settings["mlp_hidden_size"],
        max_length=settings["max_sequence_length"],
        compute_dtype="float32",
        remat="none",
    )
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted(GOLDEN.glob("*.safetensors")):
        tensors |= load_file(shard)
    values = {}
    for row in table.ROWS:
        names = [row.torch_name.format(layer=i) for i in range(config.layers)]
        found = [tensors[n].T if row.num_inputs else tensors[n] for n in dict.fromkeys(names)]
        stacked = np.stack(found) if "layers" in row.axes else found[0]
        values[row.path] = jnp.asarray(stacked.reshape(table.shape(row, config)))
    return table.tree(values), config, dict(np.load(GOLDEN / "golden.npz"))


@pytest.mark.parametrize("mesh", [None, MeshConfig(data=2, fsdp=2, tensor=2)], ids=["one", "2x2x2"])
def test_logits_are_those_of_the_published_code(golden, mesh) -> None:
    params, config, arrays = golden
    layout = None if mesh is None else make_layout(mesh)
    run = jax.jit(model.apply, static_argnames=("config", "layout"))
    ids = np.concatenate([arrays["fwd_ids"], arrays["fwd_ids"][:1]])  # 4 rows: 4 batch shards
    logits = run(params, ids, config, layout=layout)
    np.testing.assert_allclose(logits[:3], arrays["fwd_logits"], atol=2e-5)
    valid = arrays["pad_mask"].astype(bool)
    ids = np.concatenate([arrays["pad_ids"], arrays["pad_ids"][:1]])
    logits = run(params, ids, config, jnp.asarray(np.concatenate([valid, valid[:1]])), layout)
    np.testing.assert_allclose(logits[:3][valid], arrays["pad_logits"][valid], atol=2e-5)


def test_grouped_heads_and_padding_against_a_slow_reference() -> None:
    params = model.init(jax.random.key(0), SMALL)
    tokens = np.random.default_rng(0).integers(0, SMALL.vocab_size, (2, 11))
    valid = np.ones((2, 11), bool)
    valid[1, :4] = False
    expected = forward(jax.tree.map(np.asarray, params), tokens, valid, SMALL)
    logits = model.apply(params, jnp.asarray(tokens), SMALL, jnp.asarray(valid))
    np.testing.assert_allclose(logits[0], expected[0], atol=2e-5)
    np.testing.assert_allclose(logits[1, 4:], expected[1, 4:], atol=2e-5)


def test_left_padding_changes_nothing_but_rounding() -> None:
    params = model.init(jax.random.key(0), SMALL)
    tokens = jax.random.randint(jax.random.key(1), (1, 9), 0, SMALL.vocab_size)
    alone = model.apply(params, tokens, SMALL)
    padded = jnp.pad(tokens, ((0, 0), (5, 0)))
    valid = jnp.arange(14)[None] >= 5
    np.testing.assert_allclose(model.apply(params, padded, SMALL, valid)[:, 5:], alone, atol=1e-5)


def test_slots_that_are_not_valid_cannot_be_seen() -> None:
    params = model.init(jax.random.key(0), SMALL)
    tokens = jnp.arange(12)[None]
    valid = jnp.arange(12)[None] < 8
    other = tokens.at[:, 8:].set(3)
    a, b = (model.apply(params, x, SMALL, valid)[:, :8] for x in (tokens, other))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_gradient(remat: str) -> None:
    params = model.init(jax.random.key(0), SMALL)
    tokens = jnp.arange(12)[None]

    def gradient(config: ModelConfig) -> Params:
        return jax.jit(jax.grad(lambda p: model.apply(p, tokens, config).var()))(params)

    plain, again = gradient(SMALL), gradient(dataclasses.replace(SMALL, remat=remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8), plain, again)


def test_bfloat16_stays_near_float32() -> None:
    """2^-8 relative rounding in each of some 20 steps of 3 layers: below 4% of the norm."""
    params = model.init(jax.random.key(0), SMALL)
    tokens = jnp.arange(30).reshape(2, 15)
    exact = model.apply(params, tokens, SMALL)
    rough = model.apply(params, tokens, dataclasses.replace(SMALL, compute_dtype="bfloat16"))
    assert rough.dtype == jnp.float32
    assert jnp.linalg.norm(rough - exact) < 0.04 * jnp.linalg.norm(exact)


def test_norm_is_cast_before_the_weight() -> None:
    x = jax.random.normal(jax.random.key(0), (4, 64)).astype(jnp.bfloat16)
    weight = (1 + 0.1 * jax.random.normal(jax.random.key(1), (64,))).astype(jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    unit = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5)
    expected = jnp.asarray(unit, jnp.bfloat16) * weight
    np.testing.assert_array_equal(layers.rms_norm(x, weight, eps=1e-5), expected)


def test_a_canvas_beyond_the_model_is_refused() -> None:
    params = model.init(jax.random.key(0), SMALL)
    with pytest.raises(
        ValueError, match="canvas must have at most model.max_length=32 slots, got 33; shorten it"
    ):
        model.apply(params, jnp.zeros((1, 33), jnp.int32), SMALL)
