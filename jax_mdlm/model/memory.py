"""Whether a model can be loaded and run at all, asked before its parameters are read.

A host that runs out of memory kills the process without a word. What is held is known beforehand:
the parameters in their final form, a few layers on their way there, and what a generation needs
beside them, its cache and the activations of a layer.
"""

import dataclasses
import math
import resource
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jax_mdlm.config import Config, ConfigError, ModelConfig
from jax_mdlm.containers import ParamRow
from jax_mdlm.model import table
from jax_mdlm.model.form import Form, abstract_prepared, is_cpu
from jax_mdlm.sharding import Layout

Place = Callable[[ParamRow], jax.sharding.Sharding]

# By the kind of a control group, version 2 and 1: its limit, its use, the cache in its statistics.
_FILES = {
    "": ("memory.max", "memory.current", "file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
}
_PARTS = 4  # layers of an array that are read, or on their way, at a time
_PROMPT = 128  # slots of a prompt, where nobody says


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes that are held at the fullest moment.

    Attributes:
      host: Of this process in the host's memory; devices of kind CPU live there.
      device: Of each accelerator; 0 where there is none.
    """

    host: int = 0
    device: int = 0

    def __add__(self, other: "Need") -> "Need":
        return Need(self.host + other.host, self.device + other.device)


def to_read(config: ModelConfig, dtype: str, place: Place) -> Need:
    """What parameters take that are read as they are trained.

    Args:
      config: The network.
      dtype: In which they are read.
      place: Row of the parameter table -> where it goes.
    """
    rows, kind = table.rows(config), jnp.dtype(dtype)
    held = sum(
        (
            _held(jax.ShapeDtypeStruct(table.shape(row, config), kind, sharding=place(row)))
            for row in rows
        ),
        Need(),
    )
    return held if is_cpu(place(rows[0])) else held + _on_the_way(config, dtype, place)


def to_sample(config: Config, layout: Layout, rows: int) -> Need:
    """What a model takes that is read for sampling, and a generation after it.

    Args:
      config: The network, the form of its weights, and the decoding.
      layout: Where they go.
      rows: Prompts of a compiled call.
    """
    network = config.model
    held = jax.tree.leaves(abstract_prepared(network, Form.of(config.sample), layout))
    moving = _on_the_way(network, network.param_dtype, lambda row: layout.sharding(row.axes))
    generation, there = _generation(config, layout, rows), layout.replicated
    if is_cpu(there):
        run = Need(host=generation * len(there.addressable_devices))
    else:
        run = Need(device=generation)
    return sum(map(_held, held), moving + run)


def _on_the_way(config: ModelConfig, dtype: str, place: Place) -> Need:
    """Parts between the files and their places: some on the host, on a device one and its form."""
    size, need = jnp.dtype(dtype).itemsize, Need()
    for row in table.rows(config):
        if row.stacked:
            shape, there = table.shape(row, config), place(row)
            whole = math.prod(shape) // config.layers * size
            part: Any = there.shard_shape(shape)
            here = 0 if is_cpu(there) else 2 * math.prod(part) // config.layers * size
            need = Need(max(need.host, _PARTS * whole), max(need.device, here))
    return need


def _generation(config: Config, layout: Layout, rows: int) -> int:
    """Bytes of a device while it generates: cache, activations of a layer, logits of a block."""
    network, sample = config.model, config.sample
    prompt = config.data.prompt_slots or _PROMPT
    slots = min(max(sample.limit, sample.length) + prompt, network.max_length)
    wide = jnp.dtype(network.compute_dtype).itemsize
    rows = rows * (2 if sample.guidance else 1)
    rows = -(-rows // layout.batch_shards)
    heads = -(-network.heads // layout.parts("heads"))
    kept = 2 * network.layers * rows * slots * network.kv_heads * network.head_dim * wide
    stream = rows * slots * (4 * network.embed + 3 * network.mlp // layout.parts("mlp")) * 4
    scores = 2 * rows * heads * slots * slots * 4
    logits = 5 * rows * sample.block_length * network.vocab_size // layout.parts("vocab") * 4
    cached = kept // layout.parts("kv_heads") if sample.cache != "none" else 0
    return cached + max(stream + scores, logits)


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
        if there is None or asked <= there:
            continue
        fitting = [name for name, other in others.items() if free.holds(other)]
        if place != "host memory":
            more = math.ceil(devices * asked / max(there, 1))
            fitting.append(f"a mesh over {more} devices or more (--config.mesh.fsdp={more})")
        fitting.append(f"a machine with {_gigabytes(asked)} of {place} free")
        raise ConfigError(
            f"{what} takes {_gigabytes(asked)} of {place}, {_gigabytes(there)} are free; what "
            f"fits: {', or '.join(fitting)}"
        )


def check_sampling(path: str, config: Config, layout: Layout, rows: int) -> None:
    """Raises ConfigError where a model that is opened for sampling does not fit.

    Args:
      path: Where it is kept, for the error.
      config: `sample` says what the parameters become and how they are decoded.
      layout: Where they go.
      rows: Prompts of a compiled call.
    """

    def need(rows: int = rows, **settings: Any) -> Need:
        sample = dataclasses.replace(config.sample, **settings)
        return to_sample(dataclasses.replace(config, sample=sample), layout, rows)

    sample = config.sample
    smaller = ("int8", "int4")[("full", "int8", "int4").index(sample.weights) :]
    others = {f"--config.sample.weights={one}": need(weights=one) for one in smaller}
    if rows > 1:
        others["--config.sample.batch_size=1"] = need(1)
    if sample.length > sample.block_length:
        shorter = {"length": sample.block_length, "limit": 0}
        others[f"a shorter canvas (--config.sample.length={sample.block_length})"] = need(**shorter)
    what = f"{path} with sample.weights={sample.weights}"
    check_fits(what, need(), others, layout.mesh.size)


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
        return all(there is None or asked <= there for asked, there in pairs)


def _host(root: Path) -> int | None:
    """What the kernel would give without killing; pages may go to swap, where there is some."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        known = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        left = min([known["MemAvailable"], *_groups(root, groups)]) + known.get("SwapFree", 0)
        most, _ = resource.getrlimit(resource.RLIMIT_AS)  # of `ulimit -v`
        if most == resource.RLIM_INFINITY:
            return left
        pages = int((root / "proc/self/statm").read_text().split()[0])
        return min(left, max(most - pages * resource.getpagesize(), 0))
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


def _held(leaf: jax.ShapeDtypeStruct) -> Need:
    """An array on the devices of this process."""
    size = jax.dtypes.itemsize_bits(leaf.dtype) / 8
    place: Any = leaf.sharding
    part = int(math.prod(place.shard_shape(leaf.shape)) * size)
    if not is_cpu(place):
        return Need(device=part)
    # Copies of one array may share their memory there.
    whole = int(math.prod(leaf.shape) * size)
    return Need(host=min(whole, part * len(place.addressable_devices)))


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
