"""The schedule by its formula, the decay row by row, AdamW against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_mdlm import command, model
from jax_mdlm.config import (
    Config,
    ConfigError,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from jax_mdlm.containers import SpecialIds
from jax_mdlm.sharding import make_layout
from jax_mdlm.training.optimizer import learning_rate, make_optimizer
from jax_mdlm.training.state import create_state

IDS = SpecialIds(mask=1, slack=2, pad=0, eos=0, terminator=3)
CONFIG = ModelConfig(
    vocab_size=12, embed=8, layers=2, heads=2, kv_heads=2, head_dim=4, mlp=12, max_length=8
)


def of(settings: OptimizerConfig, steps: int) -> Config:
    """A run of so many steps with these settings."""
    return Config(model=CONFIG, optimizer=settings, train=TrainConfig(steps=steps))


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
    optimizer = make_optimizer(of(settings, 100), IDS)
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
    state = make_optimizer(of(settings, 10), IDS).init(model.init(jax.random.key(0), CONFIG))
    adam = next(s for s in state if isinstance(s, optax.ScaleByAdamState))
    assert {leaf.dtype for leaf in jax.tree.leaves(adam.mu)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(adam.nu)} == {jnp.dtype("float32")}


def test_no_clipping_at_zero() -> None:
    settings = OptimizerConfig(clip_norm=0.0, warmup_steps=0, weight_decay=0.0)
    optimizer = make_optimizer(of(settings, 10), IDS)
    params = {"x": jnp.ones(3)}
    assert isinstance(optimizer.init(params)[0], optax.EmptyState)


WIDE = dataclasses.replace(CONFIG, vocab_size=256, embed=128, heads=1, kv_heads=1, head_dim=128)
WIDE = dataclasses.replace(WIDE, mlp=256)


def one_update(name: str, layout=None):
    """The first update of a model whose matrices are large enough to be factored."""
    settings = OptimizerConfig(
        name=name, learning_rate=1.0, warmup_steps=0, decay_share=0.0, weight_decay=0.0
    )
    config = Config(model=WIDE, optimizer=settings)
    layout = layout or make_layout(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(of(settings, 100), IDS)
    state = create_state(config, optimizer, layout)
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), state.params)
    updates, opt_state = jax.jit(optimizer.update)(grads, state.opt_state, state.params)
    return grads, updates, opt_state, state.opt_state


def size(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def test_adafactor_against_numpy_and_its_small_state() -> None:
    grads, updates, _, state = one_update("adafactor")
    assert size(state) < 0.05 * size(grads)  # but for the norms
    grad = np.asarray(grads["head"], np.float64)
    grad *= 1.0 / np.sqrt(
        sum(np.sum(np.asarray(g, np.float64) ** 2) for g in jax.tree.leaves(grads))
    )
    square = grad**2
    rows, columns = square.mean(1, keepdims=True), square.mean(0, keepdims=True)
    expected = grad / np.sqrt(rows * columns / square.mean())
    expected /= max(1.0, np.sqrt(np.mean(expected**2)))  # clipped to an RMS of 1
    np.testing.assert_allclose(updates["head"], -expected, rtol=1e-3, atol=1e-5)


def test_muon_makes_matrices_orthogonal_and_leaves_the_rest_to_adam() -> None:
    _, updates, _, _ = one_update("muon")
    for name, num_inputs in (("q_proj", 1), ("attn_out", 2), ("ff_proj", 1), ("ff_out", 1)):
        for layer in np.asarray(updates["blocks"][name]):
            matrix = layer.reshape(int(np.prod(layer.shape[:num_inputs])), -1)
            values = np.linalg.svd(matrix, compute_uv=False) / (0.2 * np.sqrt(max(matrix.shape)))
            # Five Newton-Schulz steps bring singular values near 1, not to it.
            assert 0.5 < np.median(values) < 1.3, name
            assert values.max() < 1.3, name
            assert np.sqrt(np.mean(matrix**2)) == pytest.approx(0.2, rel=0.3)
    _, adam, _, _ = one_update("adamw")
    for name in ("wte", "head", "ln_f"):
        np.testing.assert_allclose(updates[name], adam[name], rtol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "adamw",
        pytest.param("adafactor", marks=pytest.mark.slow),
        pytest.param("muon", marks=pytest.mark.slow),
    ],
)
def test_eight_devices_make_the_same_update(name: str, eight_devices) -> None:
    _, alone, state, _ = one_update(name)
    layout = make_layout(MeshConfig(fsdp=4, tensor=1, data=2))
    _, spread, placed, _ = one_update(name, layout)
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(spread)):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)
    assert jax.tree.structure(state) == jax.tree.structure(placed)


def test_an_optimizer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be one of adamw, adafactor, muon, got 'sgd'"):
        command.apply_overrides(Config(), ["--config.optimizer.name=sgd"])
