"""Meshes, rules and their errors."""

import jax
import pytest
from jax.sharding import PartitionSpec

from jax_mdlm.config import ConfigError, MeshConfig
from jax_mdlm.sharding import constrain, make_layout


def test_the_rest_of_the_devices_goes_to_minus_one() -> None:
    layout = make_layout(MeshConfig(data=2, fsdp=-1, tensor=2))
    assert dict(layout.mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2, "context": 1}
    assert layout.batch_shards == 4
    assert layout.spec(("batch", "length", None)) == PartitionSpec(("data", "fsdp"), None, None)
    assert layout.spec(("embed", "vocab")) == PartitionSpec("fsdp", "tensor")


def test_a_mesh_that_does_not_fit_the_devices_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"mesh \(data=1, fsdp=3, tensor=1, context=1\) must have as many places as there are "
        r"devices, 8; set one axis to -1",
    ):
        make_layout(MeshConfig(fsdp=3))


def test_rules_can_be_replaced() -> None:
    layout = make_layout(MeshConfig(fsdp=4, tensor=2, rules=("embed=", "vocab=fsdp+tensor")))
    assert layout.spec(("embed", "vocab")) == PartitionSpec(None, ("fsdp", "tensor"))
    with pytest.raises(ConfigError, match=r"mesh.rules entry 'embd=fsdp' must read logical=mesh_a"):
        make_layout(MeshConfig(rules=("embd=fsdp",)))
    with pytest.raises(ConfigError, match=r"mesh.rules entry 'embed=rows' must read"):
        make_layout(MeshConfig(rules=("embed=rows",)))


def test_an_axis_cannot_be_used_twice() -> None:
    layout = make_layout(MeshConfig(fsdp=8))
    with pytest.raises(ConfigError, match=r"use a mesh axis twice .*change mesh.rules"):
        layout.spec(("batch", "embed"))


def test_constraints_need_a_layout() -> None:
    x = jax.numpy.ones((8, 4))
    assert constrain(None, x, "batch", None) is x
    layout = make_layout(MeshConfig(fsdp=8))
    placed = jax.jit(lambda x: constrain(layout, x, "batch", None))(x)
    assert placed.sharding.spec == PartitionSpec("fsdp")
