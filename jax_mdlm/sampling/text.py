"""What a commit does to the text around it: equal neighbours merge, a terminator closes the row.

Enters: the canvas after a call's commits. Leaves: the canvas that the next call reads.
"""

import jax
import jax.numpy as jnp

from jax_mdlm.containers import SpecialIds


def merge(canvas: jax.Array, committed: jax.Array, ids: SpecialIds) -> jax.Array:
    """Turns the right-hand one of two equal committed neighbours into slack, all pairs at once.

    The sampler's half of the collapse map `merge` (arXiv 2601.22947). Both slots must have been
    committed: the prompt's edge and text that the caller gave are out of its reach. Special tokens
    repeat lawfully. A run `a a a` becomes `a - -`; the number of masks does not change.

    Args:
      canvas: int32 [B, L].
      committed: bool [B, L]; slots that the sampler fixed.
      ids: Special tokens.

    Returns:
      int32 [B, L].
    """
    special = jnp.asarray(ids.special, jnp.int32)
    left, right = canvas[:, :-1], canvas[:, 1:]
    repeated = (left == right) & committed[:, :-1] & committed[:, 1:] & ~jnp.isin(right, special)
    return canvas.at[:, 1:].set(jnp.where(repeated, ids.slack, right))


def stop_at_terminator(
    canvas: jax.Array, committed: jax.Array, given: jax.Array, ids: SpecialIds
) -> jax.Array:
    """Fills a row with EOS once its text is complete.

    Complete: a terminator or EOS was committed, no slot before it is masked, and no text of the
    caller stands after it. What stands after it is cut from the text anyway; filling it spares the
    calls.

    Args:
      canvas: int32 [B, L].
      committed: bool [B, L]; slots that the sampler fixed.
      given: bool [B, L]; slots that the caller gave.
      ids: Special tokens.

    Returns:
      int32 [B, L].
    """
    masked = canvas == ids.mask
    closes = closings(canvas, committed, ids) & ~_before_given(given)
    complete = jnp.any(closes & (jnp.cumsum(masked, axis=1) == 0), axis=1, keepdims=True)
    return jnp.where(masked & complete, ids.eos, canvas)


def closings(canvas: jax.Array, committed: jax.Array, ids: SpecialIds) -> jax.Array:
    """bool [B, L]; committed slots that close a text: terminator or EOS."""
    return committed & ((canvas == ids.terminator) | (canvas == ids.eos))


def _before_given(given: jax.Array) -> jax.Array:
    """bool [B, L]; slots at or before the last one that the caller gave."""
    return jnp.flip(jnp.cumsum(jnp.flip(given, axis=1), axis=1) > 0, axis=1)
