"""LoRA: frozen parameters with a small trained change beside them (arXiv 2106.09685).

Enters: frozen parameters and a tree of adapters. Leaves: one tree that the network runs, in which
`Adapted` and `WithSlack` stand for the matrices and the tables that are changed. Adapters are what
is trained: their tree has only the paths that change,

    blocks/q_proj/{down [layers, I, r], up [layers, r, O]}    wte/slack [D]    head/slack [D]
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jax_mdlm.config import ConfigError, LoraConfig, ModelConfig
from jax_mdlm.containers import ParamRow, Params
from jax_mdlm.model import table
from jax_mdlm.model.form import Form, abstract_prepared, hold
from jax_mdlm.model.layers import linear, lookup, matmul
from jax_mdlm.model.quantized import Quantized
from jax_mdlm.model.weights import Weight, as_array, is_weight
from jax_mdlm.sharding import Layout

# Where the slack token has a row or a column of its own, and the axis of the vocabulary there.
SLACK_AXES = {("wte",): 0, ("head",): 1}


@flax.struct.dataclass
class Adapted(Weight):
    """A frozen matrix with a trained change of low rank: `weight + scale * down up`.

    Attributes:
      weight: [layers, I..., O...] as it is stored, or [I, O] inside a layer; quantised always so.
      down: [layers, I, r]; the input axes flattened.
      up: [layers, r, O]; the output axes flattened.
      scale: alpha / r; static.
    """

    weight: jax.Array | Quantized
    down: jax.Array
    up: jax.Array
    scale: float = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.weight.shape

    def reshape(self, *shape: int) -> "Adapted":
        """The weight in another shape: [..., I, O]; adapter and quantised have it already."""
        weight: Any = self.weight
        return dataclasses.replace(self, weight=weight.reshape(shape))

    def multiply(self, x: jax.Array) -> jax.Array:
        """Both products, in the dtype of `x`; the change is never multiplied out."""
        narrow = self.scale * matmul(x, self.down)  # [B, L, r]
        return linear(x, self.weight) + matmul(narrow, self.up)


@flax.struct.dataclass
class WithSlack(Weight):
    """The frozen embedding or head, whose row (or column) of the slack token is changed.

    Attributes:
      weight: [V, D], perhaps quantised, or [D, V].
      change: float [D]; added to the slack token's row.
      slack_id: That row; static.
      axis: 0 for the embedding, 1 for the head; static.
    """

    weight: jax.Array | Quantized
    change: jax.Array
    slack_id: int = flax.struct.field(pytree_node=False)
    axis: int = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.weight.shape

    def rows(self, tokens: jax.Array) -> jax.Array:
        """Rows of the embedding, [B, L] -> [B, L, D] in the dtype that the weight's have.

        Like `merged` and a look-up, but the change's gradient is a sum over slots, not a scatter
        over the vocabulary.
        """
        found = lookup(self.weight, tokens)
        changed = (found.astype(self.change.dtype) + self.change).astype(found.dtype)
        return jnp.where((tokens == self.slack_id)[..., None], changed, found)

    def merged(self, dtype: jax.typing.DTypeLike) -> jax.Array:
        """The whole table in `dtype`; where nothing changed, the weight itself."""
        is_slack = jnp.arange(self.shape[self.axis]) == self.slack_id
        change = jnp.expand_dims(self.change, self.axis)
        return jnp.where(
            jnp.expand_dims(is_slack, 1 - self.axis),
            (as_array(self.weight, change.dtype) + change).astype(dtype),
            as_array(self.weight, dtype),
        )

    def as_head(self) -> jax.Array:
        """The whole matrix, which is never quantised: the loss takes its columns in parts."""
        weight: Any = self.weight
        return self.merged(weight.dtype)


@dataclasses.dataclass(frozen=True)
class FrozenForm(Form):
    """In what frozen parameters are held beside adapters: as `Form`, but the head is not quantised.

    The loss takes its columns in parts, and every logit is made of them.
    """

    def quantizer(self, row: ParamRow, *, on_cpu: bool) -> Callable[[jax.Array], Quantized] | None:
        """As that of `Form`."""
        return None if row.path == ("head",) else super().quantizer(row, on_cpu=on_cpu)


def frozen_form(config: LoraConfig) -> FrozenForm | None:
    """That which settings ask for; None: as parameters are trained, in the compute dtype."""
    return None if config.base == "full" else FrozenForm(config.base)


def freeze(params: Params, model: ModelConfig, config: LoraConfig) -> Params:
    """Parameters as from `model.init`, in the form in which a run keeps them frozen."""
    form = frozen_form(config)
    # int8 is the same everywhere.
    return params if form is None else hold(params, model, form, on_cpu=False)


def abstract_frozen(model: ModelConfig, config: LoraConfig, layout: Layout) -> Params:
    """Shapes, dtypes and placements of frozen parameters; allocates nothing."""
    form = frozen_form(config)
    if form is not None:
        return abstract_prepared(model, form, layout)
    model = dataclasses.replace(model, param_dtype=model.compute_dtype)
    return table.abstract_params(model, layout)


def target_rows(model: ModelConfig, config: LoraConfig) -> list[ParamRow]:
    """The rows of the parameter table that `lora.targets` names.

    Raises:
      ConfigError: a path that is none of a block's matrices, or no path at all.
    """
    matrices = {
        "/".join(row.path): row
        for row in table.rows(model)
        if row.num_inputs and row.axes[0] == "layers"
    }
    unknown = [path for path in config.targets if path not in matrices]
    if unknown or not config.targets:
        raise ConfigError(
            f"lora.targets must be paths of {', '.join(matrices)}, got "
            f"{', '.join(unknown) or 'none'}; embedding and head are changed in the slack token's "
            "row only (lora.train_slack_row)"
        )
    return [matrices[path] for path in dict.fromkeys(config.targets)]


def adapter_axes(model: ModelConfig, config: LoraConfig) -> Params:
    """The logical axes of every adapter, nested like the adapters; the rank is never cut."""
    axes: dict[tuple[str, ...], Any] = {
        row.path: {
            "down": ("layers", row.axes[1], None),
            "up": ("layers", None, row.axes[1 + row.num_inputs]),
        }
        for row in target_rows(model, config)
    }
    if config.train_slack_row:
        axes |= {path: {"slack": ("embed",)} for path in SLACK_AXES}
    return table.tree(axes)


def draw_adapters(key: jax.Array, model: ModelConfig, config: LoraConfig) -> Params:
    """Adapters that change nothing yet.

    `down` is normal with variance 1 / (3 I), that of the uniform draw in the authors' code (its
    Kaiming initialisation with a = sqrt(5)), so that published learning rates carry over; `up` and
    the slack rows are 0.

    Args:
      key: Typed PRNG key.
      model: Sizes; `param_dtype` is that of the adapters.
      config: Rank and targets.

    Returns:
      Nested dict; see the head of this file.
    """
    dtype = jnp.dtype(model.param_dtype)
    leaves: dict[tuple[str, ...], Any] = {}
    for row in target_rows(model, config):
        shape = jax.eval_shape(
            lambda row=row: table.matrix(jnp.zeros(table.shape(row, model)), row.num_inputs, 1)
        ).shape
        layers, inputs, outputs = shape
        drawn = jax.random.normal(
            jax.random.fold_in(key, table.rows(model).index(row)), (layers, inputs, config.rank)
        )
        leaves[row.path] = {
            "down": ((3 * inputs) ** -0.5 * drawn).astype(dtype),
            "up": jnp.zeros((layers, config.rank, outputs), dtype),
        }
    if config.train_slack_row:
        leaves |= {path: {"slack": jnp.zeros((model.embed,), dtype)} for path in SLACK_AXES}
    return table.tree(leaves)


def join(frozen: Params, adapters: Params, *, scale: float, slack_id: int) -> Params:
    """One tree for the network: frozen arrays, wrapped where an adapter changes them.

    Nothing is computed or copied.

    Args:
      frozen: As from `model.init` or `freeze`.
      adapters: As from `draw_adapters`.
      scale: alpha / r.
      slack_id: Id of the slack token.
    """

    def wrap(path: tuple[Any, ...], weight: jax.Array | Quantized) -> Any:
        names, place = tuple(entry.key for entry in path), adapters
        for name in names:
            place = place.get(name, {})
        if "down" in place:
            return Adapted(weight, place["down"], place["up"], scale)
        if "slack" in place:
            return WithSlack(weight, place["slack"], slack_id, SLACK_AXES[names])
        return weight

    return jax.tree_util.tree_map_with_path(wrap, frozen, is_leaf=is_weight)
