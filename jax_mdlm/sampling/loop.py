"""The sampler's loop: `lax.while_loop` over `SampleState`, the same for every denoiser.

Enters: a canvas (from `canvas`) and a `Denoise`, which `denoise` makes of the model. Leaves: the
final state. One model call: propose, commit, merge, stop, advance. The oracle in the tests is a
plain Python loop.

Key schedule: call `s` of block `b` of a row has the key `k = fold_in(row_key, b * W + s)`,
with W the commits that a block takes at most. Gumbel noise is drawn from `fold_in(k, 0)`, the
strategy's score from `fold_in(k, 1)`, what else it does from `fold_in(k, 2)`. No other row and no
count of the batch's calls enters: a row's tokens do not depend on what is decoded beside it.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jax_mdlm.containers import Region, SampleState, SpecialIds, Trace
from jax_mdlm.sampling.commit import Call, remask
from jax_mdlm.sampling.offer import propose
from jax_mdlm.sampling.options import SampleOptions


class Denoise(Protocol):
    """What the loop asks of a model. Columns are int32 [], traced; logits float32 [B, W, V]."""

    def full(self, canvas: jax.Array, start: jax.Array, end: jax.Array) -> tuple[jax.Array, Any]:
        """Logits of the block at column `start`, with the slots before column `end` attended to.

        Returns:
          Logits, and what later calls of the block may use: any tree; None without a cache.
        """
        ...

    def cached(self, cache: Any, canvas: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
        """Logits of the block, with what an earlier `full` of the same block left."""
        ...


def init_state(
    canvas: jax.Array,
    given: jax.Array,
    key: jax.Array,
    options: SampleOptions,
    region: Region,
    cache: Any = None,
    strength: jax.Array | None = None,
) -> SampleState:
    """The state before the first call.

    Args:
      canvas: int32 [B, L].
      given: bool [B, L]; text of the caller: not masked, not padding.
      key: Typed PRNG keys [B].
      options: Static.
      region: What is decoded; static.
      cache: Zeros in the form of what `Denoise.full` returns.
      strength: float32 [] in [0, 1]; for the strategy. None = 0.

    Returns:
      No call made; a row without a mask in its region (one that fills up a batch) is done.
    """
    zero = jnp.zeros((), jnp.int32)
    strength = jnp.zeros((), jnp.float32) if strength is None else strength
    trace = None
    if options.trace:
        calls, rows = max_calls(options, region), canvas.shape[0]
        frames = jnp.zeros((calls + 1, rows, region.limit), jnp.int32)
        trace = Trace(
            frames=frames.at[0].set(region.of(canvas)),
            confidence=jnp.zeros((calls, rows, region.limit), jnp.float32),
        )
    return SampleState(
        step=zero,
        block=zero,
        block_step=zero,
        canvas=canvas,
        given=given,
        committed_at=jnp.full(canvas.shape, -1, jnp.int32),
        done=~jnp.any(region.of(canvas) == options.ids.mask, axis=1),
        key=key,
        region=region,
        score=jnp.zeros(canvas.shape, jnp.float32) if options.settings.remask else None,
        cache=cache,
        trace=trace,
        own=options.strategy.begin(canvas.shape[0], strength),
    )


def decode(
    denoise: Denoise,
    state: SampleState,
    options: SampleOptions,
    until: jax.Array | None = None,
) -> SampleState:
    """Fills the masks of the region, block after block, until every row is done.

    With a cache the loop is two loops in turn: calls on the whole canvas while one is due (one
    call), calls on a window until the next is due. A conditional instead would copy the cache.

    Args:
      denoise: The model.
      state: From `init_state`, or what an earlier `decode` returned.
      options: Static.
      until: int32 []; calls after which to return in any case. None = run to the end.

    Returns:
      The state after the last call.
    """
    num_blocks = state.region.limit // options.settings.block_length

    def unfinished(state: SampleState) -> jax.Array:
        more = (state.block < num_blocks) & ~jnp.all(state.done)
        return more if until is None else more & (state.step < until)

    def full(state: SampleState) -> SampleState:
        logits, cache = denoise.full(state.canvas, *_columns(state, options))
        return _call(dataclasses.replace(state, cache=cache), logits, options)

    def cached(state: SampleState) -> SampleState:
        logits = denoise.cached(state.cache, state.canvas, *_columns(state, options))
        return _call(state, logits, options)

    def due(state: SampleState) -> jax.Array:
        if not options.settings.refresh:
            return state.block_step == 0
        return state.block_step % options.settings.refresh == 0

    def both(state: SampleState) -> SampleState:
        state = jax.lax.while_loop(lambda s: unfinished(s) & due(s), full, state)
        return jax.lax.while_loop(lambda s: unfinished(s) & ~due(s), cached, state)

    return jax.lax.while_loop(unfinished, full if options.settings.cache == "none" else both, state)


def _columns(state: SampleState, options: SampleOptions) -> tuple[jax.Array, jax.Array]:
    """First column of the block; the column after the last slot that exists so far."""
    region = state.region
    start = region.start + state.block * options.settings.block_length
    end = jnp.maximum(region.start + region.length, start + options.settings.block_length)
    return start, end


def _call(state: SampleState, logits: jax.Array, options: SampleOptions) -> SampleState:
    """What follows a model call; `logits` float32 [B, W, V] of the state's block."""
    ids, settings, strategy = options.ids, options.settings, options.strategy
    start, end = _columns(state, options)
    keys = _fold_in(state.key, state.block * _slots_to_fill(options) + state.block_step)
    call = Call(
        keys=_fold_in(keys, 2),
        start=start,
        end=end,
        left=block_calls(state.block, options) - state.block_step,
        width=settings.block_length,
        mask=ids.mask,
        own=state.own,
    )

    def block(slots: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(slots, start, settings.block_length, axis=1)

    def with_block(slots: jax.Array, values: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(slots, values, start, axis=1)

    # --- what the model offers ---
    offer = propose(
        logits,
        _fold_in(keys, 0),
        ids,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        suppress_eos=settings.suppress_eos,
        defer_eos=settings.defer_eos,
    )

    # --- which slots are fixed, or masked again ---
    current = block(state.canvas)
    masked = current == ids.mask
    score = strategy.score(offer, _fold_in(keys, 1))
    score = jnp.where(offer.last, -1e30, score)
    recorded = state.score
    if recorded is None:
        chosen = strategy.select(offer, score, masked, call)
        current = strategy.write(current, offer.tokens, chosen, masked, call)
    else:
        committed = block(state.committed_at) >= 0
        keep = strategy.keep(masked, committed, call)
        chosen = remask(keep, score, block(recorded), masked, committed)
        current = jnp.where(masked & chosen, offer.tokens, current)
        current = jnp.where(committed & ~chosen, ids.mask, current)
        recorded = with_block(recorded, jnp.where(masked & chosen, score, block(recorded)))

    # --- what follows from it: merges, the end of a row ---
    canvas = written = with_block(state.canvas, current)
    committed = (state.committed_at >= 0) | (canvas != state.canvas)
    if options.collapse == "merge":
        canvas = merge(canvas, committed, ids)
    if settings.early_stop:
        canvas = stop_at_terminator(canvas, committed, state.given, ids)

    # --- what is written down ---
    was_masked = (state.canvas == ids.mask) | (written == ids.mask)  # also: taken back just now
    fixed = was_masked & (canvas != ids.mask)
    committed_at = jnp.where(fixed, state.step, state.committed_at)
    committed_at = jnp.where(canvas == ids.mask, -1, committed_at)
    state = dataclasses.replace(
        state,
        canvas=canvas,
        committed_at=committed_at,
        score=recorded,
        trace=_traced(state, canvas, with_block, masked, offer.confidence),
    )
    return _advance(strategy.after(state, call), options)


def _advance(state: SampleState, options: SampleOptions) -> SampleState:
    """Counts the call; the block is over when no row has a mask in it, or its calls are spent."""
    width, ids, region = options.settings.block_length, options.ids, state.region
    start, _ = _columns(state, options)
    in_block = jax.lax.dynamic_slice_in_dim(state.canvas, start, width, axis=1)
    spent = state.block_step + 1 >= block_calls(state.block, options)
    filled = ~jnp.any(in_block == ids.mask)
    if _lingers(options):
        filled &= state.block_step > 0
    over = spent | filled
    canvas = state.canvas
    if region.limit > region.length:
        canvas = jnp.where(over, _append(state, state.block + 1, options), canvas)
    # Between gaps there may be blocks without a mask in any row: they need no call.
    number = jnp.arange(region.limit // width)
    left = (region.of(canvas) == ids.mask).reshape(-1, len(number), width)
    ahead = jnp.any(left, axis=(0, 2)) & (number > state.block)
    following = jnp.min(jnp.where(ahead, number, len(number)))
    return dataclasses.replace(
        state,
        step=state.step + 1,
        block=jnp.where(over, following, state.block),
        block_step=jnp.where(over, 0, state.block_step + 1),
        canvas=canvas,
        done=~jnp.any(region.of(canvas) == ids.mask, axis=1) & (over | (not _lingers(options))),
    )


def _lingers(options: SampleOptions) -> bool:
    """Whether `Strategy.lingers` matters."""
    settings = options.settings
    return settings.cache != "none" and not settings.early_stop and options.strategy.lingers


def _append(state: SampleState, block: jax.Array, options: SampleOptions) -> jax.Array:
    """The canvas with masks in block number `block` [], in rows whose text is not closed yet."""
    region = state.region
    first = region.start + block * options.settings.block_length
    column = jnp.arange(state.canvas.shape[1])
    appended = (column >= first) & (column < first + options.settings.block_length)
    hidden = (column >= region.start + region.length) & (column < region.start + region.limit)
    # A row that only fills the batch up has committed nothing and stays closed.
    is_open = jnp.any(state.committed_at >= 0, axis=1) & ~jnp.any(
        closings(state.canvas, state.committed_at >= 0, options.ids), axis=1
    )
    return jnp.where(is_open[:, None] & appended & hidden, options.ids.mask, state.canvas)


def block_calls(block: jax.Array, options: SampleOptions) -> jax.Array:
    """Model calls that block number `block` [] may take, int32 []."""
    longer, others, rest = _calls(options)
    return jnp.where(block < rest, longer, others).astype(jnp.int32)


def max_calls(options: SampleOptions, region: Region) -> int:
    """The most model calls that a generation can take."""
    longer, others, rest = _calls(options)
    blocks = region.limit // options.settings.block_length
    return min(rest, blocks) * longer + max(blocks - rest, 0) * others


def _calls(options: SampleOptions) -> tuple[int, int, int]:
    """Calls of the first blocks, which share the remainder of the steps; of the others; `rest`."""
    share, rest = divmod(options.settings.steps, options.num_blocks)
    longer, others = (
        options.strategy.calls(quota, _slots_to_fill(options)) for quota in (share + 1, share)
    )
    return longer, others, rest


def _slots_to_fill(options: SampleOptions) -> int:
    return options.strategy.commits(options.settings.block_length)


def _traced(
    state: SampleState,
    canvas: jax.Array,
    with_block: Any,
    masked: jax.Array,
    confidence: jax.Array,
) -> Trace | None:
    if state.trace is None:
        return None
    region = state.region
    offered = jnp.zeros(canvas.shape, jnp.float32)
    offered = with_block(offered, jnp.where(masked, confidence, 0.0))
    return Trace(
        frames=state.trace.frames.at[state.step + 1].set(region.of(canvas)),
        confidence=state.trace.confidence.at[state.step].set(region.of(offered)),
    )


def _fold_in(keys: jax.Array, number: int | jax.Array) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


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
