"""Where arrays live: the mesh, and the rules that map logical axes to mesh axes.

Enters: `MeshConfig`. Leaves: a `Layout`, from which the commands take shardings of batch,
parameters and state, and the model its constraints on activations. The parameter table
(`model/table`) gives the logical axes.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jax_mdlm.config import ConfigError, MeshConfig

MESH_AXES = ("data", "fsdp", "tensor", "context")

# In activations "embed" is written None: sharding it would collide with the batch's fsdp axis.
RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("batch", ("data", "fsdp")),
    ("length", ("context",)),
    ("embed", ("fsdp",)),
    ("vocab", ("tensor",)),
    ("heads", ("tensor",)),
    ("kv_heads", ("tensor",)),
    ("mlp", ("tensor",)),
    ("layers", ()),
    ("head_dim", ()),
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and its rules; hashable, so that a jitted function may close over it."""

    mesh: Mesh
    rules: tuple[tuple[str, tuple[str, ...]], ...] = RULES

    def spec(self, axes: tuple[str | None, ...]) -> PartitionSpec:
        """The partition of an array with these logical axes; None and unused axes are whole."""
        table = dict(self.rules)
        entries = []
        for axis in axes:
            names = () if axis is None else table[axis]
            names = tuple(name for name in names if self.mesh.shape[name] > 1)
            entries.append(None if not names else names[0] if len(names) == 1 else names)
        used = [name for entry in entries for name in _names(entry)]
        if len(used) != len(set(used)):
            raise ConfigError(
                f"axes {axes} use a mesh axis twice ({PartitionSpec(*entries)}); change mesh.rules"
            )
        return PartitionSpec(*entries)

    def sharding(self, axes: tuple[str | None, ...]) -> NamedSharding:
        """The placement of an array with these logical axes."""
        return NamedSharding(self.mesh, self.spec(axes))

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Fixes the placement of an intermediate array inside `jit`."""
        return jax.lax.with_sharding_constraint(x, self.sharding(axes))

    @property
    def replicated(self) -> NamedSharding:
        """Whole on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def rows(self) -> NamedSharding:
        """Leading axis over the batch axes, the rest whole: fields of a `Batch`."""
        return self.sharding(("batch",))

    def place_rows(self, rows: Any) -> Any:
        """Puts this process's rows (a tree of NumPy arrays) onto its devices.

        The rows of all processes together are the whole batch.
        """
        # The copy is meant; over several processes JAX counts it as an implicit one.
        with jax.transfer_guard_host_to_device("allow"):
            return jax.tree.map(
                lambda x: jax.make_array_from_process_local_data(self.rows, x), rows
            )

    @property
    def batch_shards(self) -> int:
        """Parts into which the batch axis is cut."""
        return math.prod(self.mesh.shape[name] for name in dict(self.rules)["batch"])

    def check_divides(self, what: str, axes: tuple[str, ...], shape: tuple[int, ...]) -> None:
        """Raises ConfigError if an axis of `shape` does not divide into its mesh axes."""
        for axis, size, entry in zip(axes, shape, self.spec(axes), strict=False):
            names = _names(entry)
            parts = math.prod(self.mesh.shape[name] for name in names)
            if size % parts:
                raise ConfigError(
                    f"{what} has {size} {axis}, which mesh axis {'*'.join(names)}={parts} does not "
                    f"divide; choose a smaller mesh.{names[0]}"
                )


def constrain(layout: Layout | None, x: jax.Array, *axes: str | None) -> jax.Array:
    """`layout.constrain`, or `x` as it is without a layout (one device, tests, notebooks)."""
    return x if layout is None else layout.constrain(x, *axes)


def make_layout(config: MeshConfig, devices: Sequence[Any] | None = None) -> Layout:
    """The mesh of `config` over `devices` (default: all), -1 filled in, rules overridden.

    Raises:
      ConfigError: the axes do not multiply to the number of devices, or a rule is not known.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {name: getattr(config, name) for name in MESH_AXES}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    sizes = {name: len(devices) // fixed if size == -1 else size for name, size in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise ConfigError(
            f"mesh ({shown}) must have as many places as there are devices, {len(devices)}; "
            "set one axis to -1 or change mesh.*"
        )
    mesh = jax.make_mesh(
        tuple(sizes.values()),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(MESH_AXES),
        devices=devices,
    )
    return Layout(mesh, _override(config.rules))


def barrier(name: str) -> None:
    """Waits until all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def from_first_process(number: int) -> int:
    """The number that the first process passed, on all of them."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def _names(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one entry of a PartitionSpec: None, a name or a tuple of names."""
    return () if entry is None else (entry,) if isinstance(entry, str) else entry


def _override(entries: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    rules = dict(RULES)
    for entry in entries:
        logical, _, names = entry.partition("=")
        axes = tuple(name for name in names.split("+") if name)
        if logical not in rules or not set(axes) <= set(MESH_AXES):
            raise ConfigError(
                f"mesh.rules entry {entry!r} must read logical=mesh_axis (or a+b, or empty) with a "
                f"logical axis of {', '.join(rules)} and mesh axes of {', '.join(MESH_AXES)}"
            )
        rules[logical] = axes
    return tuple(rules.items())
