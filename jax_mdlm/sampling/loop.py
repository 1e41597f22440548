"""The sampler's loop: one `lax.while_loop` over `SampleState`, the same for every denoiser.

Enters: a canvas (from `canvas`) and `denoise(canvas, start) -> logits of one block`, which
`generate` makes of the model. Leaves: the final state. One pass of `body` is one model call:
propose, commit, merge, stop, advance. The oracle in the tests is a plain Python loop.

Key schedule: call `s` of block `b` of a row has the key `k = fold_in(row_key, b * W + s)`,
with W the block length (no block takes more calls). Gumbel noise is drawn from `fold_in(k, 0)`,
the random order from `fold_in(k, 1)`. No other row and no count of the batch's calls enters: a
row's tokens do not depend on what is decoded beside it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jax_mdlm.containers import SampleState, SpecialIds
from jax_mdlm.sampling.commit import propose
from jax_mdlm.sampling.options import SampleOptions

# int32 [B, L] canvas, int32 [] first slot of the block -> float32 [B, block, V]
Denoise = Callable[[jax.Array, jax.Array], jax.Array]


def init_state(canvas: jax.Array, key: jax.Array, options: SampleOptions) -> SampleState:
    """The state before the first call.

    Args:
      canvas: int32 [B, L]; the last `options.length` slots are the response.
      key: Typed PRNG keys [B].
      options: Static.

    Returns:
      No call made; a row without a mask in its response (one that fills up a batch) is done.
    """
    zero = jnp.zeros((), jnp.int32)
    return SampleState(
        step=zero,
        block=zero,
        block_step=zero,
        canvas=canvas,
        committed_at=jnp.full(canvas.shape, -1, jnp.int32),
        done=~jnp.any(_masked(canvas, options), axis=1),
        key=key,
    )


def decode(denoise: Denoise, state: SampleState, options: SampleOptions) -> SampleState:
    """Fills the masks of the response, block after block, until every row is done.

    Args:
      denoise: Logits of the block that starts at a slot, given the whole canvas; called once a
        pass, traced once.
      state: From `init_state`.
      options: Static.

    Returns:
      The state after the last call.
    """
    ids = options.ids
    prompt = state.canvas.shape[1] - options.length

    def cond(state: SampleState) -> jax.Array:
        return (state.block < options.num_blocks) & ~jnp.all(state.done)

    def body(state: SampleState) -> SampleState:
        start = prompt + state.block * options.block_length
        canvas = _commit(state, denoise(state.canvas, start), start, options)
        committed = (state.committed_at >= 0) | (canvas != state.canvas)
        if options.collapse == "merge":
            canvas = merge(canvas, committed, ids)
        if options.early_stop:
            canvas = stop_at_terminator(canvas, committed, ids)
        fixed = (state.canvas == ids.mask) & (canvas != ids.mask)
        committed_at = jnp.where(fixed, state.step, state.committed_at)
        return _advance(state, canvas, committed_at, options)

    return jax.lax.while_loop(cond, body, state)


def _commit(
    state: SampleState, logits: jax.Array, start: jax.Array, options: SampleOptions
) -> jax.Array:
    """The canvas after this call's commits; `logits` float32 [B, W, V] of the block at `start`."""
    keys = _fold_in(state.key, state.block * options.block_length + state.block_step)
    offer = propose(
        logits,
        _fold_in(keys, 0),
        temperature=options.temperature,
        mask_id=options.ids.mask,
    )
    current = jax.lax.dynamic_slice_in_dim(state.canvas, start, options.block_length, axis=1)
    chosen = options.strategy.select(
        offer,
        options.strategy.score(offer, _fold_in(keys, 1)),
        current == options.ids.mask,
        block_calls(state.block, options) - state.block_step,
    )
    current = jnp.where(chosen, offer.tokens, current)
    return jax.lax.dynamic_update_slice_in_dim(state.canvas, current, start, axis=1)


def _advance(
    state: SampleState, canvas: jax.Array, committed_at: jax.Array, options: SampleOptions
) -> SampleState:
    """Counts the call; the block is over when no row has a mask in it, or its calls are spent."""
    left = _masked(canvas, options)  # [B, length]
    width = options.block_length
    in_block = jax.lax.dynamic_slice_in_dim(left, state.block * width, width, axis=1)
    spent = state.block_step + 1 >= block_calls(state.block, options)
    over = spent | ~jnp.any(in_block)
    return SampleState(
        step=state.step + 1,
        block=state.block + over,
        block_step=jnp.where(over, 0, state.block_step + 1),
        canvas=canvas,
        committed_at=committed_at,
        done=~jnp.any(left, axis=1),
        key=state.key,
    )


def block_calls(block: jax.Array, options: SampleOptions) -> jax.Array:
    """Model calls that block number `block` [] may take, int32 []."""
    share, rest = divmod(options.steps, options.num_blocks)
    quota_calls = share + (block < rest).astype(jnp.int32)
    return options.strategy.calls(quota_calls, options.block_length)


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


def stop_at_terminator(canvas: jax.Array, committed: jax.Array, ids: SpecialIds) -> jax.Array:
    """Fills a row with EOS once its text is complete.

    Complete: a terminator or EOS was committed and no slot before it is masked. What stands behind
    it is cut from the text anyway; filling it spares the calls.

    Args:
      canvas: int32 [B, L].
      committed: bool [B, L]; slots that the sampler fixed.
      ids: Special tokens.

    Returns:
      int32 [B, L].
    """
    masked = canvas == ids.mask
    closes = committed & ((canvas == ids.terminator) | (canvas == ids.eos))
    complete = jnp.any(closes & (jnp.cumsum(masked, axis=1) == 0), axis=1, keepdims=True)
    return jnp.where(masked & complete, ids.eos, canvas)


def _masked(canvas: jax.Array, options: SampleOptions) -> jax.Array:
    return canvas[:, canvas.shape[1] - options.length :] == options.ids.mask  # [B, length]


def _fold_in(keys: jax.Array, number: int | jax.Array) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
