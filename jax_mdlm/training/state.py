"""The training state: its shapes, its places on the mesh, and how a run begins.

Enters: config, optimizer, layout. Leaves: a `TrainState` that was created sharded (no device ever
holds the whole of it), to `step` and `begin`. With LoRA the adapters are `params` and the base is
`frozen`, in the compute dtype or in int8: gradient, clipping, moments and checkpoints follow
`params`, and nothing else knows of LoRA.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.tree_util import DictKey

from jax_mdlm import model
from jax_mdlm.config import Config, ModelConfig
from jax_mdlm.containers import Params, SpecialIds, TrainState
from jax_mdlm.model import lora
from jax_mdlm.model.quantized import quantize_table
from jax_mdlm.model.table import check_mesh, param_shardings
from jax_mdlm.model.weights import as_array, is_weight
from jax_mdlm.sharding import Layout


def new_state(
    config: Config,
    optimizer: optax.GradientTransformation,
    seed_key: jax.Array,
    params: Params | None = None,
) -> TrainState:
    """A state at step 0; pure, to be jitted with the shardings of `state_shardings`.

    Parameters are drawn where none are given. With LoRA they are frozen, and what is trained are
    adapters that change nothing yet.
    """
    frozen = None
    if params is None:
        params = model.init(jax.random.fold_in(seed_key, 0), begun_from(config))
        if config.lora.rank:
            params = lora.freeze(params, config.model, config.lora)
    if config.lora.rank:
        frozen = params
        params = lora.draw_adapters(jax.random.fold_in(seed_key, 2), config.model, config.lora)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        key=jax.random.fold_in(seed_key, 1),
        frozen=frozen,
    )


def begun_from(config: Config) -> ModelConfig:
    """The network that a run begins from: with LoRA in the compute dtype, as it is not trained."""
    if not config.lora.rank:
        return config.model
    return dataclasses.replace(config.model, param_dtype=config.model.compute_dtype)


def network_params(
    trained: Params, frozen: Params | None, config: Config, ids: SpecialIds
) -> Params:
    """What the network runs: the trained parameters, or the frozen ones with their adapters.

    Nothing is computed or copied.

    Args:
      trained: `TrainState.params`.
      frozen: `TrainState.frozen`.
      config: The run.
      ids: Special ids.
    """
    if frozen is None:
        return trained
    return lora.join(frozen, trained, scale=config.lora.scale, slack_id=ids.slack)


def abstract_state(
    config: Config, optimizer: optax.GradientTransformation, layout: Layout
) -> TrainState:
    """Shapes, dtypes and shardings of the state; allocates nothing.

    Raises:
      ConfigError: a mesh axis does not divide a parameter's axis.
    """
    check_mesh(config.model, layout)
    shapes = jax.eval_shape(lambda: new_state(config, optimizer, jax.random.key(0)))
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        state_shardings(config, shapes, layout),
    )


def state_shardings(config: Config, shapes: TrainState, layout: Layout) -> TrainState:
    """A sharding per leaf: parameters and moments by the table, everything else whole."""
    frozen, places = None, param_shardings(config.model, layout)
    if config.lora.rank:
        held = lora.abstract_frozen(config.model, config.lora, layout)
        frozen = jax.tree.map(lambda leaf: leaf.sharding, held)
        places = _adapter_shardings(config, layout)
    by_path = _by_path(places)
    sizes = {path: leaf.shape for path, leaf in _by_path(shapes.params).items()}

    def place_of(path: tuple[Any, ...], moment: Any) -> NamedSharding:
        # A moment stands under its parameter's path in whatever the optimizer keeps. Factored ones
        # have an axis less, and are small enough to be whole everywhere.
        names = tuple(entry.key for entry in path if isinstance(entry, DictKey))
        for start in range(len(names)):
            if sizes.get(names[start:]) == moment.shape:
                return by_path[names[start:]]
        return layout.replicated

    moments = jax.tree_util.tree_map_with_path(place_of, shapes.opt_state)
    whole: Any = layout.replicated
    return TrainState(step=whole, params=places, opt_state=moments, key=whole, frozen=frozen)


def _adapter_shardings(config: Config, layout: Layout) -> Params:
    axes = lora.adapter_axes(config.model, config.lora)
    return jax.tree.map(layout.sharding, axes, is_leaf=lambda leaf: isinstance(leaf, tuple))


def _by_path(tree: Params) -> dict[tuple[str, ...], Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(entry.key for entry in path): leaf for path, leaf in leaves}


def create_state(
    config: Config,
    optimizer: optax.GradientTransformation,
    layout: Layout,
    params: Params | None = None,
) -> TrainState:
    """A state at step 0, every array made in its place.

    Args:
      config: The run.
      optimizer: Its optimizer.
      layout: Mesh and rules.
      params: What to begin from, in place; their buffers become the state's (donated). None: drawn;
        the drawn values do not depend on the mesh (JAX's partitionable threefry).
    """
    abstract = abstract_state(config, optimizer, layout)
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    create = jax.jit(
        lambda key, params: new_state(config, optimizer, key, params),
        out_shardings=places,
        donate_argnums=1,
    )
    return create(jax.random.key(config.train.seed), params)


def with_slack_row(params: Params, how: str, ids: SpecialIds, seed: int) -> Params:
    """Sets the slack token's row in parameters that come from elsewhere.

    A quantised table gets a quantised row.

    The slack token may never have been trained there: `mean` gives it the mean embedding (and
    mean head column), `normal` a random one of the same scale, `keep` leaves it.

    Args:
      params: In their places; donated.
      how: What `init.slack_row` says, `auto` decided.
      ids: Special ids.
      seed: Of the run.
    """
    if how == "keep":
        return params

    def adopt(params: Params, key: jax.Array) -> Params:
        return params | {
            "wte": _slack_row(params["wte"], 0, how, ids.slack, key),
            "head": _slack_row(params["head"], 1, how, ids.slack, jax.random.fold_in(key, 1)),
        }

    places = jax.tree.map(lambda leaf: leaf.sharding, params)
    adopt = jax.jit(adopt, out_shardings=places, donate_argnums=0)
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return adopt(params, jax.random.fold_in(key, 2**31 - 1))


def _slack_row(weight: Any, axis: int, how: str, slack_id: int, key: jax.Array) -> Any:
    others = jnp.arange(weight.shape[axis]) != slack_id
    others = jnp.expand_dims(others, 1 - axis)
    array = as_array(weight, jnp.float32)
    mean = jnp.mean(array, axis=axis, where=others, keepdims=True)
    row = mean
    if how == "normal":
        spread = jnp.std(array, axis=axis, where=others, keepdims=True)
        row = mean + spread * jax.random.normal(key, mean.shape)
    new = quantize_table(row) if is_weight(weight) else row.astype(weight.dtype)
    return jax.tree.map(functools.partial(jnp.where, others), weight, new)
