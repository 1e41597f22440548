"""CTC through optax: what our lattice is held to, and what the benchmark compares it with."""

import jax
import jax.numpy as jnp
import optax

from jax_mdlm.config import Collapse
from jax_mdlm.diffusion.lattice import IMPOSSIBLE


def optax_ctc(
    log_probs: jax.Array,
    frames: jax.Array,
    labels: jax.Array,
    label_count: jax.Array,
    *,
    collapse: Collapse,
) -> tuple[jax.Array, jax.Array]:
    """`optax.ctc_loss` on the row's own classes, slack as the blank; arguments are `ctc_loss`'s.

    Every alignment emits exactly one class per frame, so the normaliser over these classes that
    optax's `log_softmax` subtracts is the same for all alignments and is added back:
    `nll = ctc_loss(c) - sum_frames logsumexp(c)`. This is exact, for any scores. (A class
    "everything else" with `log(1 - sum p)` gives the same value, but cancels at near-certain
    frames.) `slack_only` is the same call with a frame that is certainly slack after every frame,
    so that nothing merges.

    In float32 the gradient loses accuracy with the length, because it is a difference of log-sums
    that grow with it: relative L2 error against float64, 1.25 frames per label, untrained model:
    0.03% at 512 frames and 1.4% at 2,048.
    """
    exists = jnp.arange(labels.shape[1]) < label_count[:, None]  # [B, U]
    classes = jnp.pad(exists, ((0, 0), (1, 0)), constant_values=True)  # [B, 1 + U]
    possible = frames[:, :, None] & classes[:, None, :]
    scores = jnp.where(possible, jnp.maximum(log_probs, IMPOSSIBLE), IMPOSSIBLE)
    normaliser = jnp.sum(jnp.where(frames, jax.nn.logsumexp(scores, axis=-1), 0.0), axis=-1)
    paddings = 1.0 - frames.astype(scores.dtype)
    if collapse == "slack_only":
        scores, paddings = _interleave_slack(scores, paddings)
    # The lattice multiplies one-hot matrices with log-probabilities: a TPU's default of bfloat16
    # products would round every log-probability to 8 bits.
    with jax.default_matmul_precision("highest"):
        relative = optax.ctc_loss(
            scores,
            paddings,
            _class_indices(labels),
            1.0 - exists.astype(scores.dtype),
            blank_id=0,
            log_epsilon=IMPOSSIBLE,
        )
    nll = relative.astype(scores.dtype) - normaliser  # optax promotes to float64 under x64
    feasible = nll < -0.1 * IMPOSSIBLE
    return jnp.where(feasible, nll, 0.0), feasible


def _class_indices(labels: jax.Array) -> jax.Array:
    """Column of each label, int32 [B, U]; equal neighbours share the first one's.

    The lattice only asks whether neighbours are equal, so equal labels farther apart may keep
    columns of their own (which hold the same numbers).
    """
    index = 1 + jnp.arange(labels.shape[1], dtype=jnp.int32)
    repeats = jnp.pad(labels[:, 1:] == labels[:, :-1], ((0, 0), (1, 0)), constant_values=False)
    return jax.lax.cummax(jnp.where(repeats, 0, index), axis=1)


def _interleave_slack(scores: jax.Array, paddings: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Puts a frame that is certainly slack after every frame: [B, 2L, 1 + U] and [B, 2L]."""
    num_rows, length, num_classes = scores.shape
    slack = jnp.where(jnp.arange(num_classes) == 0, 0.0, IMPOSSIBLE).astype(scores.dtype)
    pairs = jnp.stack([scores, jnp.broadcast_to(slack, scores.shape)], axis=2)
    return pairs.reshape(num_rows, 2 * length, num_classes), jnp.repeat(paddings, 2, axis=1)
