"""The optimizers, on LLaDA's schedule: warm-up, constant rate, linear end; decay by row.

Enters: `OptimizerConfig`. Leaves: an optax transformation and its schedule.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jax_mdlm.config import OptimizerConfig
from jax_mdlm.containers import ParamRow, Params, SpecialIds
from jax_mdlm.model import table


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The rate at each step: 0 -> rate over the warm-up, constant, linear to the final rate.

    Args:
      config: Rates, warm-up and the share of the steps that falls.
      steps: Length of the run; warm-up and fall are cut to it.
    """
    warmup = min(config.warmup_steps, steps)
    fall = min(round(config.decay_share * steps), steps - warmup)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, config.learning_rate, max(warmup, 1)),
            optax.constant_schedule(config.learning_rate),
            optax.linear_schedule(config.learning_rate, config.final_learning_rate, max(fall, 1)),
        ],
        [warmup, steps - fall],
    )


def make_optimizer(
    config: OptimizerConfig, steps: int, ids: SpecialIds
) -> optax.GradientTransformation:
    """Clipping by global norm, the direction of `optimizer.name`, decoupled decay, schedule.

    Norms are not decayed, nor is the embedding row of `<SLACK>`: it is new, often drawn from few
    examples, and decay would pull it to zero before it has learned anything. With LoRA the same
    holds for the adapters of that row; those of matrices are decayed.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(
        clip,
        _DIRECTIONS[config.name](config),
        _decay(config.weight_decay, ids.slack),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(
        b1=config.beta1, b2=config.beta2, eps=config.eps, mu_dtype=jnp.dtype(config.moment_dtype)
    )


def _adafactor(config: OptimizerConfig) -> optax.GradientTransformation:
    """Second moments as an outer product, no first moment (arXiv 1804.04235).

    Updates have the scale of Adam's, so the rate means the same: they are not multiplied by the
    size of their parameters.
    """
    return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))


def _muon(config: OptimizerConfig) -> optax.GradientTransformation:
    """Orthogonalised momentum for the matrices of the blocks, Adam for all else.

    Updates are scaled to the root mean square that Adam's have, 0.2 (arXiv 2502.16982), so the rate
    and decay mean the same.
    """
    matrices = {row.path: row for row in table.ROWS if "layers" in row.axes and row.num_inputs}

    def row_of(path: tuple[Any, ...]) -> ParamRow | None:
        return matrices.get(tuple(entry.key for entry in path))

    def map_rows(function: Callable[..., Any], tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, x: function(row_of(path), x), tree)

    def dimensions(row: ParamRow, x: jax.Array) -> optax.contrib.MuonDimensionNumbers:
        outputs = 1 + row.num_inputs  # after the stacked layers
        return optax.contrib.MuonDimensionNumbers(range(1, outputs), range(outputs, x.ndim))

    def to_size(row: ParamRow, x: jax.Array) -> jax.Array:
        inputs, outputs = table.matrix(x, row.num_inputs, stacked=1).shape[1:]
        return 0.2 * math.sqrt(max(inputs, outputs)) * x

    axes: Any = functools.partial(map_rows, dimensions)
    muon = optax.chain(
        optax.contrib.scale_by_muon(
            beta=config.beta2,
            mu_dtype=jnp.dtype(config.moment_dtype),
            weight_dimension_numbers=axes,
        ),
        optax.stateless(lambda updates, _: map_rows(to_size, updates)),
    )

    def which(params: Any) -> Any:
        return map_rows(lambda row, _: "muon" if row else "adam", params)

    return optax.partition({"muon": muon, "adam": _adam(config)}, which)


_DIRECTIONS = {"adamw": _adam, "adafactor": _adafactor, "muon": _muon}


def decay_share(slack_id: int, params: Params) -> Params:
    """Per parameter or adapter, what multiplies its weight decay: 0 or 1, by row of the table."""
    vectors = {row.path for row in table.ROWS if sum(axis != "layers" for axis in row.axes) == 1}

    def of(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        names = tuple(entry.key for entry in path)
        if names == ("wte",):
            return (jnp.arange(x.shape[0]) != slack_id)[:, None].astype(x.dtype)
        is_kept = names in vectors or names[-1] == "slack"
        return jnp.zeros((), x.dtype) if is_kept else jnp.ones((), x.dtype)

    return jax.tree_util.tree_map_with_path(of, params)


def _decay(weight_decay: float, slack_id: int) -> optax.GradientTransformation:
    # optax.add_decayed_weights masks whole arrays; the slack row is a part of one.
    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        assert params is not None
        decayed = jax.tree.map(
            lambda share, u, p: u + weight_decay * share * p,
            decay_share(slack_id, params),
            updates,
            params,
        )
        return decayed, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)  # pyright: ignore[reportArgumentType]
