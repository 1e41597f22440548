"""Meshes, rules and their errors."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jax_mdlm.config import ConfigError, MeshConfig
from jax_mdlm.sharding import Share, constrain, make_layout


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


@pytest.mark.parametrize(
    ("axes", "held", "parts"),
    [
        ({"fsdp": 8}, (0, 1), (0, 1)),
        ({"fsdp": 8}, (6, 7), (6, 7)),
        ({"data": 2, "fsdp": 4}, (4, 5), (4, 5)),
        ({"fsdp": 2, "tensor": 4}, (2, 3), (0,)),  # two processes hold the same rows
        ({"fsdp": 1, "tensor": 8}, (2, 3), (0,)),
        ({"fsdp": 2, "context": 4}, (4, 5), (1,)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 3, 4, 5), (1, 2)),
        ({"fsdp": 8}, (1, 3, 6), (1, 3, 6)),  # a square of a ring
    ],
)
def test_a_share_is_what_the_devices_hold(
    axes: dict[str, int], held: tuple[int, ...], parts: tuple[int, ...]
) -> None:
    layout = make_layout(MeshConfig(**axes))
    devices = [layout.mesh.devices.flat[place] for place in held]
    share = layout.share(devices)
    assert share == Share(parts, layout.batch_shards)
    # The oracle: what JAX puts onto these devices.
    rows = jax.device_put(np.arange(16), layout.rows)
    found = {int(row) for s in rows.addressable_shards if s.device in devices for row in s.data}
    assert share.rows(16).tolist() == sorted(found)


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"fsdp": 1, "tensor": 8}, {"data": 2, "tensor": 2}])
def test_rows_are_placed_in_their_order(axes: dict[str, int]) -> None:
    layout = make_layout(MeshConfig(**{"fsdp": -1} | axes))
    batch = {"a": np.arange(32).reshape(16, 2), "b": np.arange(16)}
    placed = layout.place_rows(batch)
    for name, values in batch.items():
        assert placed[name].sharding == layout.rows
        np.testing.assert_array_equal(placed[name], values)


class Chip:
    """As much of a device as the making of a mesh looks at."""

    device_kind, platform, process_index = "cpu", "cpu", 0

    def __init__(self, number: int, slice_index: int) -> None:
        self.id, self.slice_index = number, slice_index


def test_only_data_crosses_slices() -> None:
    chips = [Chip(number, number // 4) for number in range(8)]
    layout = make_layout(MeshConfig(data=2, fsdp=2, tensor=2), chips[::-1])
    at = np.vectorize(lambda chip: chip.slice_index)(layout.mesh.devices)
    assert at.shape == (2, 2, 2, 1)
    assert {*at[0].flat} == {0}
    assert {*at[1].flat} == {1}
    four = make_layout(MeshConfig(data=4, fsdp=2), chips).mesh.devices
    at = np.vectorize(lambda chip: chip.slice_index)(four)
    np.testing.assert_array_equal(at[:, 0, 0, 0], [0, 0, 1, 1])


def test_data_must_be_cut_over_the_slices() -> None:
    chips = [Chip(number, number // 4) for number in range(8)]
    with pytest.raises(ConfigError, match="a multiple of the 2 slices, got 1; set mesh.data=2"):
        make_layout(MeshConfig(), chips)
