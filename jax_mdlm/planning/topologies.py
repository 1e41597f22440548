"""Slices that are only described: devices to compile for, without a TPU.

The compiler is the real one, from libtpu; `jax.experimental.topologies` hands it a machine by name.
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax

from jax_mdlm.config import ConfigError
from jax_mdlm.training.timing import CHIPS, Chip

# What the vendor rents; libtpu also knows other shapes.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
# Accelerator types of Cloud TPU, as launch/tpu takes them: generation, and how many of what their
# number counts a chip has (v4 and v5p: TensorCores).
_TYPES = {"v4": ("v4", 2), "v5litepod": ("v5e", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1)}


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices to compile for.

    Attributes:
      name: As asked for, e.g. `v5e:4x4`.
      devices: Of all slices, in the order in which the platform numbers them.
      chip: What each of them can do.
      shape: Size of each dimension of a slice's torus.
      slices: So many slices.
    """

    name: str
    devices: list[Any]
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def title(self) -> str:
        """Name and number of slices."""
        return self.name if self.slices == 1 else f"{self.name} x {self.slices}"


def topology_of(name: str) -> str:
    """The topology of an accelerator type of Cloud TPU: `v5litepod-16` is `v5e:4x4`.

    Args:
      name: A type, or a topology, which is returned as it is.

    Raises:
      ConfigError: a type of a size that has no usual shape.
    """
    found = re.fullmatch(rf"({'|'.join(_TYPES)})-(\d+)", name)
    if found is None:
        return name
    generation, units = _TYPES[found[1]]
    for shape in _shapes(generation):
        if math.prod(map(int, shape.split("x"))) * units == int(found[2]):
            return f"{generation}:{shape}"
    raise ConfigError(
        f"--topology {name} must be a slice of a usual size to be looked up, it is none; name its "
        f"shape, one of {_known(generation)} or like them"
    )


def machine_named(name: str, slices: int = 1) -> Machine:
    """The machine of a topology's name.

    Args:
      name: Generation and shape, e.g. `v5e:4x4` or `v4:2x2x4`.
      slices: So many of them, connected by the data-centre network.

    Raises:
      ConfigError: unknown name, or libtpu is not installed.
    """
    chip = next((chip for chip in CHIPS if chip.name == name.partition(":")[0]), None)
    if chip is None:
        raise ConfigError(f"--topology must be one of {_known()} or like them, got {name!r}")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "plan needs the TPU compiler, which is in libtpu and needs no TPU; "
            "pip install 'jax[tpu]' (or the libtpu release that this jax asks for)"
        )
    settings: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if name.endswith(":1x1"):
        settings["chips_per_host_bounds"] = (1, 1, 1)
    if chip.name == "v4":  # one device a chip, as JAX shows them, not one a core
        settings["chip_config_name"] = "megacore"
    _keep_to_the_host()
    from jax.experimental import topologies  # loads libtpu, which reads the environment

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **settings)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if not reason.startswith("INVALID_ARGUMENT"):
            raise ConfigError(f"libtpu must be usable to plan, it says: {reason}") from error
        raise ConfigError(
            f"--topology must be one of {_known()} or like them, got {name!r} ({reason})"
        ) from error
    shape = tuple(int(size) for size in name.partition(":")[2].split("_")[0].split("x"))
    return Machine(name, found.devices, chip, shape, slices)


def _keep_to_the_host() -> None:
    """No TPU is looked for or taken, and libtpu does not say that there is none."""
    jax.config.update("jax_platforms", "cpu")
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),  # no chip is taken: others may use theirs meanwhile
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-1"),
        ("TPU_MIN_LOG_LEVEL", "3"),
        ("TPU_STDERR_LOG_LEVEL", "3"),
    ):
        os.environ.setdefault(variable, value)


def _shapes(generation: str) -> tuple[str, ...]:
    (chip,) = (chip for chip in CHIPS if chip.name == generation)
    return _FLAT if chip.dimensions == 2 else _CUBES


def _known(*generations: str) -> str:
    return "; ".join(
        ", ".join(f"{name}:{shape}" for shape in _shapes(name))
        for name in generations or [chip.name for chip in CHIPS]
    )
