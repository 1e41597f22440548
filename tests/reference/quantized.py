"""Quantisation by its definition, in NumPy: what the values stand for."""

import numpy as np

from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import Params
from jax_mdlm.model import table


def rounded(params: Params, config: ModelConfig, weights: str = "int8", group: int = 128) -> Params:
    """float32 parameters with matrices and embedding as the nearest multiples of their scales."""
    leaves = {}
    for row in table.rows(config):
        weight = np.asarray(table.at(params, row.path), np.float32)
        if row.is_vector:
            leaves[row.path] = weight
            continue
        if not row.num_inputs:
            leaves[row.path] = nearest(weight, 127, axis=-1)
            continue
        flat = weight.reshape(table.flat_shape(row, weight.shape))
        inputs = flat.shape[-2]
        size, most = inputs, 127
        if weights == "int4" and row.stacked:
            most = 7
            size = max(n for n in range(2, min(group, inputs) + 1, 2) if inputs % n == 0)
        groups = flat.reshape(*flat.shape[:-2], inputs // size, size, flat.shape[-1])
        leaves[row.path] = nearest(groups, most, axis=-2).reshape(weight.shape)
    return table.tree(leaves)


def nearest(weight: np.ndarray, most: int, axis: int) -> np.ndarray:
    """The nearest of `2 most + 1` steps, which reach to the largest along an axis."""
    step = np.abs(weight).max(axis=axis, keepdims=True) / np.float32(most)
    step[step == 0] = 1
    return np.round(weight / step) * step
