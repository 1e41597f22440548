"""FLOPs of matrix products in compiled HLO: dots, convolutions (what a TPU makes of dots), kernels.

A product-and-sum counts 2. Element-wise work is left out: it does not use the matrix units.
"""

import dataclasses
import math
import re

import numpy as np

from jax_mdlm.planning.hlo import Computation, Instruction, Module

# Products of splash attention's kernels, each 2 * B * N * L * S * H FLOPs: scores and values
# forward; scores again, dV, dP and dK; scores again, dP and dQ (a fused kernel does those five).
_SPLASH = {"fwd": 2, "dkv": 4, "dq": 3}
_SPLASH_FUSED = 5
# XLA's passes over bfloat16 pieces for a product of float32 (`operand_precision`).
_PASSES = {"high": 3, "highest": 6}


@dataclasses.dataclass(frozen=True)
class Product:
    """One matrix product.

    Attributes:
      flops: Of one execution.
      passes: Passes of the matrix unit: float32 at the highest precision takes 6.
      attention: Scores, values, or their gradients; else a product with parameters.
    """

    flops: int
    passes: int = 1
    attention: bool = False


def product_of(module: Module, computation: Computation, one: Instruction) -> Product | None:
    """What an instruction multiplies; None where it does not."""
    if one.opcode == "dot":
        flops = _dot(computation, one)
    elif one.opcode == "convolution":
        flops = _convolution(computation, one)
    elif one.opcode == "custom-call" and "tpu_custom_call" in one.attributes:
        return _kernel(module, computation, one)
    else:
        return None
    names = module.functions_of(one)
    attention = any("attention" in name or "attend" in name for name in names)
    return Product(flops, _passes(computation, one), attention)


def _dot(computation: Computation, one: Instruction) -> int:
    left = computation.operand(one, 0).arrays[0].dims
    contracted = _numbers(one.attribute("lhs_contracting_dims"))
    return 2 * math.prod(one.arrays[0].dims) * math.prod(left[axis] for axis in contracted)


def _convolution(computation: Computation, one: Instruction) -> int:
    """Products of a convolution, those with padding or between dilated elements left out.

    A TPU writes batches of a dot as spatial axes of a dilated, strided convolution, of which all
    but one product per element fall into the gaps.
    """
    labels = one.attribute("dim_labels")
    left_labels, right_labels, result_labels = re.split(r"_|->", labels)
    left = computation.operand(one, 0).arrays[0].dims
    right = computation.operand(one, 1).arrays[0].dims
    result = one.arrays[0].dims
    pairs = 1
    for axis, window in enumerate(_windows(one, sum(label.isdigit() for label in left_labels))):
        pairs *= _pairs(
            left[left_labels.index(str(axis))],
            result[result_labels.index(str(axis))],
            window,
        )
    groups = int(one.attribute("batch_group_count") or 1)
    inputs, outputs = right[right_labels.index("i")], right[right_labels.index("o")]
    return 2 * (left[left_labels.index("b")] // groups) * inputs * outputs * pairs


@dataclasses.dataclass(frozen=True)
class _Window:
    size: int
    stride: int = 1
    low: int = 0  # padding before the first element; negative cuts
    base: int = 1  # dilation of the input
    spread: int = 1  # dilation of the window


def _windows(one: Instruction, axes: int) -> list[_Window]:
    text = one.attribute("window").strip("{}")
    fields = dict(field.split("=") for field in text.split() if "=" in field)

    def per_axis(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * axes

    return [
        _Window(int(size), int(stride), int(pad.split("_")[0]), int(base), int(spread))
        for size, stride, pad, base, spread in zip(
            per_axis("size", "1"),
            per_axis("stride", "1"),
            per_axis("pad", "0_0"),
            per_axis("lhs_dilate", "1"),
            per_axis("rhs_dilate", "1"),
            strict=True,
        )
    ]


def _pairs(inputs: int, outputs: int, window: _Window) -> int:
    """(output, window) places that meet an element of the input, along one axis."""
    place = np.arange(outputs)[:, None] * window.stride - window.low
    place = place + np.arange(window.size) * window.spread
    meets = (place >= 0) & (place <= (inputs - 1) * window.base) & (place % window.base == 0)
    return int(meets.sum())


def _kernel(module: Module, computation: Computation, one: Instruction) -> Product | None:
    """A Pallas kernel: splash attention by its shapes, others by their own estimate."""
    found = re.search(r"splash_(?:mha|mqa)_(fwd|dkv|dq)", one.op_name or one.name)
    if not found:
        estimate = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', one.attributes)
        return Product(int(estimate[1]), attention="attention" in one.op_name) if estimate else None
    products = _SPLASH[found[1]]
    if found[1] == "dkv" and not _has_kernel(module, "_dq"):
        products = _SPLASH_FUSED
    operands = [computation.operand(one, i).arrays[0] for i in range(len(one.operands))]
    # Masks come first, as integers; then queries [.., N, L, H] and keys [.., K, S, H].
    queries, keys = [array for array in operands if array.dtype[0] in "fb"][:2]
    return Product(products * 2 * math.prod(queries.dims) * keys.dims[-2], attention=True)


def _has_kernel(module: Module, name: str) -> bool:
    return any(
        one.opcode == "custom-call" and f"splash_mha{name}" in (one.op_name or one.name)
        for computation in module.computations.values()
        for one in computation.instructions.values()
    )


def _passes(computation: Computation, one: Instruction) -> int:
    precision = one.attribute("operand_precision").strip("{}").split(",")
    wide = all(computation.operand(one, index).arrays[0].dtype == "f32" for index in range(2))
    return max((_PASSES.get(name, 1) for name in precision), default=1) if wide else 1


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
