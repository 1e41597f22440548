"""Noise: how much of a row is masked.

Enters: a key. Leaves: a level per row and the mask probability that belongs to it, which
`corrupt` draws with and whose inverse weighs the cross-entropy.
"""

import jax
import jax.numpy as jnp


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

    Example:
      >>> mask_probability(jnp.array([0.0, 0.5, 1.0]), floor=0.01)
      Array([0.01 , 0.505, 1.   ], dtype=float32)
    """
    return (1.0 - floor) * level + floor
