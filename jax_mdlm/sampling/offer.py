"""What the denoiser offers at each slot of a block: a token, its confidence, and its logits.

Enters: logits. Leaves: an `Offer`, from which a strategy (`commit`) takes some. Temperature, top-k
and top-p act on the draw of the token; confidence and scores are of the distribution as predicted.
"""

import flax.struct
import jax
import jax.numpy as jnp

from jax_mdlm.containers import SpecialIds


@flax.struct.dataclass
class Offer:
    """One token per slot.

    Attributes:
      tokens: int32 [B, W]; the token that a commit would write; never the mask.
      confidence: float32 [B, W]; its probability.
      logits: float32 [B, W, V]; what confidence and scores are read from.
      last: bool [B, W]; slots that wait until nothing else is left (`defer_eos`).
      mask_id: The mask's column in `logits`; static.
    """

    tokens: jax.Array
    confidence: jax.Array
    logits: jax.Array
    last: jax.Array
    mask_id: int = flax.struct.field(pytree_node=False)


def propose(
    logits: jax.Array,
    key: jax.Array,
    ids: SpecialIds,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    suppress_eos: bool = False,
    defer_eos: bool = False,
) -> Offer:
    """Draws a token for each slot and reads off its probability.

    `token = argmax(keep_top(logits / T) + gumbel)`, the Gumbel-max form of LLaDA's
    `exp(logits) / (-log u)^T`, in log space and float32; at T = 0 the argmax alone. The confidence
    is `softmax(logits)[token]`, untempered, as in LLaDA's `generate.py`.

    The mask is never offered: written, it would leave the slot masked, and the quota would end a
    block with masks in it. LLaDA does not rule this out; a trained model gives the mask no mass.
    The confidence keeps the mask in its sum, so that nothing else moves.

    `suppress_eos` and `defer_eos` are LLaDA's `logits_eos_inf` and `confidence_eos_eot_inf` with
    one meaning at every temperature (there the second spares EOS as soon as there is noise).

    Args:
      logits: float32 [B, W, V].
      key: Typed PRNG keys [B].
      ids: Special tokens; static.
      temperature: T, 0 or more; static.
      top_k: Tokens that are kept; 0 = all. Static, no effect at T = 0.
      top_p: Share of the probability that is kept; 1 = all. Static, no effect at T = 0.
      suppress_eos: EOS has no probability at all; static.
      defer_eos: Confidence is measured without EOS and terminator, and a slot that offers one of
        them is `last`; static.

    Returns:
      The offer of each slot.
    """
    columns = jnp.arange(logits.shape[-1])
    if suppress_eos:
        logits = jnp.where(columns == ids.eos, -jnp.inf, logits)
    allowed = jnp.where(columns == ids.mask, -jnp.inf, logits)
    if temperature > 0:
        noise = jax.vmap(lambda k: jax.random.gumbel(k, logits.shape[1:], jnp.float32))(key)
        allowed = keep_top(allowed / temperature, top_k=top_k, top_p=top_p) + noise
    tokens = _argmax(allowed)
    last = jnp.zeros(tokens.shape, bool)
    if defer_eos:
        closing = (columns == ids.eos) | (columns == ids.terminator)
        logits = jnp.where(closing, -jnp.inf, logits)
        last = (tokens == ids.eos) | (tokens == ids.terminator)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    # Relative to the largest: beside a log-sum-exp of 100, float32 cannot tell 0.99999 from 1.
    top = jnp.max(logits, axis=-1)
    confidence = jnp.exp(chosen - top) / jnp.sum(jnp.exp(logits - top[..., None]), axis=-1)
    return Offer(tokens, confidence, logits, last, mask_id=ids.mask)


def _argmax(logits: jax.Array) -> jax.Array:
    """The most probable token of each slot, the lower id on a tie; int32 [B, W].

    Two plain reductions: XLA on CPU runs `argmax`, a reduction of pairs, ten times slower.
    """
    best = jnp.max(logits, axis=-1, keepdims=True)
    num_tokens = logits.shape[-1]
    columns = jnp.arange(num_tokens, dtype=jnp.int32)
    first = jnp.min(jnp.where(logits >= best, columns, num_tokens), axis=-1)
    return jnp.minimum(first, num_tokens - 1)  # NaN is not >= NaN


def keep_top(logits: jax.Array, *, top_k: int, top_p: float) -> jax.Array:
    """Rules out all but the most probable tokens: top-k, then nucleus (arXiv 1904.09751).

    Args:
      logits: float32 [..., V], tempered.
      top_k: Tokens that stay, with all that tie with the last of them; 0 = all.
      top_p: The smallest set whose mass under softmax reaches this stays, with all that tie with
        its least probable token; 1 = all.

    Returns:
      float32 [..., V]; -inf where ruled out.
    """
    if 0 < top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if top_p < 1:
        falling = -jnp.sort(-logits, axis=-1)
        mass = jax.nn.softmax(falling, axis=-1)
        before = jnp.cumsum(mass, axis=-1) - mass  # of all that are more probable
        count = jnp.sum(before < top_p, axis=-1, keepdims=True)
        least = jnp.take_along_axis(falling, count - 1, axis=-1)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits
