"""Which masked slots are fixed by a model call: scores and counts.

Enters: the offers of one block (`offer`). Leaves: the slots that are committed. `loop` calls this
once per model call and merges afterwards; `options` names the strategy.
A strategy is a frozen dataclass with three methods:

  score(offer, key)                      how early a slot should be fixed; higher commits first
  select(offer, score, masked, left)     the slots that are fixed by this call
  calls(quota_calls, width)              model calls a block may take
"""

import abc
import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from jax_mdlm.sampling.offer import Offer


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


class Quota:
    """Commits by count: LLaDA's `masked // steps`, the remainder in the first steps.

    With `n` masked slots and `r` calls left, `ceil(n / r)` commits at every call give just that
    schedule, and the loop need not carry it. `r <= width`, so that no call commits nothing.
    """

    def select(
        self, offer: Offer, score: jax.Array, masked: jax.Array, calls_left: jax.Array
    ) -> jax.Array:
        """The `count` best slots of each row."""
        place = ranks(jnp.where(masked, score, -jnp.inf))
        return masked & (place < self.count(masked, calls_left))

    def count(self, masked: jax.Array, calls_left: jax.Array) -> jax.Array:
        """Slots that this call fixes in each row, int32 [B, 1]: `ceil(masked / calls_left)`."""
        count = jnp.sum(masked, axis=1, keepdims=True)
        return (count + calls_left - 1) // calls_left

    def calls(self, quota_calls: jax.Array, width: int) -> jax.Array:
        """The block's share of the steps; more calls than slots would commit nothing."""
        return jnp.minimum(quota_calls, width)


@dataclasses.dataclass(frozen=True)
class ByConfidence(Quota):
    """The most probable token first (LLaDA's "low_confidence" remasking, arXiv 2502.09992)."""

    def score(self, offer: Offer, key: jax.Array) -> jax.Array:
        """The probability of the offered token."""
        return offer.confidence


@dataclasses.dataclass(frozen=True)
class ByEntropy(Quota):
    """The slot with the least entropy of its prediction first (nats)."""

    def score(self, offer: Offer, key: jax.Array) -> jax.Array:
        """Minus the entropy, `sum p log p`."""
        log_p = jax.nn.log_softmax(offer.logits)
        # p log p -> 0: a logit of -inf (a token ruled out) would give 0 * -inf = nan.
        return jnp.sum(jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * log_p, 0.0), axis=-1)


@dataclasses.dataclass(frozen=True)
class ByMargin(Quota):
    """The largest gap between the two most probable tokens first."""

    def score(self, offer: Offer, key: jax.Array) -> jax.Array:
        """`p1 - p2`, the mask left out."""
        p = jax.nn.softmax(offer.logits).at[..., offer.mask_id].set(0.0)
        best = jax.lax.top_k(p, 2)[0]
        return best[..., 0] - best[..., 1]


@dataclasses.dataclass(frozen=True)
class AtRandom(Quota):
    """Slots in random order (LLaDA's "random" remasking)."""

    def score(self, offer: Offer, key: jax.Array) -> jax.Array:
        """Uniform on [0, 1), drawn anew at each call."""
        width = offer.tokens.shape[1]
        return jax.vmap(lambda k: jax.random.uniform(k, (width,)))(key)


class _Confident(abc.ABC):
    """Commits what is confident enough, and in any case the best slot of `order`."""

    order: Strategy

    @abc.abstractmethod
    def confident(self, offer: Offer, masked: jax.Array) -> jax.Array:
        """bool [B, W]; read only where `masked` [B, W]."""

    def score(self, offer: Offer, key: jax.Array) -> jax.Array:
        """The score of `order`."""
        return self.order.score(offer, key)

    def select(
        self, offer: Offer, score: jax.Array, masked: jax.Array, calls_left: jax.Array
    ) -> jax.Array:
        """The confident slots and the best one."""
        first = ranks(jnp.where(masked, score, -jnp.inf)) == 0
        return masked & (first | self.confident(offer, masked))

    def calls(self, quota_calls: jax.Array, width: int) -> jax.Array:
        """One call per slot at most."""
        return jnp.asarray(width, jnp.int32)


@dataclasses.dataclass(frozen=True)
class AboveThreshold(_Confident):
    """Every slot whose token is at least this probable, and at least one per row and call.

    The parallel decoding of Fast-dLLM (arXiv 2505.22618). `steps` plays no part: a block takes
    between one call and as many as it has slots.

    Attributes:
      threshold: Probability in (0, 1].
      order: Whose score picks the one slot where none is confident enough.
    """

    threshold: float
    order: Strategy = ByConfidence()

    def confident(self, offer: Offer, masked: jax.Array) -> jax.Array:
        """The slots at the threshold or above."""
        return offer.confidence >= self.threshold


@dataclasses.dataclass(frozen=True)
class ByFactor(_Confident):
    """As many slots as are confident together, and at least one per row and call.

    Fast-dLLM's second rule (arXiv 2505.22618, theorem 1): the n most confident slots are committed
    while `(n + 1) (1 - confidence_n) <= factor`. The published code also commits the last masked
    slot of a block when only that one fails the test; this one does not. `steps` plays no part.

    Attributes:
      factor: Above 0; larger commits more.
      order: Whose score picks the one slot that is committed in any case.
    """

    factor: float
    order: Strategy = ByConfidence()

    def confident(self, offer: Offer, masked: jax.Array) -> jax.Array:
        """The longest run of confident slots from the top."""
        place = ranks(jnp.where(masked, offer.confidence, -jnp.inf))  # n - 1
        enough = offer.confidence >= 1 - self.factor / (place + 2)
        width = masked.shape[1]
        run = jnp.min(jnp.where(masked & ~enough, place, width), axis=1, keepdims=True)
        return place < run


def remask(
    keep: jax.Array, score: jax.Array, recorded: jax.Array, masked: jax.Array, committed: jax.Array
) -> jax.Array:
    """Which slots of a block are committed after a call that may take commits back.

    Running-confidence remasking (arXiv 2508.13148, its published code): a committed slot competes
    with the score it had when it was committed, a masked one with that of its present offer.

    Args:
      keep: int32 [B, 1]; slots that are committed after the call.
      score: float32 [B, W]; of the present offers.
      recorded: float32 [B, W]; of the commits.
      masked: bool [B, W].
      committed: bool [B, W].

    Returns:
      bool [B, W]; slots to be committed. Committed ones outside it become masks again.
    """
    running = jnp.where(masked, score, jnp.where(committed, recorded, -jnp.inf))
    return (masked | committed) & (ranks(running) < keep)


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
