"""AdamW as LLaDA's fine-tuning uses it: warm-up, constant rate, linear end; decay by row.

Enters: `OptimizerConfig`. Leaves: an optax transformation and its schedule.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jax_mdlm.config import OptimizerConfig
from jax_mdlm.containers import Params, SpecialIds
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
    """Clipping by global norm, Adam moments, decoupled weight decay, schedule.

    Norms are not decayed, nor is the embedding row of `<SLACK>`: it is new, often drawn from few
    examples, and decay would pull it to zero before it has learned anything.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(
        clip,
        optax.scale_by_adam(
            b1=config.beta1,
            b2=config.beta2,
            eps=config.eps,
            mu_dtype=jnp.dtype(config.moment_dtype),
        ),
        _decay(config.weight_decay, ids.slack),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )


def decay_share(slack_id: int) -> Params:
    """Per parameter, what multiplies its weight decay: a function of the array, 0 or 1 by row."""

    def of(row_path: tuple[str, ...], axes: tuple[str, ...]) -> Any:
        if row_path == ("wte",):
            return lambda x: (jnp.arange(x.shape[0]) != slack_id)[:, None].astype(x.dtype)
        is_vector = sum(axis != "layers" for axis in axes) == 1
        return lambda x: jnp.zeros((), x.dtype) if is_vector else jnp.ones((), x.dtype)

    return table.tree({row.path: of(row.path, row.axes) for row in table.ROWS})


def _decay(weight_decay: float, slack_id: int) -> optax.GradientTransformation:
    # optax.add_decayed_weights masks whole arrays; the slack row is a part of one.
    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        assert params is not None
        decayed = jax.tree.map(
            lambda share, u, p: u + weight_decay * share(p) * p,
            decay_share(slack_id),
            updates,
            params,
        )
        return decayed, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)  # pyright: ignore[reportArgumentType]
