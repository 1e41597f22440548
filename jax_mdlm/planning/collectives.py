"""Exchanges between chips: who takes part, and how long the wires are busy.

Model (jax-ml.github.io/scaling-book/sharding, for rings): a group spans some dimensions of the
torus and uses all of them at once, each with one link per direction, both where the dimension
closes to a ring. What a chip takes in decides: all-gather and reduce-scatter (n - 1) / n of the
whole array, all-reduce twice that. All-to-all is bound by the links that cut its longest dimension
in half. A permute loads a link per hop, and half of its traffic is taken to go each way around, as
in XLA's windowed products. Across slices the exchange is done in two stages, a share of the array
per chip over the network. Latency is left out.
"""

import dataclasses
import functools
import math
import re
from typing import Any

import numpy as np

from jax_mdlm.planning.hlo import Computation, Instruction
from jax_mdlm.planning.topologies import Machine


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange as the program names it.

    Attributes:
      kind: E.g. `all-gather`.
      bytes: Of what each chip puts in.
      members: `replica_groups` or `source_target_pairs` as text.
    """

    kind: str
    bytes: int
    members: str


def collective(computation: Computation, one: Instruction) -> Collective:
    """Reads an instruction."""
    names = one.operands
    size = sum(array.bytes for name in names for array in computation.instructions[name].arrays)
    kind = one.opcode.removesuffix("-start")
    if kind == "send":
        return Collective(kind, computation.operand(one, 0).arrays[0].bytes, "")
    if kind == "collective-permute":
        size = computation.operand(one, 0).arrays[0].bytes
        return Collective(kind, size, one.attribute("source_target_pairs"))
    found = re.search(
        r"replica_groups=(mesh\[[^\]]*\][^{]*\{[^}]*\}|\{(?:[^{}]|\{[^{}]*\})*\}"
        r"|\[[\d,]*\]<=\[[\d,]*\](?:T\([\d,]*\))?)",
        one.attributes,
    )
    return Collective(kind, size, found[1] if found else "{}")


@functools.cache
def groups_of(text: str, chips: int) -> tuple[tuple[int, ...], ...]:
    """Groups of chips, by their number in the mesh; of a permute, (source, target) pairs.

    The forms are `{{0,1},{2,3}}`, `[2,8]<=[4,4]T(1,0)` (group shape, of a reshaped and transposed
    count), `mesh['a'=4,'b'=4] {'a'}` (axes of a mesh) and `{}` (all in one).

    Raises:
      ValueError: a form that is not known.
    """
    if text in ("{}", "{{}}", ""):
        return (tuple(range(chips)),)
    if text.startswith("{"):
        groups = re.findall(r"\{([\d,\s]*)\}", text[1:-1])
        return tuple(tuple(int(n) for n in group.split(",")) for group in groups)
    if found := re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, counted, order = (_numbers(part or "") for part in found.groups())
        ids = np.arange(math.prod(counted)).reshape(counted)
        ids = ids.transpose(order) if order else ids
        return _rows(ids.reshape(shape))
    if found := re.fullmatch(r"mesh\[([^\]]*)\](?:, device_ids=\((.*)\))?\s*\{([^}]*)\}", text):
        return _mesh_groups(found[1], found[2] or "", found[3])
    raise ValueError(f"replica groups must have a known form, got {text!r}")


def _mesh_groups(axes: str, order: str, grouped: str) -> tuple[tuple[int, ...], ...]:
    """Groups along axes of a mesh; an axis may be split, 'a':(2)4 = 4 parts, 2 slower before."""
    parts = {
        name: (int(before or 1), int(own or 0))
        for name, before, own in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", grouped)
    }
    shape, chosen = list[int](), list[int]()
    for name, size in re.findall(r"'([^']*)'=(\d+)", axes):
        before, own = parts.get(name, (1, 0))
        own = own or int(size) // before
        if name in parts:
            chosen.append(len(shape) + 1)
        shape += [before, own, int(size) // before // own]
    ids = _device_order(order, math.prod(shape)).reshape(shape)
    others = [axis for axis in range(len(shape)) if axis not in chosen]
    width = math.prod(shape[axis] for axis in chosen)
    return _rows(ids.transpose(others + chosen).reshape(-1, width))


def _device_order(text: str, count: int) -> np.ndarray:
    """`[2,8]T(1,0)`: a transposed count; `3,1,2,0`: a list; "": a count."""
    if found := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        ids = np.arange(count).reshape(_numbers(found[1]))
        return ids.transpose(_numbers(found[2])) if found[2] else ids
    return np.array(_numbers(text)) if text else np.arange(count)


def _rows(ids: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(one) for one in row) for row in ids)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def taken_in(kind: str, size: float, parts: int) -> float:
    """Bytes that a chip takes in when `parts` exchange; `size` is what each puts in."""
    if kind == "collective-permute":
        return size
    share = (parts - 1) / parts
    if kind == "all-gather":
        return size * (parts - 1)
    return size * share * (2 if kind == "all-reduce" else 1)


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A collective on a machine.

    Attributes:
      axes: Mesh axes along which the members differ, e.g. `fsdp`.
      bytes: A chip takes in, in all.
      ici_seconds: Of the links within a slice.
      dcn_bytes: Of `bytes`, those from other slices.
    """

    axes: str
    bytes: float
    ici_seconds: float
    dcn_bytes: float


@dataclasses.dataclass(frozen=True)
class Wiring:
    """Where the chips of a mesh are.

    Attributes:
      machine: Their kind and torus.
      mesh: jax Mesh; its order is the order of numbers in a program.
    """

    machine: Machine
    mesh: Any

    @functools.cached_property
    def _places(self) -> list[tuple[int, tuple[int, ...]]]:
        """(slice, coordinates) of each chip."""
        torus = self.machine.chip.dimensions
        return [
            (
                getattr(device, "slice_index", None) or 0,
                tuple(getattr(device, "coords", None) or (device.id,))[:torus],
            )
            for device in self.mesh.devices.flat
        ]

    def exchange(self, one: Collective) -> Exchange:
        """What a collective costs here."""
        if one.kind == "send":  # to the chip's counterpart in another slice, which sends as much
            return Exchange("slices", one.bytes, 0.0, one.bytes)
        groups = groups_of(one.members, self.mesh.size)
        axes = self._axes(groups)
        if one.kind == "collective-permute":
            return self._permute(one, groups, axes)
        group = max(groups, key=len)
        slices = {self._places[chip][0] for chip in group}
        within = max(len(group) // len(slices), 1)
        put, dcn = float(one.bytes), 0.0
        if len(slices) > 1:
            share = put if one.kind in ("all-gather", "all-to-all") else put / within
            dcn = taken_in(one.kind, share, len(slices))
            put = put * len(slices) if one.kind == "all-gather" else put
        inside = taken_in(one.kind, put, within)
        first = self._places[group[0]][0]
        local = [self._places[chip][1] for chip in group if self._places[chip][0] == first]
        seconds = self._seconds(one.kind, put, inside, local)
        return Exchange(axes, inside + dcn, seconds, dcn)

    def _seconds(self, kind: str, put: float, inside: float, local: list[tuple[int, ...]]) -> float:
        spanned = [
            axis for axis in range(len(local[0])) if len({place[axis] for place in local}) > 1
        ]
        if not spanned:
            return 0.0
        link = self.machine.chip.link_bandwidth
        if kind == "all-to-all":
            longest = max(spanned, key=lambda axis: len({place[axis] for place in local}))
            parts = len({place[longest] for place in local})
            return put * parts / 4 / self._directions(longest, parts) / link
        links = sum(
            self._directions(axis, len({place[axis] for place in local})) for axis in spanned
        )
        return inside / links / link

    def _directions(self, axis: int, parts: int) -> int:
        """Links of a chip along a dimension that work for a group: two where it is a ring."""
        return 2 if self._is_ring(axis) and parts == self.machine.shape[axis] else 1

    def _is_ring(self, axis: int) -> bool:
        wraps, shape = self.machine.chip.wraps_at, self.machine.shape
        if self.machine.chip.dimensions == 3:  # built of 4x4x4 cubes
            return all(size % wraps == 0 for size in shape)
        return axis < len(shape) and shape[axis] % wraps == 0

    def _permute(self, one: Collective, pairs: tuple[tuple[int, ...], ...], axes: str) -> Exchange:
        moved = [(self._places[a], self._places[b]) for a, b in pairs if a != b]
        if not moved:
            return Exchange(axes, 0.0, 0.0, 0.0)
        abroad = sum(source[0] != target[0] for source, target in moved)
        hops = sum(
            self._hops(source[1], target[1]) for source, target in moved if source[0] == target[0]
        )
        seconds = one.bytes * hops / len(moved) / (2 * self.machine.chip.link_bandwidth)
        return Exchange(axes, one.bytes, seconds, one.bytes * (abroad > 0))

    def _hops(self, source: tuple[int, ...], target: tuple[int, ...]) -> int:
        total = 0
        for axis, (a, b) in enumerate(zip(source, target, strict=True)):
            away = abs(a - b)
            ring = self._is_ring(axis)
            total += min(away, self.machine.shape[axis] - away) if ring else away
        return total

    def _axes(self, groups: tuple[tuple[int, ...], ...]) -> str:
        sizes = tuple(self.mesh.shape.values())
        found: set[int] = set()
        for group in groups:
            places = np.stack(np.unravel_index(np.array(group), sizes))
            found |= set(np.flatnonzero(np.any(places != places[:, :1], axis=1)).tolist())
        names = tuple(self.mesh.shape)
        return "+".join(names[axis] for axis in sorted(found)) or "none"
