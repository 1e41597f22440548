"""The parameter table: every tensor's path, axes and published name, once.

Init shapes, shardings and the conversion of checkpoints are all read off these rows, and what
checkpoints are restored into before there are parameters. Shapes follow
LLaDA's layout; matrices are stored inputs first (`x @ w`), PyTorch stores them `[out, in]`.
"""

import math
from typing import Any

import jax

from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import ParamRow, Params
from jax_mdlm.sharding import Layout

_BLOCK = "model.transformer.blocks.{layer}."
_TOP = "model.transformer."

_LLADA: tuple[ParamRow, ...] = (
    ParamRow(("wte",), ("vocab", "embed"), _TOP + "wte.weight", 0),
    ParamRow(("blocks", "attn_norm"), ("layers", "embed"), _BLOCK + "attn_norm.weight", 0),
    ParamRow(
        ("blocks", "q_proj"), ("layers", "embed", "heads", "head_dim"), _BLOCK + "q_proj.weight", 1
    ),
    ParamRow(
        ("blocks", "k_proj"),
        ("layers", "embed", "kv_heads", "head_dim"),
        _BLOCK + "k_proj.weight",
        1,
    ),
    ParamRow(
        ("blocks", "v_proj"),
        ("layers", "embed", "kv_heads", "head_dim"),
        _BLOCK + "v_proj.weight",
        1,
    ),
    ParamRow(
        ("blocks", "attn_out"),
        ("layers", "heads", "head_dim", "embed"),
        _BLOCK + "attn_out.weight",
        2,
    ),
    ParamRow(("blocks", "ff_norm"), ("layers", "embed"), _BLOCK + "ff_norm.weight", 0),
    ParamRow(("blocks", "ff_proj"), ("layers", "embed", "mlp"), _BLOCK + "ff_proj.weight", 1),
    ParamRow(("blocks", "up_proj"), ("layers", "embed", "mlp"), _BLOCK + "up_proj.weight", 1),
    ParamRow(("blocks", "ff_out"), ("layers", "mlp", "embed"), _BLOCK + "ff_out.weight", 1),
    ParamRow(("ln_f",), ("embed",), _TOP + "ln_f.weight", 0),
    ParamRow(("head",), ("embed", "vocab"), _TOP + "ff_out.weight", 1),
)


def rows(config: ModelConfig) -> tuple[ParamRow, ...]:
    """The rows of the layout that a config describes, in the order in which they are drawn."""
    return _LLADA


def axis_sizes(config: ModelConfig) -> dict[str, int]:
    """The length of each logical axis of the parameters."""
    return {
        "vocab": config.vocab_size,
        "embed": config.embed,
        "layers": config.layers,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "mlp": config.mlp,
    }


def shape(row: ParamRow, config: ModelConfig) -> tuple[int, ...]:
    """The shape of a row's array, the "layers" axis included."""
    sizes = axis_sizes(config)
    return tuple(sizes[axis] for axis in row.axes)


def matrix(weight: Any, num_inputs: int, stacked: int = 0) -> Any:
    """A parameter as [I, O]; one that has that form already stays as it is.

    Args:
      weight: Array (or quantised weight), its input axes before its output axes.
      num_inputs: Input axes, as in its row.
      stacked: Axes before them that stay: 1 where layers are stacked.

    Returns:
      [I, O], after the stacked axes.
    """
    if len(weight.shape) == stacked + 2:
        return weight
    inputs = stacked + num_inputs
    rows, columns = math.prod(weight.shape[stacked:inputs]), math.prod(weight.shape[inputs:])
    return weight.reshape(*weight.shape[:stacked], rows, columns)


def flat_shape(row: ParamRow, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a row's array, or of a box of it, with matrices as [I, O]."""
    if not row.num_inputs:
        return shape
    first, last = int(row.stacked), row.stacked + row.num_inputs
    return (*shape[:first], math.prod(shape[first:last]), math.prod(shape[last:]))


def flat_axes(row: ParamRow) -> tuple[str, ...]:
    """Logical axes of `flat_shape`: the first of the inputs and of the outputs."""
    if not row.num_inputs:
        return row.axes
    first = int(row.stacked)
    return (*row.axes[: first + 1], row.axes[first + row.num_inputs])


def num_parameters(config: ModelConfig) -> int:
    """Scalars in all tensors; 8,015,581,184 for LLaDA-8B."""
    return sum(math.prod(shape(row, config)) for row in rows(config))


def tree(values: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    """Nests `{path: value}` the way parameters are nested."""
    nested: dict[str, Any] = {}
    for path, value in values.items():
        place = nested
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = value
    return nested


def at(params: dict[str, Any], path: tuple[str, ...]) -> Any:
    """The value at a path of a nested dict."""
    value: Any = params
    for name in path:
        value = value[name]
    return value


def check_mesh(config: ModelConfig, layout: Layout) -> None:
    """Raises ConfigError if a mesh axis does not divide a parameter's axis."""
    for row in rows(config):
        layout.check_divides("model", row.axes, shape(row, config))


def abstract_params(config: ModelConfig, layout: Layout) -> Params:
    """Shapes, dtypes and shardings of the parameters; allocates nothing.

    Raises:
      ConfigError: a mesh axis does not divide a parameter's axis.
    """
    check_mesh(config, layout)
    leaves = {
        row.path: jax.ShapeDtypeStruct(
            shape(row, config), config.param_dtype, sharding=layout.sharding(row.axes)
        )
        for row in rows(config)
    }
    return tree(leaves)


def param_shardings(config: ModelConfig, layout: Layout) -> Params:
    """A sharding per parameter, nested like the parameters."""
    return tree({row.path: layout.sharding(row.axes) for row in rows(config)})
