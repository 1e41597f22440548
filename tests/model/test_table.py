"""The parameter table against the published facts."""

import jax
import pytest

from jax_mdlm import model
from jax_mdlm.config import ConfigError, MeshConfig, ModelConfig
from jax_mdlm.model import table
from jax_mdlm.sharding import Layout, make_layout


def test_counts_of_the_published_8b_model() -> None:
    config = ModelConfig()
    assert table.num_parameters(config) == 8_015_581_184
    tensors = sum(config.layers if "layers" in row.axes else 1 for row in table.rows(config))
    assert tensors == 291


def test_init_has_the_shapes_of_the_table() -> None:
    config = ModelConfig(
        vocab_size=50, embed=24, layers=3, heads=4, kv_heads=2, head_dim=6, mlp=40, max_length=16
    )
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), config))
    expected = table.tree({row.path: table.shape(row, config) for row in table.rows(config)})
    assert jax.tree.map(lambda x: x.shape, params) == expected


def test_init_scales() -> None:
    """Matrices have variance 1 / inputs; those that write to the stream 1 / (2 layers) of it."""
    config = ModelConfig(
        vocab_size=512, embed=64, layers=8, heads=4, kv_heads=4, head_dim=16, mlp=128, max_length=16
    )
    params = model.init(jax.random.key(1), config)
    assert params["blocks"]["q_proj"].std() == pytest.approx(64**-0.5, rel=0.05)
    assert params["blocks"]["ff_out"].std() == pytest.approx((128 * 16) ** -0.5, rel=0.05)
    assert params["blocks"]["attn_out"].std() == pytest.approx((64 * 16) ** -0.5, rel=0.05)
    assert params["wte"].std() == pytest.approx(64**-0.5, rel=0.05)
    assert (params["blocks"]["ff_norm"] == 1).all()
    layers = params["blocks"]["q_proj"]
    assert not (layers[0] == layers[1]).any(), "layers draw from different keys"


def test_grouped_heads_that_the_tensor_axis_does_not_divide_are_refused(
    eight_devices: list[jax.Device],
) -> None:
    layout = make_layout(MeshConfig(fsdp=1, tensor=8), eight_devices)
    row = next(row for row in table.rows(ModelConfig()) if row.path == ("blocks", "k_proj"))
    config = ModelConfig(kv_heads=4)
    with pytest.raises(
        ConfigError,
        match="model has 4 kv_heads, which mesh axis tensor=8 does not divide; "
        "choose a smaller mesh.tensor",
    ):
        layout.check_divides("model", row.axes, table.shape(row, config))


def test_every_matrix_is_sharded(eight_devices: list[jax.Device]) -> None:
    layout: Layout = make_layout(MeshConfig(fsdp=4, tensor=2), eight_devices)
    for row in table.rows(ModelConfig()):
        parts = [name for name in layout.spec(row.axes) if name is not None]
        assert "fsdp" in parts
        if sum(axis != "layers" for axis in row.axes) > 1:
            assert "tensor" in parts
