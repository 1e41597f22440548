"""Reads compiled HLO text: computations, their instructions, shapes with their memory space.

Only what the counters need; the grammar is the one that `compiled.as_text()` prints
(openxla.org/xla/hlo_syntax). Arrays in another memory than HBM, such as a TPU's VMEM, are marked
in their layout, `{1,0:T(8,128)S(1)}`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?|token\[\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$", re.S)
_COMMENT = re.compile(r"/\*.*?\*/")
_NAME = re.compile(r"%([\w.\-]+)")
_SPACE = re.compile(r"S\((\d+)\)")


@dataclasses.dataclass(frozen=True)
class Array:
    """Form of one array.

    Attributes:
      dtype: As HLO names it.
      dims: Its shape.
      space: Memory it lives in; 0 is the device's main one (HBM).
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of its elements, without padding."""
        return math.prod(self.dims) * _bits(self.dtype) // 8

    @property
    def hbm_bytes(self) -> int:
        """`bytes`, or 0 where it lives elsewhere."""
        return 0 if self.space else self.bytes


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: Unique in the module.
      opcode: E.g. `fusion`.
      arrays: What it results in, tuples flattened.
      operands: Names of instructions of the same computation.
      literal: What stands in the brackets of a constant or parameter.
      attributes: The rest of the line.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str

    @property
    def hbm_bytes(self) -> int:
        """Of all its arrays."""
        return sum(array.hbm_bytes for array in self.arrays)

    def attribute(self, name: str) -> str:
        """The value of `name=...` up to the next comma, {...} and [...] whole; "" = none."""
        found = re.search(
            rf"[ ,]{name}=(\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}}|[^,\s]+)", self.attributes
        )
        return found[1] if found else ""

    def called(self, name: str) -> str:
        """The computation that an attribute names."""
        return self.attribute(name).lstrip("%")

    @property
    def op_name(self) -> str:
        """What it was in JAX, e.g. `jit(train_step)/jvp()/while/body/dot_general`."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


class Computation:
    """Instructions in their order; the root is the result."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.instructions: dict[str, Instruction] = {}
        self.root: Instruction = None  # pyright: ignore[reportAttributeAccessIssue]

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """In the order of their numbers."""
        found = [one for one in self.instructions.values() if one.opcode == "parameter"]
        return sorted(found, key=lambda one: int(one.literal))

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Who reads an instruction."""
        found: dict[str, list[Instruction]] = {}
        for one in self.instructions.values():
            for name in dict.fromkeys(one.operands):
                found.setdefault(name, []).append(one)
        return found

    def operand(self, instruction: Instruction, index: int) -> Instruction:
        """The instruction that an operand names."""
        return self.instructions[instruction.operands[index]]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
      computations: By name.
      entry: The name of the one that runs.
      functions: For each stack frame that metadata names, the Python functions on it.
    """

    computations: dict[str, Computation]
    entry: str
    functions: dict[int, frozenset[str]]

    def functions_of(self, instruction: Instruction) -> frozenset[str]:
        """Python functions under which the instruction was traced, as far as they are recorded."""
        found = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        return self.functions.get(int(found[1]), frozenset()) if found else frozenset()


def parse_hlo(text: str) -> Module:
    """Reads a module.

    Raises:
      ValueError: no entry computation was found.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in _logical_lines(text):
        if current is None:
            if found := _HEADER.match(line):
                current = computations[found[2]] = Computation(found[2])
                entry = found[2] if found[1] else entry
        elif line == "}":
            current = None
        elif found := _INSTRUCTION.match(line):
            instruction = _instruction(found[2], _COMMENT.sub("", found[3]))
            current.instructions[found[2]] = instruction
            if found[1]:
                current.root = instruction
    if not entry:
        raise ValueError("HLO text must hold an entry computation, it does not")
    return Module(computations, entry, _functions(text))


def _logical_lines(text: str) -> Iterator[str]:
    """Lines, those of a kernel's attributes joined: they are broken inside their brackets."""
    held = ""
    for line in text.splitlines():
        if line == "}" or _HEADER.match(line) or _INSTRUCTION.match(line):
            if held:
                yield held
            held = line
        elif held and line:
            held += " " + line
    if held:
        yield held


def _instruction(name: str, text: str) -> Instruction:
    # TYPE opcode(operands), attributes; a tuple's type holds brackets, and so do layouts.
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opened = rest.index("(")
    closed = _closing(rest, opened)
    inside = rest[opened + 1 : closed - 1]
    return Instruction(
        name,
        rest[:opened],
        tuple(_array(found) for found in _ARRAY.finditer(shape)),
        tuple(_NAME.findall(inside)),
        inside,
        rest[closed:],
    )


def _closing(text: str, start: int) -> int:
    """The place after the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    raise ValueError(f"bracket is never closed in {text[:80]!r}")


def _array(found: re.Match[str]) -> Array:
    if found[1] is None:
        return Array("token", ())
    dims = tuple(int(size.lstrip("<=")) for size in found[2].split(",") if size)
    space = _SPACE.search(found[3] or "")
    return Array(found[1], dims, int(space[1]) if space else 0)


@functools.cache
def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    found = re.search(r"\d+", dtype)  # f32, bf16, u8, s4, f8e4m3fn
    return int(found[0]) if found else 0


def _functions(text: str) -> dict[int, frozenset[str]]:
    """The tables at the head of the text: frames are (place, parent), places name functions."""
    head = text[: text.find("\nENTRY")]
    names = {
        int(number): name for number, name in re.findall(r'^(\d+) "([^"]*)"$', _part(head), re.M)
    }
    places = {
        int(number): names.get(int(function), "")
        for number, function in re.findall(
            r"^(\d+) \{file_name_id=\d+ function_name_id=(\d+)", head, re.M
        )
    }
    frames = {
        int(number): (int(place), int(parent))
        for number, place, parent in re.findall(
            r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?\}", head, re.M
        )
        for parent in [parent or 0]
    }
    # Printed one too high by some releases: the first frame has no parent.
    shift = 1 if frames and frames[min(frames)][1] == min(frames) else 0
    found: dict[int, frozenset[str]] = {}
    for number in sorted(frames):
        place, parent = frames[number]
        above = found.get(parent - shift, frozenset())
        found[number] = above | {places.get(place, "")}
    return found


def _part(head: str) -> str:
    """The lines of the table of function names."""
    begin = head.find("\nFunctionNames")
    return head[begin : head.find("\n\n", begin)] if begin >= 0 else ""
