"""Quantised matrices: their values, their product and its gradient, in every form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mdlm.model import quantized
from jax_mdlm.model.quantized import group_size, quantize_matrix, quantize_table
from tests.reference.quantized import nearest

SIZES = [(96, 1100), (64, 40)]  # more and fewer columns than a tile has
FORMS = {
    "int8": {"bits": 8},
    "int4": {"bits": 4, "group": 32},
    "packed": {"bits": 4, "group": 32, "packed": True},
    "packed whole": {"bits": 4, "packed": True},
}


def drawn(inputs: int, outputs: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (inputs, outputs))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_values_are_the_nearest(form: str, inputs: int, outputs: int) -> None:
    options = FORMS[form]
    weight = drawn(inputs, outputs).at[:, 3].set(0)  # a channel of zeros stays zeros
    got = quantize_matrix(weight, **options)
    most, size = 2 ** (options["bits"] - 1) - 1, options.get("group", inputs)
    groups = np.asarray(weight).reshape(inputs // size, size, outputs)
    want = nearest(groups, most, axis=1).reshape(inputs, outputs)
    np.testing.assert_allclose(got.merged("float32"), want, atol=1e-6)
    assert got.shape == (inputs, outputs)
    assert got.scale.shape == (inputs // size, outputs)
    assert got.values.dtype == {"int8": jnp.int8, "int4": jnp.int4}.get(form, jnp.uint8)
    assert np.isfinite(got.scale).all()
    stacked = quantize_matrix(jnp.stack([weight, 2 * weight]), **options)
    jax.tree.map(lambda one, two: np.testing.assert_array_equal(one, two[0]), got, stacked)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_product_and_gradient(
    form: str, inputs: int, outputs: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the product with the dequantised matrix; the same at once, as elsewhere."""
    weight = quantize_matrix(drawn(inputs, outputs), **FORMS[form])
    dense = weight.merged("float32")
    x = jax.random.normal(jax.random.key(1), (2, 5, inputs)).astype(dtype)
    aim = jax.random.normal(jax.random.key(2), (2, 5, outputs))

    def loss(x: jax.Array, product) -> jax.Array:
        return jnp.sum(aim * jnp.tanh(0.1 * product(x)))

    def exact(x: jax.Array) -> jax.Array:
        return x.astype("float32") @ dense

    for tile in (quantized._TILE, 10**9):
        monkeypatch.setattr(quantized, "_TILE", tile)
        got = weight.multiply(x)
        assert got.dtype == jnp.float32
        bound = 2e-5 if dtype == "float32" else 0.02
        np.testing.assert_allclose(got, exact(x), atol=bound * np.abs(exact(x)).max())
        slope, want = jax.grad(loss)(x, weight.multiply), jax.grad(loss)(x, exact)
        assert slope.dtype == dtype
        error = np.abs(slope.astype("float32") - want.astype("float32")).max()
        assert error <= bound * np.abs(want.astype("float32")).max()


def test_a_processor_without_bfloat16_multiplies_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = quantize_matrix(drawn(96, 1100), 8)
    for has, rows, dtype in ((False, 3, "f32"), (True, 4, "bf16")):
        monkeypatch.setattr(quantized, "_has_bfloat16", lambda has=has: has)
        x = jnp.ones((rows, 96), jnp.bfloat16)  # traces are kept by shape
        text = jax.jit(weight.multiply).lower(x).as_text()
        assert f"(tensor<{rows}x96x{dtype}>, tensor<96x512x{dtype}>)" in text


def test_rows_of_a_table() -> None:
    table = drawn(50, 24)
    got = quantize_table(table)
    want = nearest(np.asarray(table), 127, axis=-1)
    np.testing.assert_allclose(got.rows(jnp.asarray([[3, 49]])), want[None, [3, 49]], atol=1e-6)
    np.testing.assert_allclose(got.merged("float32"), want, atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "group", "size"),
    [(4096, 128, 128), (5634, 128, 18), (24, 128, 24), (9, 4, 3), (24, 0, 24), (12288, 1, 1)],
)
def test_groups_divide_the_inputs(inputs: int, group: int, size: int) -> None:
    assert group_size(inputs, group) == size


def test_an_odd_group_cannot_be_packed() -> None:
    assert quantize_matrix(drawn(9, 4), 4, 3, packed=True).values.dtype == jnp.int4
