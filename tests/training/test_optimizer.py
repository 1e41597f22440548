"""The schedule by its formula, the decay row by row, AdamW against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_mdlm import model
from jax_mdlm.config import ModelConfig, OptimizerConfig
from jax_mdlm.containers import SpecialIds
from jax_mdlm.training.optimizer import learning_rate, make_optimizer

IDS = SpecialIds(mask=1, slack=2, pad=0, eos=0, terminator=3)
CONFIG = ModelConfig(
    vocab_size=12, embed=8, layers=2, heads=2, kv_heads=2, head_dim=4, mlp=12, max_length=8
)


def test_lladas_schedule() -> None:
    """Warm-up 50, constant, the last 10% linear to a tenth."""
    rate = learning_rate(OptimizerConfig(), 1000)
    assert rate(0) == 0
    assert rate(25) == pytest.approx(1.25e-5)
    assert rate(50) == rate(899) == pytest.approx(2.5e-5)
    assert rate(950) == pytest.approx((2.5e-5 + 2.5e-6) / 2, rel=1e-3)
    assert rate(1000) == rate(2000) == pytest.approx(2.5e-6)


def test_a_run_shorter_than_its_warmup() -> None:
    rate = learning_rate(OptimizerConfig(warmup_steps=50), 10)
    assert 0 < rate(5) <= 2.5e-5


def test_adamw_against_numpy_and_no_decay_where_none_belongs() -> None:
    settings = OptimizerConfig(
        learning_rate=0.1, warmup_steps=0, decay_share=0.0, weight_decay=0.5, clip_norm=1.0
    )
    optimizer = make_optimizer(settings, 100, IDS)
    params = model.init(jax.random.key(0), CONFIG)
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), params)
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    updates, _ = optimizer.update(grads, optimizer.init(params), params)

    def expected(p: np.ndarray, g: np.ndarray, decay: np.ndarray) -> np.ndarray:
        g = g / norm
        return -0.1 * (g / (np.abs(g) + settings.eps) + 0.5 * decay * p)

    whole, none = np.ones(()), np.zeros(())
    row = np.ones((12, 1))
    row[IDS.slack] = 0
    for name, decay in (("wte", row), ("head", whole), ("ln_f", none)):
        want = expected(np.asarray(params[name]), np.asarray(grads[name]), decay)
        np.testing.assert_allclose(updates[name], want, rtol=2e-4, atol=1e-6)
    for name, decay in (("attn_norm", none), ("ff_norm", none), ("q_proj", whole)):
        p, g = (np.asarray(tree["blocks"][name]) for tree in (params, grads))
        np.testing.assert_allclose(
            updates["blocks"][name], expected(p, g, decay), rtol=2e-4, atol=1e-6
        )


def test_first_moment_in_bfloat16() -> None:
    settings = dataclasses.replace(OptimizerConfig(), moment_dtype="bfloat16")
    state = make_optimizer(settings, 10, IDS).init(model.init(jax.random.key(0), CONFIG))
    adam = next(s for s in state if isinstance(s, optax.ScaleByAdamState))
    assert {leaf.dtype for leaf in jax.tree.leaves(adam.mu)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(adam.nu)} == {jnp.dtype("float32")}


def test_no_clipping_at_zero() -> None:
    settings = OptimizerConfig(clip_norm=0.0, warmup_steps=0, weight_decay=0.0)
    optimizer = make_optimizer(settings, 10, IDS)
    params = {"x": jnp.ones(3)}
    assert isinstance(optimizer.init(params)[0], optax.EmptyState)
