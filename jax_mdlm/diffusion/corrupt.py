"""Corruption: slack, a noise level and masks for a batch of clean rows.

Enters: a `Batch` (from `data`). Leaves: a `Corruption`; its `inputs` are what the denoiser reads,
the rest is what `objectives` needs.
"""

import jax
import jax.numpy as jnp

from jax_mdlm.config import ObjectiveConfig
from jax_mdlm.containers import Batch, Corruption, SpecialIds
from jax_mdlm.diffusion.slack import insert_slack


def corrupt(key: jax.Array, batch: Batch, ids: SpecialIds, config: ObjectiveConfig) -> Corruption:
    """Inserts slack, draws a level per row, and masks response slots independently.

    The forward process of masked diffusion (arXiv 2502.09992): each response slot, end padding
    included, becomes the mask with probability `p = (1 - eps) t + eps`. The prompt stays clean.
    A row may draw no mask; it then adds nothing to the cross-entropy (forcing one would bias the
    estimate that the weight `1 / p` makes unbiased).

    Equal neighbours are separated only where the collapse map merges them.

    Args:
      key: PRNG key of this step.
      batch: Clean rows, [B, L] and [B, U].
      ids: Special token ids.
      config: Objective; reads `slack_max`, `separate_repeats`, `collapse`, `level_floor`.

    Returns:
      The corrupted rows, [B, L] and [B, U].

    Examples:
      >>> row = [[8, 9, 5, 6, 3, 0, 0, 0]]  # two slots of prompt, 5 6 and their terminator, padding
      >>> slots = jnp.arange(8)[None]
      >>> batch = Batch(
      ...     tokens=jnp.array(row),
      ...     response=slots >= 2,
      ...     valid=slots >= 0,
      ...     labels=jnp.array([[5, 6, 3]]),
      ...     label_count=jnp.array([3]),
      ... )
      >>> ids = SpecialIds(mask=1, slack=2, pad=0, eos=0, terminator=3)
      >>> corrupted = corrupt(jax.random.key(0), batch, ids, ObjectiveConfig())
      >>> bool(jnp.all((corrupted.inputs == 1) == corrupted.masked))
      True
    """
    slack_key, level_key, mask_key = jax.random.split(key, 3)
    augmented = insert_slack(
        slack_key,
        batch,
        ids,
        slack_max=config.slack_max,
        separate_repeats=config.separate_repeats and config.collapse == "merge",
    )
    level = sample_levels(level_key, batch.tokens.shape[0])
    probability = mask_probability(level, config.level_floor)
    draws = jax.random.uniform(mask_key, batch.tokens.shape, jnp.float32)
    masked = augmented.response & (draws < probability[:, None])
    return Corruption(
        inputs=jnp.where(masked, ids.mask, augmented.tokens).astype(augmented.tokens.dtype),
        targets=augmented.tokens,
        masked=masked,
        response=augmented.response,
        valid=augmented.valid,
        frames=augmented.frames,
        labels=batch.labels,
        label_count=batch.label_count,
        level=level,
        weight=1.0 / probability,
    )


def sample_levels(key: jax.Array, num_rows: int) -> jax.Array:
    """Draws noise levels `t ~ Uniform(0, 1]`, one stratum of width `1 / num_rows` per row.

    Each level alone is uniform; together they cover (0, 1] evenly, which takes most of the noise
    of `t` out of the batch's loss. The strata are shuffled, so that no place in the batch always
    receives little noise.

    Args:
      key: PRNG key.
      num_rows: B.

    Returns:
      float32 [B], in (0, 1].
    """
    order_key, offset_key = jax.random.split(key)
    stratum = jax.random.permutation(order_key, num_rows)
    offset = 1.0 - jax.random.uniform(offset_key, (num_rows,), jnp.float32)  # (0, 1]
    return (stratum.astype(jnp.float32) + offset) / num_rows


def mask_probability(level: jax.Array, floor: float) -> jax.Array:
    """The linear schedule `p = (1 - eps) t + eps` of LLaDA's training (arXiv 2502.09992).

    Args:
      level: Noise level t, in (0, 1], any shape.
      floor: eps, the smallest probability; it bounds the weight `1 / p`.

    Returns:
      Probability that a slot is masked, in (eps, 1]; the shape of `level`.

    Examples:
      >>> mask_probability(jnp.array([0.0, 0.5, 1.0]), floor=0.01)
      Array([0.01 , 0.505, 1.   ], dtype=float32)
    """
    return (1.0 - floor) * level + floor
