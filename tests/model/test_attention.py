"""The splash kernel, interpreted, against XLA's products: values, gradients, padding, meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mdlm.config import MeshConfig
from jax_mdlm.model.attention import attention, attention_forward
from jax_mdlm.sharding import make_layout


def tensors(rows, length, slots, heads, kv_heads, dtype=np.float32, head_dim=128):
    rng = np.random.default_rng(0)

    def draw(slots, heads):
        return jnp.asarray(rng.normal(size=(rows, slots, heads, head_dim)), dtype)

    valid = np.arange(slots) < rng.integers(1, slots + 1, (rows, 1))
    return draw(length, heads), draw(slots, kv_heads), draw(slots, kv_heads), valid


def value_and_slopes(q, k, v, valid, **how):
    def total(q, k, v):
        mixed = attention(q, k, v, valid, **how)
        return jnp.sum(jnp.sin(mixed.astype(jnp.float32))), mixed

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    slopes, mixed = gradient(q, k, v)
    return mixed, *slopes


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (2, 1)])
@pytest.mark.parametrize("padded", [True, False])
def test_the_kernel_equals_the_products(heads, kv_heads, padded):
    q, k, v, valid = tensors(2, 128, 256, heads, kv_heads)
    valid = valid if padded else None
    expected = value_and_slopes(q, k, v, valid, kind="xla")
    found = value_and_slopes(q, k, v, valid, kind="splash")
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def test_the_kernel_in_bfloat16():
    q, k, v, valid = tensors(1, 128, 128, 2, 2, jnp.bfloat16)
    exact = value_and_slopes(*(x.astype(np.float32) for x in (q, k, v)), valid, kind="xla")
    for kind in ("splash", "xla"):
        for one, other in zip(value_and_slopes(q, k, v, valid, kind=kind), exact):
            assert one.dtype == jnp.bfloat16
            error = np.linalg.norm(np.asarray(one, np.float32) - other) / np.linalg.norm(other)
            assert error < 1e-2, kind


@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(fsdp=8),
        MeshConfig(fsdp=2, tensor=2, context=2),
        MeshConfig(fsdp=1, tensor=2, context=4),
    ],
    ids=["fsdp8", "2x2x2", "context4"],
)
def test_the_kernel_on_a_mesh(mesh):
    layout = make_layout(mesh)
    q, k, v, valid = tensors(8, 512, 512, 4, 2)
    expected = value_and_slopes(q, k, v, valid, kind="xla")
    found = value_and_slopes(q, k, v, valid, kind="splash", layout=layout)
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, rtol=5e-4, atol=5e-5)


def test_auto_is_the_products_where_there_is_no_tpu():
    q, k, v, valid = tensors(1, 128, 128, 2, 2)
    text = str(jax.make_jaxpr(lambda *x: attention(*x))(q, k, v, valid))
    assert "pallas_call" not in text
    text = str(jax.make_jaxpr(lambda *x: attention(*x, kind="splash"))(q, k, v, valid))
    assert "pallas_call" in text


@pytest.mark.parametrize(("length", "head_dim"), [(100, 128), (128, 64)])
def test_shapes_that_the_kernel_does_not_take(length, head_dim):
    q, k, v, valid = tensors(1, length, length, 2, 2, head_dim=head_dim)
    with pytest.raises(ValueError, match=r"in multiples of 128, got .* set model.attention=xla"):
        attention(q, k, v, valid, kind="splash")
    assert attention(q, k, v, valid).shape == q.shape  # auto falls back


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_form_without_a_gradient(kv_heads):
    q, k, v, valid = tensors(2, 7, 20, 4, kv_heads, head_dim=16)
    for mask in (valid, None):
        np.testing.assert_allclose(
            attention_forward(q, k, v, mask), attention(q, k, v, mask), rtol=1e-5, atol=1e-6
        )
