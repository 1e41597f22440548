"""The form in which the sampler reads parameters, made once before many generations.

Matrices are [I, O]: a TPU would copy the weights of the attention into that form at every
generation (1.6 GB of LLaDA-8B's int8 weights). On a CPU every layer has arrays of its own: XLA
there copies a layer out of stacked arrays at every call, a third of the time of a call on a small
window; elsewhere stacked layers compile in one piece and are not copied.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jax_mdlm.config import ModelConfig, SampleConfig
from jax_mdlm.containers import ParamRow, Params
from jax_mdlm.model import table
from jax_mdlm.model.quantized import Quantized, quantize_matrix, quantize_table
from jax_mdlm.model.weights import is_weight
from jax_mdlm.sharding import Layout

WeightForm = Literal["full", "int8", "int4"]


@dataclasses.dataclass(frozen=True)
class Form:
    """What the sampler's parameters are held in; static under `jit`.

    Attributes:
      weights: `full`: the compute dtype. `int8`: matrices and embedding, a scale a channel. `int4`:
        the matrices of the blocks, a scale a group of inputs; embedding and head in int8.
      group: Inputs of a group; of int4.
    """

    weights: WeightForm = "full"
    group: int = 128

    @classmethod
    def of(cls, settings: SampleConfig) -> "Form":
        """That which settings ask for."""
        return cls(settings.weights, settings.weights_group)

    def quantizer(self, row: ParamRow, *, on_cpu: bool) -> Callable[[jax.Array], Quantized] | None:
        """What makes that form of a flat parameter; None: it is only cast.

        A part will do that holds all inputs of its channels: layers, columns of a matrix, rows of a
        table.
        """
        if self.weights == "full" or row.is_vector:
            return None
        if not row.num_inputs:
            return quantize_table
        if self.weights == "int4" and row.stacked:
            return functools.partial(quantize_matrix, bits=4, group=self.group, packed=on_cpu)
        return functools.partial(quantize_matrix, bits=8)


def prepare(
    params: Params, config: ModelConfig, weights: WeightForm = "full", group: int = 128
) -> Params:
    """Parameters that are in memory, for the sampler; not for training.

    Args:
      params: As from `init`, any float dtype.
      config: `compute_dtype` is that of the result.
      weights: See `Form`.
      group: See `Form`.
    """
    form = Form(weights, group)
    on_cpu = is_cpu(jax.tree.leaves(params)[0].sharding)
    params = hold(params, config, form, on_cpu=on_cpu)
    return unstack(params) if on_cpu else params


@functools.partial(jax.jit, static_argnames=("config", "form", "on_cpu"))
def hold(params: Params, config: ModelConfig, form: Form, *, on_cpu: bool) -> Params:
    """Parameters that are in memory in a form; their layers stay in one array."""

    def one(row: ParamRow) -> Any:
        flat = weight = table.at(params, row.path)
        if row.num_inputs:
            flat = table.matrix(weight, row.num_inputs, int(row.stacked))
        is_changed = is_weight(weight)  # adapters stay as they are
        quantize = None if is_changed else form.quantizer(row, on_cpu=on_cpu)
        return quantize(flat) if quantize else flat.astype(config.compute_dtype)

    return table.tree({row.path: one(row) for row in table.rows(config)})


def cast(params: Params, config: ModelConfig) -> Params:
    """Parameters in the compute dtype; quantised weights and their scales stay."""
    dtype = jnp.dtype(config.compute_dtype)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params, is_leaf=is_weight)


def unstack(params: Params) -> Params:
    """Gives every layer arrays of its own; the layers are copies, for `encode_window` only.

    Args:
      params: As from `model.init`.

    Returns:
      The same, with a list of layers for `blocks`.
    """
    blocks = params["blocks"]
    count = jax.tree.leaves(blocks)[0].shape[0]
    take = jax.jit(lambda blocks, index: jax.tree.map(lambda weight: weight[index], blocks))
    return params | {"blocks": [take(blocks, index) for index in range(count)]}


def abstract_prepared(config: ModelConfig, form: Form, layout: Layout) -> Params:
    """Shapes, dtypes and placements of prepared (stacked) parameters; allocates nothing."""
    return table.tree(
        {row.path: abstract_held(row, config, form, layout) for row in table.rows(config)}
    )


def abstract_held(row: ParamRow, config: ModelConfig, form: Form, layout: Layout) -> Any:
    """One parameter of `abstract_prepared`."""
    flat = table.flat_shape(row, table.shape(row, config))
    held: Any = jax.ShapeDtypeStruct(flat, config.compute_dtype)
    if quantize := form.quantizer(row, on_cpu=is_cpu(layout.replicated)):
        held = jax.eval_shape(quantize, held)

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        # Scales have fewer entries than the weight, perhaps too few to be cut as it is.
        cut = (
            axis if size % layout.parts(axis) == 0 else None
            for axis, size in zip(table.flat_axes(row), leaf.shape, strict=True)
        )
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout.sharding(tuple(cut)))

    return jax.tree.map(place, held)


def is_cpu(sharding: jax.sharding.Sharding) -> bool:
    """Whether all devices of a place are the host's own processor."""
    return all(device.platform == "cpu" for device in sharding.device_set)
