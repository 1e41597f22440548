"""Whether a model can be loaded at all, asked before its parameters are read.

A host that runs out of memory kills the process without a word. What `model.prepare` holds is known
beforehand: the parameters as they are read, their int8 copies, and all of it once more, flattened.
On a CPU, where freeing and the copies of single layers go on beside each other, measured peaks of
anonymous memory are 0.83 to 1.5 of that (440 and 1,364 million parameters, float32 and bfloat16, in
full and in int8): a model is refused only where even the least of these shares is not there.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from jax_mdlm.config import Config, ConfigError, MeshConfig, ModelConfig
from jax_mdlm.containers import ParamRow
from jax_mdlm.model import table
from jax_mdlm.model.weights import input_axes
from jax_mdlm.sharding import Layout, make_layout

Place = Callable[[ParamRow], jax.sharding.Sharding]

# By the kind of a control group, version 2 and 1: its limit, its use, the cache in its statistics.
_FILES = {
    "": ("memory.max", "memory.current", "file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
}
_LEAST = 0.83  # the share of a need that must be free


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes that a load holds at its fullest moment.

    Attributes:
      host: Of this process in the host's memory; devices of kind CPU live there.
      device: Of each accelerator; 0 where there is none.
    """

    host: int = 0
    device: int = 0

    def __add__(self, other: "Need") -> "Need":
        return Need(self.host + other.host, self.device + other.device)


def to_read(config: ModelConfig, dtype: str, place: Place) -> Need:
    """What parameters take that are read and stay as they are.

    Args:
      config: The network.
      dtype: In which they are read.
      place: Row of the parameter table -> where it goes.
    """
    return _sum(
        _held(row, config, jnp.dtype(dtype).itemsize, place(row)) for row in table.rows(config)
    )


def to_sample(
    config: ModelConfig, weights: Literal["full", "int8"], read: Place, end: Place
) -> Need:
    """What parameters take that are read in the compute dtype and go through `model.prepare`.

    Args:
      config: The network.
      weights: What `prepare` makes of them.
      read: Row of the parameter table -> where it is read, quantised and flattened.
      end: Where the result goes, the same or another.
    """
    wide = jnp.dtype(config.compute_dtype).itemsize
    sizes = [(row, _prepared(row, config, weights == "int8", wide)) for row in table.rows(config)]
    made = _sum(_held(row, config, size, read(row)) for row, size in sizes)  # what flattening makes
    total = to_read(config, config.compute_dtype, read) + made
    if weights == "int8":
        total += made  # not yet flattened
    first = table.rows(config)[0]
    if _is_cpu(read(first)) and not _is_cpu(end(first)):
        total += _sum(_held(row, config, size, end(row)) for row, size in sizes)
    return total


def _prepared(row: ParamRow, config: ModelConfig, quantised: bool, wide: int) -> float:
    """Bytes that a value of a prepared parameter takes."""
    shape, inputs = table.shape(row, config), input_axes(row)
    if not (quantised and inputs):
        return wide
    return 1 + 4 / math.prod(shape[axis] for axis in inputs)  # with a float32 scale a channel


def check_fits(what: str, needed: Need, others: Mapping[str, Need], devices: int = 1) -> None:
    """Refuses what would end in a kill by the kernel, or in a full device.

    Args:
      what: Names the load in the error, e.g. `runs/llada with sample.weights=int8`.
      needed: What it takes.
      others: Remedies by name with what they take; those that fit are offered.
      devices: Accelerators that it is cut over.

    Raises:
      ConfigError: too little is free, with both numbers and what would fit.
    """
    free = Free.now()
    for place, asked, there in (
        ("host memory", needed.host, free.host),
        ("memory on a device", needed.device, free.device),
    ):
        if there is None or _LEAST * asked <= there:
            continue
        fitting = [name for name, other in others.items() if free.holds(other)]
        if place != "host memory":
            more = math.ceil(devices * asked / max(there, 1))
            fitting.append(f"a mesh over {more} devices or more (--config.mesh.fsdp={more})")
        fitting.append(f"a machine with {_gigabytes(asked)} of {place} free")
        raise ConfigError(
            f"{what} takes {_gigabytes(asked)} of {place} while it is read, {_gigabytes(there)} "
            f"are free; what fits: {', or '.join(fitting)}"
        )


def check_sampling(path: str, config: Config, layout: Layout) -> None:
    """Raises ConfigError where a model that is opened for sampling does not fit.

    Args:
      path: Where it is kept, for the error.
      config: `sample.weights` and `model.compute_dtype` say what the parameters become.
      layout: Where they go.
    """

    def need(weights: Literal["full", "int8"], network: ModelConfig = config.model) -> Need:
        read = host_of(weights, layout) or layout

        return to_sample(
            network,
            weights,
            lambda row: read.sharding(row.axes),
            lambda row: layout.sharding(row.axes),
        )

    weights, dtype = config.sample.weights, config.model.compute_dtype
    other = "full" if weights == "int8" else "int8"
    others = {f"--config.sample.weights={other}": need(other)}
    if dtype == "float32":
        halved = dataclasses.replace(config.model, compute_dtype="bfloat16")
        others["the model in bfloat16 (convert export, then import)"] = need(weights, halved)
    what = f"{path} with sample.weights={weights} in {dtype}"
    check_fits(what, need(weights), others, layout.mesh.size)


def host_of(weights: Literal["full", "int8"], layout: Layout) -> Layout | None:
    """The host's memory: what is quantised there need not fit the chip before."""
    if weights != "int8" or layout.mesh.size > 1:
        return None
    try:
        return make_layout(MeshConfig(), jax.local_devices(backend="cpu")[:1])
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        return None


@dataclasses.dataclass(frozen=True)
class Free:
    """Bytes that this process can still take; None where nobody says.

    Attributes:
      host: Of the machine, or of the control group that the process lives in.
      device: Of its fullest accelerator.
    """

    host: int | None
    device: int | None

    @classmethod
    def now(cls, root: Path = Path("/")) -> "Free":
        """Asks the kernel and the devices.

        Args:
          root: Where `proc` and `sys` are.
        """
        return cls(_host(root), _device())

    def holds(self, other: Need) -> bool:
        """Whether such a load would be let through."""
        pairs = ((other.host, self.host), (other.device, self.device))
        return all(there is None or _LEAST * asked <= there for asked, there in pairs)


def _host(root: Path) -> int | None:
    """What the kernel would give without killing; pages may go to swap, where there is some."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        known = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        return min([known["MemAvailable"], *_groups(root, groups)]) + known.get("SwapFree", 0)
    except (OSError, KeyError, ValueError, IndexError):  # no Linux
        return None


def _groups(root: Path, lines: list[str]) -> Iterator[int]:
    """What the control groups that this process lives in have left, of versions 1 and 2."""
    for line in lines:
        _, kind, path = line.split(":", 2)
        if kind not in ("", "memory"):
            continue
        top = root / "sys/fs/cgroup" / kind
        # In a container the path may be the host's, and not be there: its own group is the top.
        own = top / path.lstrip("/")
        for folder in (own, *own.parents):
            left = _left(folder, _FILES[kind]) if folder.is_relative_to(top) else None
            if left is not None:
                yield left


def _left(folder: Path, files: tuple[str, str, str]) -> int | None:
    """Limit less use of one control group; cached files do not count, they give way."""
    limit, used, cached = files
    try:
        most = int((folder / limit).read_text())  # "max" is no limit
        taken = int((folder / used).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(most - taken + int(stat.get(cached, 0)), 0)
    except (OSError, ValueError):
        return None


def _device() -> int | None:
    """The least that one of this process's accelerators has left."""
    left = []
    for device in jax.local_devices():
        stats = (device.platform != "cpu" and device.memory_stats()) or {}
        if "bytes_limit" in stats:
            left.append(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return min(left, default=None)


def _held(
    row: ParamRow, config: ModelConfig, itemsize: float, sharding: jax.sharding.Sharding
) -> Need:
    """A parameter on the devices of this process."""
    shape = table.shape(row, config)
    part = int(math.prod(sharding.shard_shape(shape)) * itemsize)
    if not _is_cpu(sharding):
        return Need(device=part)
    # Copies of one array may share their memory there.
    whole = int(math.prod(shape) * itemsize)
    return Need(host=min(whole, part * len(sharding.addressable_devices)))


def _sum(needs: Iterable[Need]) -> Need:
    return sum(needs, Need())


def _is_cpu(sharding: jax.sharding.Sharding) -> bool:
    return all(device.platform == "cpu" for device in sharding.device_set)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
