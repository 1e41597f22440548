"""The denoiser against slow forms; the published numbers are met in `tests/conversion`."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jax_mdlm import model
from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import Params
from jax_mdlm.model import layers
from tests.reference.transformer import forward

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


def test_bfloat16_errs_no_more_than_its_rounding(golden) -> None:
    """Against float64. The bound is the error of the same float64 reference that rounds to
    bfloat16 exactly where the published code does: ours may be a quarter larger, not more."""
    params, config, arrays = golden
    tokens, valid = arrays["pad_ids"], arrays["pad_mask"].astype(bool)
    plain = jax.tree.map(np.asarray, params)

    def to_bfloat16(x: np.ndarray) -> np.ndarray:
        return x.astype(ml_dtypes.bfloat16).astype(np.float64)

    exact = forward(plain, tokens, valid, config)[valid]
    rounded = forward(plain, tokens, valid, config, to_bfloat16)[valid]
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    config = dataclasses.replace(config, compute_dtype="bfloat16")
    ours = np.asarray(model.apply(narrow, tokens, config, jnp.asarray(valid)), np.float64)[valid]
    bound, error = (np.linalg.norm(x - exact) / np.linalg.norm(exact) for x in (rounded, ours))
    print(f"relative error {error:.5f}, of the rounding alone {bound:.5f}")
    assert 0 < error < 1.25 * bound
    assert np.abs(ours - exact).max() < 1.5 * np.abs(rounded - exact).max()


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
