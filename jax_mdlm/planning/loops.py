"""How often a loop runs: its counter is worked out from the compiled text.

XLA writes `known_trip_count` where it has found it itself, which TPU programs rarely carry. Else
the scalars of condition and body are computed here, step by step, until the condition is false.
What depends on data is unknown: a condition `counter < n and not done` then ends with its counter,
so that the count is the most that the loop can run. A loop whose end is data says its most turns
itself, in a scope `at_most_N`.
"""

import math
import operator
import re
from collections.abc import Callable

from jax_mdlm.planning.hlo import Computation, Instruction, Module

Scalar = int | bool | None  # None: depends on data
_MOST = 100_000  # turns that are followed

_BINARY: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "maximum": max,
    "minimum": min,
    "and": operator.and_,
    "or": operator.or_,
}
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}
_KNOWN = {*_BINARY, "compare", "select", "and", "or", "not"}
_SAME = {"copy", "bitcast", "convert", "reshape", "broadcast", "copy-start", "copy-done"}


def trips(module: Module, parent: Computation, loop: Instruction) -> int | None:
    """Runs of a `while`'s body, at most; None where that cannot be told.

    Args:
      module: Where its computations are.
      parent: Where it stands.
      loop: The instruction.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if known:
        return int(known[1])
    counted = _followed(module, parent, loop)
    if counted is None and (named := re.search(r"at_most_(\d+)/while$", loop.op_name)):
        return int(named[1])
    return counted


def _followed(module: Module, parent: Computation, loop: Instruction) -> int | None:
    """Turns until the condition is false; None where data decides."""
    condition = module.computations[loop.called("condition")]
    body = module.computations[loop.called("body")]
    before = _frame_of(module, parent)
    wanted: set[int] = set()  # elements that were ever asked for; worked out in every step
    state = _State(lambda index: before.element(parent.operand(loop, 0), index), wanted)
    for count in range(_MOST):
        holds = _Frame(module, condition, state).value(condition.root)
        if holds is None:
            return None
        if not holds:
            return count
        frame = _Frame(module, body, state)
        state = _State(lambda index, frame=frame: frame.element(body.root, index), wanted)
        for index in sorted(wanted):  # now, and not through a thousand steps later
            state[index]
    return None


def _frame_of(module: Module, computation: Computation) -> "_Frame":
    """Where a loop begins; a compiler may put it into a computation of its own, called once."""
    calls = [
        (caller, one)
        for caller in module.computations.values()
        for one in caller.instructions.values()
        if one.opcode == "call" and one.called("to_apply") == computation.name
    ]
    if len(calls) != 1:
        return _Frame(module, computation)
    caller, one = calls[0]
    return _Frame(module, computation, caller=(_frame_of(module, caller), one))


class _State:
    """What a loop carries; an element is worked out when it is asked for."""

    def __init__(self, find: Callable[[int], Scalar], wanted: set[int]) -> None:
        self._find, self._wanted = find, wanted
        self._found: dict[int, Scalar] = {}

    def __getitem__(self, index: int) -> Scalar:
        if index not in self._found:
            self._wanted.add(index)
            self._found[index] = self._find(index)
        return self._found[index]


class _Frame:
    """One run of a computation, of which only scalars are worked out."""

    def __init__(
        self,
        module: Module,
        computation: Computation,
        state: _State | None = None,
        caller: "tuple[_Frame, Instruction] | None" = None,
    ) -> None:
        self._module, self._computation = module, computation
        self._state, self._caller = state, caller
        self._found: dict[str, Scalar] = {}

    def value(self, one: Instruction) -> Scalar:
        """A scalar; None = unknown."""
        if one.name not in self._found:
            small = len(one.arrays) == 1 and math.prod(one.arrays[0].dims) == 1
            self._found[one.name] = self._wrap(one, self._compute(one)) if small else None
        return self._found[one.name]

    def element(self, one: Instruction, index: int) -> Scalar:
        """A scalar of a tuple; None = unknown."""
        if one.opcode == "tuple":
            return self.value(self._operand(one, index))
        if one.opcode == "parameter" and self._state is not None:
            return self._state[index]
        if one.opcode == "parameter" and self._caller is not None:
            frame, call = self._caller
            return frame.element(frame._operand(call, int(one.literal)), index)
        if one.opcode in ("copy", "optimization-barrier"):
            return self.element(self._operand(one, 0), index)
        if one.opcode in ("fusion", "call"):
            inner = self._enter(one)
            return inner.element(inner._computation.root, index)
        return None

    def _compute(self, one: Instruction) -> Scalar:
        code = one.opcode
        if code == "constant":
            return _literal(one.literal)
        if code == "parameter":
            if self._caller is None:
                return None
            frame, call = self._caller
            return frame.value(frame._operand(call, int(one.literal)))
        if code == "get-tuple-element":
            return self.element(self._operand(one, 0), int(one.attribute("index")))
        if code in _SAME:
            return self.value(self._operand(one, 0))
        if code in ("fusion", "call"):
            inner = self._enter(one)
            return inner.value(inner._computation.root)
        if code not in _KNOWN:
            return None
        values = [self.value(self._operand(one, i)) for i in range(len(one.operands))]
        if code == "select":
            return None if values[0] is None else values[1] if values[0] else values[2]
        if code == "and" and False in values:
            return False
        if code == "and" and True in values:  # the most that the loop can run
            return True
        if code == "or" and True in values:
            return True
        if code == "not":
            return None if values[0] is None else not values[0]
        left, right = values
        if left is None or right is None:
            return None
        if code == "compare":
            return _COMPARE[one.attribute("direction")](left, right)
        return _BINARY[code](left, right)

    def _wrap(self, one: Instruction, value: Scalar) -> Scalar:
        # A windowed loop counts places around a ring: below zero is the far end.
        if value is None or one.arrays[0].dtype != "u32":
            return value
        return value % 2**32

    def _enter(self, one: Instruction) -> "_Frame":
        inner = self._module.computations[one.called("calls") or one.called("to_apply")]
        return _Frame(self._module, inner, caller=(self, one))

    def _operand(self, one: Instruction, index: int) -> Instruction:
        return self._computation.operand(one, index)


def _literal(text: str) -> Scalar:
    text = text.strip("{} ")
    if text in ("true", "false"):
        return text == "true"
    return int(text) if re.fullmatch(r"-?\d+", text) else None
