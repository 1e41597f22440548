"""Which masked slots are fixed by a model call: scores, counts, and the commit itself.

Enters: the logits of one block. Leaves: a proposal per slot and the slots that are committed.
`loop` calls this once per model call and merges afterwards; `options` names the strategy.
A strategy is a frozen dataclass with three methods:

  score(offer, key)                      how early a slot should be fixed; higher commits first
  select(offer, score, masked, left)     the slots that are fixed by this call
  calls(quota_calls, width)              model calls a block may take
"""

import dataclasses
from typing import Protocol

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Offer:
    """What the denoiser offers at each slot of the block.

    Attributes:
      tokens: int32 [B, W]; the token that a commit would write; never the mask.
      confidence: float32 [B, W]; its probability.
      logits: float32 [B, W, V]; as the denoiser gave them.
      mask_id: The mask's column in `logits`; static.
    """

    tokens: jax.Array
    confidence: jax.Array
    logits: jax.Array
    mask_id: int = flax.struct.field(pytree_node=False)


class Strategy(Protocol):
    """How a block is worked off; see the module docstring."""

    def score(self, offer: Offer, key: jax.Array) -> jax.Array:
        """float32 [B, W]; higher commits first. `key`: typed keys [B]."""
        ...

    def select(
        self, offer: Offer, score: jax.Array, masked: jax.Array, calls_left: jax.Array
    ) -> jax.Array:
        """bool [B, W], true only where `masked` [B, W]; `calls_left` [] counts this call."""
        ...

    def calls(self, quota_calls: jax.Array, width: int) -> jax.Array:
        """int32 []; model calls a block of `width` slots may take, given its share of steps."""
        ...


class _Quota:
    """Commits by count: LLaDA's `masked // steps`, the remainder in the first steps.

    With `n` masked slots and `r` calls left, `ceil(n / r)` commits at every call give just that
    schedule, and the loop need not carry it. `r <= width`, so that no call commits nothing.
    """

    def select(
        self, offer: Offer, score: jax.Array, masked: jax.Array, calls_left: jax.Array
    ) -> jax.Array:
        """The `ceil(masked / calls_left)` best slots of each row."""
        count = jnp.sum(masked, axis=1, keepdims=True)
        quota = (count + calls_left - 1) // calls_left  # [B, 1]
        return masked & (ranks(jnp.where(masked, score, -jnp.inf)) < quota)

    def calls(self, quota_calls: jax.Array, width: int) -> jax.Array:
        """The block's share of the steps; more calls than slots would commit nothing."""
        return jnp.minimum(quota_calls, width)


@dataclasses.dataclass(frozen=True)
class ByConfidence(_Quota):
    """The most probable token first (LLaDA's "low_confidence" remasking, arXiv 2502.09992)."""

    def score(self, offer: Offer, key: jax.Array) -> jax.Array:
        """The probability of the offered token."""
        return offer.confidence


@dataclasses.dataclass(frozen=True)
class ByEntropy(_Quota):
    """The slot with the least entropy of its prediction first (nats)."""

    def score(self, offer: Offer, key: jax.Array) -> jax.Array:
        """Minus the entropy, `sum p log p`."""
        log_p = jax.nn.log_softmax(offer.logits)
        # p log p -> 0: a logit of -inf (a token ruled out) would give 0 * -inf = nan.
        return jnp.sum(jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * log_p, 0.0), axis=-1)


@dataclasses.dataclass(frozen=True)
class ByMargin(_Quota):
    """The largest gap between the two most probable tokens first."""

    def score(self, offer: Offer, key: jax.Array) -> jax.Array:
        """`p1 - p2`, the mask left out."""
        p = jax.nn.softmax(offer.logits).at[..., offer.mask_id].set(0.0)
        best = jax.lax.top_k(p, 2)[0]
        return best[..., 0] - best[..., 1]


@dataclasses.dataclass(frozen=True)
class AtRandom(_Quota):
    """Slots in random order (LLaDA's "random" remasking)."""

    def score(self, offer: Offer, key: jax.Array) -> jax.Array:
        """Uniform on [0, 1), drawn anew at each call."""
        width = offer.tokens.shape[1]
        return jax.vmap(lambda k: jax.random.uniform(k, (width,)))(key)


@dataclasses.dataclass(frozen=True)
class AboveThreshold:
    """Every slot whose token is at least this probable, and at least one per row and call.

    The parallel decoding of Fast-dLLM (arXiv 2505.22618). `steps` plays no part: a block takes
    between one call and as many as it has slots.

    Attributes:
      threshold: Probability in (0, 1].
      order: Whose score picks the one slot where none is confident enough.
    """

    threshold: float
    order: Strategy = ByConfidence()

    def score(self, offer: Offer, key: jax.Array) -> jax.Array:
        """The score of `order`."""
        return self.order.score(offer, key)

    def select(
        self, offer: Offer, score: jax.Array, masked: jax.Array, calls_left: jax.Array
    ) -> jax.Array:
        """The confident slots and the best one."""
        first = ranks(jnp.where(masked, score, -jnp.inf)) == 0
        return masked & (first | (offer.confidence >= self.threshold))

    def calls(self, quota_calls: jax.Array, width: int) -> jax.Array:
        """One call per slot at most."""
        return jnp.asarray(width, jnp.int32)


def propose(logits: jax.Array, key: jax.Array, *, temperature: float, mask_id: int) -> Offer:
    """Draws a token for each slot and reads off its probability.

    `token = argmax(logits / T + gumbel)`, the Gumbel-max form of LLaDA's
    `exp(logits) / (-log u)^T`, in log space and float32; at T = 0 the argmax alone. The confidence
    is `softmax(logits)[token]`, untempered, as in LLaDA's `generate.py`.

    The mask is never offered: written, it would leave the slot masked, and the quota would end a
    block with masks in it. LLaDA does not rule this out; a trained model gives the mask no mass.
    The confidence keeps the mask in its sum, so that nothing else moves.

    Args:
      logits: float32 [B, W, V].
      key: Typed PRNG keys [B].
      temperature: T, 0 or more; static.
      mask_id: Id of the mask; static.

    Returns:
      The offer of each slot.
    """
    allowed = logits.at[..., mask_id].set(-jnp.inf)
    if temperature > 0:
        noise = jax.vmap(lambda k: jax.random.gumbel(k, logits.shape[1:], jnp.float32))(key)
        allowed = allowed / temperature + noise
    tokens = jnp.argmax(allowed, axis=-1).astype(jnp.int32)  # the lower id on a tie
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    confidence = jnp.exp(chosen - jax.nn.logsumexp(logits, axis=-1))
    return Offer(tokens=tokens, confidence=confidence, logits=logits, mask_id=mask_id)


def ranks(score: jax.Array) -> jax.Array:
    """The place of each slot in its row when sorted by falling score; 0 is the best.

    Ties go to the lower slot on every backend: the sort is stable (`top_k` needs a static count).

    Args:
      score: float32 [B, W].

    Returns:
      int32 [B, W], a permutation of 0 .. W - 1 in each row.
    """
    order = jnp.argsort(-score, axis=1, stable=True)
    return jnp.argsort(order, axis=1).astype(jnp.int32)
