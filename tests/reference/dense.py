"""The objective as one would first write it: all logits at once, optax on all V classes."""

import jax
import jax.numpy as jnp
import optax

from jax_mdlm.config import ObjectiveConfig
from jax_mdlm.containers import Corruption, SpecialIds


def dense_loss(
    hidden: jax.Array,
    head: jax.Array,
    corruption: Corruption,
    ids: SpecialIds,
    config: ObjectiveConfig,
) -> jax.Array:
    """The value of `objective`, for collapse `merge` only.

    Args:
      hidden: float [B, L, D].
      head: float [D, V].
      corruption: Corrupted rows.
      ids: Special token ids.
      config: Objective.

    Returns:
      The loss, float [].
    """
    log_probs = jax.nn.log_softmax(hidden @ head)  # [B, L, V]
    target = jnp.take_along_axis(log_probs, corruption.targets[..., None], axis=-1)[..., 0]
    weighted = jnp.where(corruption.masked, -target * corruption.weight[:, None], 0.0)
    supervised = jnp.sum(corruption.response, axis=1)
    ce = jnp.sum(weighted, axis=1) / jnp.maximum(supervised, 1)
    if config.observed == "clamp":
        own = corruption.targets[..., None] == jnp.arange(head.shape[1])
        log_probs = jnp.where(corruption.masked[..., None], log_probs, jnp.where(own, 0.0, -1e30))
    exists = jnp.arange(corruption.labels.shape[1]) < corruption.label_count[:, None]
    nll = optax.ctc_loss(
        log_probs,
        1.0 - corruption.frames,
        corruption.labels,
        1.0 - exists,
        blank_id=ids.slack,
        log_epsilon=-1e30,
    )
    counted = (nll < 1e29) & (corruption.label_count > 0)
    ctc = jnp.where(counted, nll / jnp.maximum(corruption.label_count, 1), 0.0)
    return jnp.sum(ce) / jnp.maximum(jnp.sum(supervised > 0), 1) + config.ctc_weight * jnp.sum(
        ctc
    ) / jnp.maximum(jnp.sum(counted), 1)
