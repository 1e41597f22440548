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
from jax.experimental import mesh_utils
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
class Share:
    """Which rows of every batch a process assembles: those that its devices hold.

    A batch is cut into `of` equal parts. On a pod the parts of a process need not be neighbours
    (its chips are a square of the mesh), and where the tensor or context axis spans processes,
    several of them hold the same part.

    Attributes:
      parts: Numbers of the parts, ascending.
      of: How many parts a batch has.
    """

    parts: tuple[int, ...] = (0,)
    of: int = 1

    def rows(self, batch_size: int) -> np.ndarray:
        """The numbers of the rows in a batch of this size, int64 [n], ascending.

        Raises:
          ConfigError: the batch cannot be cut into equal parts.
        """
        if batch_size % self.of:
            raise ConfigError(
                f"a batch must be divisible by the mesh's {self.of} batch shards, got "
                f"{batch_size} rows; change train.batch_size or the mesh"
            )
        size = batch_size // self.of
        return (np.asarray(self.parts)[:, None] * size + np.arange(size)).reshape(-1)


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

    def share(self, devices: Sequence[Any] | None = None) -> Share:
        """The part of every batch that these devices (default: this process's) hold.

        On a pod a host's chips are a square of the mesh, so its shards need not be neighbours, and
        where the tensor axis spans processes several of them hold the same rows.
        """
        wanted = set(self.mesh.local_devices if devices is None else devices)
        shards = self.rows.devices_indices_map((self.batch_shards,))
        parts = {index[0].start or 0 for device, index in shards.items() if device in wanted}
        return Share(tuple(sorted(parts)), self.batch_shards)

    def place_rows(self, rows: Any) -> Any:
        """Puts this process's rows (a tree of NumPy arrays) onto its devices.

        Args:
          rows: The rows of `share()`, in that order; with those of the other processes they are
            the whole batch.
        """
        share = self.share()

        def place(values: np.ndarray) -> jax.Array:
            size = len(values) // len(share.parts)

            def part(index: Any) -> np.ndarray:
                begin = share.parts.index((index[0].start or 0) // size) * size
                return values[begin : begin + size]

            shape = (size * share.of, *values.shape[1:])
            return jax.make_array_from_callback(shape, self.rows, part)

        # The copy is meant; over several processes JAX counts it as an implicit one.
        with jax.transfer_guard_host_to_device("allow"):
            return jax.tree.map(place, rows)

    def parts(self, *axes: str) -> int:
        """Parts into which the mesh cuts an array with these logical axes."""
        table = dict(self.rules)
        return math.prod(self.mesh.shape[name] for axis in axes for name in table[axis])

    @property
    def batch_shards(self) -> int:
        """Parts into which the batch axis is cut."""
        return self.parts("batch")

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
      ConfigError: the axes do not multiply to the number of devices, `data` does not divide into
        slices, or a rule is not known.
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
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    mesh = Mesh(
        _over_slices(sizes, slices, devices) if slices > 1 else _within_slice(sizes, devices),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(MESH_AXES),
    )
    return Layout(mesh, _override(config.rules))


def _within_slice(sizes: dict[str, int], devices: Sequence[Any]) -> np.ndarray:
    """Devices in the order of the axes, neighbours on the links of the chips."""
    return jax.make_mesh(tuple(sizes.values()), MESH_AXES, devices=devices).devices


def _over_slices(sizes: dict[str, int], slices: int, devices: Sequence[Any]) -> np.ndarray:
    """Only `data` crosses slices: their network is some fifty times slower than a chip's links."""
    if sizes["data"] % slices:
        raise ConfigError(
            f"mesh.data must be a multiple of the {slices} slices, got {sizes['data']}; set "
            f"mesh.data={slices}, the other axes stay within a slice"
        )
    within = sizes | {"data": sizes["data"] // slices}
    across = [slices if name == "data" else 1 for name in MESH_AXES]
    return mesh_utils.create_hybrid_device_mesh(tuple(within.values()), across, devices)


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
