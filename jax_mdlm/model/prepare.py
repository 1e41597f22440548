"""Parameters in the form in which sampling reads them."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import ParamRow, Params
from jax_mdlm.model import table
from jax_mdlm.model.int8 import quantize
from jax_mdlm.model.weights import is_weight
from jax_mdlm.model.window import unstack
from jax_mdlm.sharding import Layout


def prepare(
    params: Params,
    config: ModelConfig,
    weights: Literal["full", "int8"] = "full",
    *,
    move_to: jax.sharding.Sharding | None = None,
) -> Params:
    """Casts, quantises, flattens and, on a CPU, unstacks parameters, once before many generations.

    Flattened, a matrix is [I, O]: a TPU would copy the weights of the attention into that form at
    every generation (1.6 GB of LLaDA-8B's int8 weights).

    Args:
      params: As from `init`, any float dtype.
      config: `compute_dtype` is that of the result.
      weights: `int8` quantises matrices and embedding (`model.quantize`).
      move_to: Where the result goes; None = it stays where `params` are.

    Returns:
      Parameters for the sampler. Not for training.
    """
    params = _flatten(
        quantize(params, config) if weights == "int8" else cast(params, config), config
    )
    if move_to is not None:
        params = jax.device_put(params, move_to)
    on_cpu = all(
        device.platform == "cpu" for device in jax.tree.leaves(params)[0].sharding.device_set
    )
    return unstack(params) if on_cpu else params


def cast(params: Params, config: ModelConfig) -> Params:
    """Parameters in the compute dtype; int8 weights and their scales stay."""
    dtype = jnp.dtype(config.compute_dtype)
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype),
        params,
        is_leaf=is_weight,
    )


@functools.partial(jax.jit, static_argnames="config")
def _flatten(params: Params, config: ModelConfig) -> Params:
    leaves = {}
    for row in table.rows(config):
        weight = table.at(params, row.path)
        stacked = int(row.axes[0] == "layers")
        leaves[row.path] = (
            table.matrix(weight, row.num_inputs, stacked) if row.num_inputs else weight
        )
    return table.tree(leaves)


def abstract_prepared(
    config: ModelConfig, weights: Literal["full", "int8"], layout: Layout
) -> Params:
    """Shapes, dtypes and placements of prepared (stacked) parameters; allocates nothing."""

    raw = {
        row.path: jax.ShapeDtypeStruct(table.shape(row, config), config.compute_dtype)
        for row in table.rows(config)
    }
    shapes = jax.eval_shape(
        lambda params: _flatten(quantize(params, config) if weights == "int8" else params, config),
        table.tree(raw),
    )

    def place(row: ParamRow, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        # The scale of a channel has one element where the weight has its inputs.
        axes = (axis if n > 1 else None for axis, n in zip(_axes(row), leaf.shape, strict=True))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout.sharding(tuple(axes)))

    leaves = {
        row.path: jax.tree.map(functools.partial(place, row), table.at(shapes, row.path))
        for row in table.rows(config)
    }
    return table.tree(leaves)


def _axes(row: ParamRow) -> tuple[str, ...]:
    """Logical axes of a flattened parameter: the first of its inputs and of its outputs."""
    if not row.num_inputs:
        return row.axes
    stacked = int(row.axes[0] == "layers")
    return (*row.axes[:stacked], row.axes[stacked], row.axes[stacked + row.num_inputs])
