"""Bytes that an instruction moves between a chip and its HBM.

An instruction reads its operands and writes its result, a fusion counts as one; what lives in
another memory (VMEM) is free. Two cases matter in a program with scanned layers and are counted by
what is touched: a fusion that only slices an operand reads the slice, and one that updates a slice
of an operand in place writes the slice.
"""

import re

from jax_mdlm.planning.hlo import Computation, Instruction, Module

_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "partition-id",
    "replica-id",
    "after-all",
    "add-dependency",
    "optimization-barrier",
    "while",
    "conditional",
    "call",
    "async-start",
}
_FREE_CALLS = {
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
    "ConcatBitcast",
    "AsyncCollectiveStart",
    "AsyncCollectiveDone",
}
_SAME_BYTES = {"parameter", "bitcast", "reshape"}
_VIEWS = {"bitcast", "reshape", "convert", "copy", "transpose"}  # of which slices may be taken
_SLICES = {"dynamic-slice", "slice", "gather"}
# Across slices the compiler leaves sends and receives, which the host carries over the network.
_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "send",
)


def hbm_bytes(module: Module, computation: Computation, one: Instruction) -> int:
    """Bytes read and written by one execution, what it calls (loops, branches) left out."""
    code = one.opcode
    if code in _FREE or code.endswith(("-done", "-update")) or call_target(one) in _FREE_CALLS:
        return 0
    if code == "fusion":
        return _fusion_bytes(module, computation, one)
    operands = [computation.operand(one, index) for index in range(len(one.operands))]
    result = one.arrays
    if code in ("send", "recv"):  # (data, state, token)
        return result[0].hbm_bytes
    if code == "slice-start":  # ((source), slice, context)
        return result[-2].hbm_bytes + (0 if operands[0].arrays[0].space else result[-2].bytes)
    if code in _SLICES:
        read = 0 if operands[0].arrays[0].space else result[0].bytes
        return read + one.hbm_bytes + sum(operand.hbm_bytes for operand in operands[1:])
    if code in ("dynamic-update-slice", "scatter"):
        # In place: the rest of the operand is neither read nor written.
        change = operands[1 if code == "dynamic-update-slice" else -1]
        written = 0 if result[0].space else change.arrays[0].bytes
        return change.hbm_bytes + written * (1 if code == "dynamic-update-slice" else 2)
    if code == "copy-start":  # (copy, source, context)
        result = result[:1]
    elif code.endswith("-start") and len(result) >= 2 * len(operands):  # (sources, results, ..)
        result = result[len(operands) : 2 * len(operands)]
    return sum(operand.hbm_bytes for operand in operands) + sum(a.hbm_bytes for a in result)


def call_target(one: Instruction) -> str:
    """What a custom call runs; "" for other instructions."""
    return one.attribute("custom_call_target").strip('"')


def is_collective(one: Instruction) -> bool:
    """Whether chips exchange data here (the start of it, where it is asynchronous)."""
    return one.opcode.removesuffix("-start") in _COLLECTIVES


def continues_elsewhere(computation: Computation, one: Instruction) -> bool:
    """Whether a collective in a fusion is one that another fusion has started.

    A TPU spreads a collective over the fusions that run meanwhile: it stands in all of them, and
    only the one that hands it to `AsyncCollectiveStart` begins it.
    """
    if "async_collective_fusion_config" not in one.attributes:
        return False
    users = computation.users.get(one.name, [])
    return not any(call_target(user) == "AsyncCollectiveStart" for user in users)


def _fusion_bytes(module: Module, computation: Computation, one: Instruction) -> int:
    inner = module.computations[one.called("calls")]
    total = 0
    for index, parameter in enumerate(inner.parameters):
        if index < len(one.operands):
            operand = computation.operand(one, index)
            if any(array.hbm_bytes for array in operand.arrays):
                total += min(_read(module, inner, parameter), operand.hbm_bytes)
    return total + _written(module, inner, one)


def _read(module: Module, inner: Computation, value: Instruction) -> int:
    """Bytes of a fusion's operand that are read, at most once each."""
    whole = sum(array.bytes for array in value.arrays)
    total = 0
    for user in inner.users.get(value.name, []):
        places = [index for index, name in enumerate(user.operands) if name == value.name]
        if user.opcode in _SLICES and places == [0]:
            total += user.arrays[0].bytes
        elif user.opcode == "dynamic-update-slice" and places == [0]:
            continue
        elif user.opcode in _VIEWS or _is_view(module, user):
            part = _read(module, inner, user)
            if user is inner.root or part >= user.arrays[0].bytes:
                return whole
            total += part * value.arrays[0].bytes // user.arrays[0].bytes  # another dtype
        elif user.opcode == "fusion":
            called = module.computations[user.called("calls")]
            total += sum(_read(module, called, called.parameters[place]) for place in places)
        elif user is inner.root and user.opcode == "tuple" and value.opcode in _SAME_BYTES:
            continue  # handed on
        elif call_target(user) in _FREE_CALLS or (
            is_collective(user) and continues_elsewhere(inner, user)
        ):
            continue
        else:
            return whole
        if total >= whole:
            return whole
    return total


def _is_view(module: Module, one: Instruction) -> bool:
    """Whether a fusion within a fusion only lays out its operand anew, as that of int8 layers."""
    if one.opcode != "fusion" or len(one.operands) != 1:
        return False
    inner = module.computations[one.called("calls")]
    return all(each.opcode in _VIEWS | {"parameter"} for each in inner.instructions.values())


def _written(module: Module, inner: Computation, one: Instruction) -> int:
    """Bytes of a fusion's results that are written to HBM."""
    root = inner.root
    if root.opcode == "tuple":
        leaves = [inner.operand(root, index) for index in range(len(root.operands))]
    else:
        leaves = [root]
    if call_target(root) == "AsyncCollectiveStart":  # (source, what is gathered, state)
        return one.arrays[1].hbm_bytes
    if len(leaves) != len(one.arrays):  # a tuple within
        return one.hbm_bytes
    total = 0
    for leaf, array in zip(leaves, one.arrays, strict=True):
        if not array.space:
            total += min(_produced(module, inner, leaf), array.bytes)
    return total


def _produced(module: Module, inner: Computation, leaf: Instruction) -> int:
    """Bytes that making one result of a fusion writes."""
    while leaf.opcode in ("bitcast", "reshape") and leaf.operands:
        leaf = inner.operand(leaf, 0)
    if leaf.opcode == "parameter" or call_target(leaf) == "AsyncCollectiveDone":
        return 0
    if leaf.opcode == "dynamic-update-slice":
        return inner.operand(leaf, 1).arrays[0].bytes
    if is_collective(leaf) and continues_elsewhere(inner, leaf):
        return 0
    if leaf.opcode == "fusion":
        called = module.computations[leaf.called("calls")]
        if called.root.opcode != "tuple":
            return _produced(module, called, called.root)
    if leaf.opcode == "get-tuple-element":
        source = inner.operand(leaf, 0)
        index = int(re.sub(r"\D", "", leaf.attribute("index")) or 0)
        if source.opcode == "fusion":
            called = module.computations[source.called("calls")]
            if called.root.opcode == "tuple":
                return _produced(module, called, called.operand(called.root, index))
    return sum(array.bytes for array in leaf.arrays)
