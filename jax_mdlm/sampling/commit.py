"""Which masked slots are fixed by a model call: scores, counts, and what a strategy may do besides.

Enters: the offers of one block (`offer`). Leaves: the slots that are committed. `loop` asks a
`Strategy` once per model call and merges afterwards; all that differs from strategy to strategy is
a method here. `NAMED` holds those that `sample.strategy` can name; `options_from` takes any other.
"""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jax_mdlm.config import ConfigError, SampleConfig
from jax_mdlm.containers import SampleState
from jax_mdlm.sampling.offer import Offer


class Call(NamedTuple):
    """Where in the generation a model call stands.

    Attributes:
      keys: Typed PRNG keys [B], of the row and the call; nothing else draws from them.
      start: int32 []; the block's first column.
      end: int32 []; the column after the last slot that exists so far.
      left: int32 []; calls that the block may still take, this one included.
      width: W, slots of a block.
      mask: The mask's id.
      own: `SampleState.own`, the strategy's.
    """

    keys: jax.Array
    start: jax.Array
    end: jax.Array
    left: jax.Array
    width: int
    mask: int
    own: Any


class Strategy(abc.ABC):
    """How a block is worked off: a frozen dataclass (hashable, static under `jit`).

    A strategy says `score` and `select`. All else has a default: a block takes a call per slot at
    most, what is committed stays, and nothing is kept from call to call.

    Examples:
      >>> import jax_mdlm
      >>> @dataclasses.dataclass(frozen=True)
      ... class FromTheLeft(Quota):
      ...     def score(self, offer, key):
      ...         return -jnp.arange(offer.tokens.shape[1]) + jnp.zeros(offer.tokens.shape)
      >>> model = jax_mdlm.load("runs/quickstart", length=4, block_length=4, steps=4)
      >>> model.with_settings(strategy=FromTheLeft()).answers(["ab"])[0].committed_at.tolist()
      [0, 1, 2, 3]
    """

    # --- which slots are fixed ---

    @abc.abstractmethod
    def score(self, offer: Offer, key: jax.Array) -> jax.Array:
        """float32 [B, W]; higher commits first. `key`: typed keys [B]."""

    @abc.abstractmethod
    def select(self, offer: Offer, score: jax.Array, masked: jax.Array, call: Call) -> jax.Array:
        """bool [B, W], true only where `masked` [B, W]: the slots that this call fixes."""

    def keep(self, masked: jax.Array, committed: jax.Array, call: Call) -> jax.Array:
        """int32 [B, 1]: slots that are committed after a call that may take commits back.

        Asked instead of `select` under `sample.remask`, where `refuse` lets that pass: one more
        than before. `masked` and `committed`: bool [B, W].
        """
        del masked, call
        return 1 + jnp.sum(committed, axis=1, keepdims=True)

    # --- how long that takes ---

    def calls(self, quota: int, width: int) -> int:
        """Model calls that a block of `width` commits may take, given its share of the steps."""
        del quota
        return width

    def commits(self, width: int) -> int:
        """Commits that a block of `width` slots takes at most."""
        return width

    @property
    def lingers(self) -> bool:
        """Whether a block that its first call filled gets one more call, which changes nothing.

        Fast-dLLM's loops with a cache look for masks only after a call on a window. Without early
        stop the sampler makes the published code's calls, one by one.
        """
        return False

    # --- what is asked before the first call ---

    def refuse(self, settings: SampleConfig) -> None:
        """Raises ConfigError where the strategy cannot work with the settings."""
        if settings.remask:
            raise ConfigError(
                "sample.remask counts what stays committed and needs a quota; set sample.threshold "
                "and sample.factor to 0, or sample.remask to false"
            )

    @property
    def draws(self) -> bool:
        """Whether the same offers may be committed in another order with another key."""
        return False

    takes_strength: ClassVar[bool] = False  # whether `begin` reads it

    # --- what is kept and done besides ---

    def begin(self, rows: int, strength: jax.Array) -> Any:
        """`SampleState.own` before the first call: any tree of arrays.

        Args:
          rows: B.
          strength: float32 [] in [0, 1]; traced, so that another one is the same program.
        """
        del rows, strength

    def write(
        self, slots: jax.Array, tokens: jax.Array, chosen: jax.Array, masked: jax.Array, call: Call
    ) -> jax.Array:
        """The block after its commits, int32 [B, W].

        Args:
          slots: int32 [B, W]; before.
          tokens: int32 [B, W]; what is offered.
          chosen: bool [B, W]; from `select`.
          masked: bool [B, W]; before.
          call: The call.
        """
        del masked, call
        return jnp.where(chosen, tokens, slots)

    def after(self, state: SampleState, call: Call) -> SampleState:
        """The state after the call's commits, merges and stops; here `own` is kept up to date."""
        del call
        return state


class Quota(Strategy):
    """Commits by count: LLaDA's `masked // steps`, the remainder in the first steps.

    With `n` masked slots and `r` calls left, `ceil(n / r)` commits at every call give just that
    schedule, and the loop need not carry it. `r <= width`, so that no call commits nothing.
    """

    def select(self, offer: Offer, score: jax.Array, masked: jax.Array, call: Call) -> jax.Array:
        """The `ceil(n / r)` best slots of each row."""
        place = ranks(jnp.where(masked, score, -jnp.inf))
        return masked & (place < _quota(masked, call.left))

    def keep(self, masked: jax.Array, committed: jax.Array, call: Call) -> jax.Array:
        """Keeps as many more as `select` fixes."""
        return _quota(masked, call.left) + jnp.sum(committed, axis=1, keepdims=True)

    def calls(self, quota: int, width: int) -> int:
        """The block's share of the steps; more calls than slots would commit nothing."""
        return min(quota, width)

    def refuse(self, settings: SampleConfig) -> None:
        """A quota goes with every setting."""


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

    @property
    def draws(self) -> bool:
        """It does."""
        return True


class _Confident(Strategy):
    """Commits what is confident enough, and in any case the best slot of `order`."""

    order: Strategy

    @abc.abstractmethod
    def confident(self, offer: Offer, masked: jax.Array) -> jax.Array:
        """bool [B, W]; read only where `masked` [B, W]."""

    def score(self, offer: Offer, key: jax.Array) -> jax.Array:
        """The score of `order`."""
        return self.order.score(offer, key)

    def select(self, offer: Offer, score: jax.Array, masked: jax.Array, call: Call) -> jax.Array:
        """The confident slots and the best one."""
        first = ranks(jnp.where(masked, score, -jnp.inf)) == 0
        return masked & (first | self.confident(offer, masked))

    @property
    def lingers(self) -> bool:
        """It does, as in Fast-dLLM's loops."""
        return True

    @property
    def draws(self) -> bool:
        """It does where `order` does."""
        return self.order.draws


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


NAMED: dict[str, Strategy] = {
    "confidence": ByConfidence(),
    "entropy": ByEntropy(),
    "margin": ByMargin(),
    "random": AtRandom(),
}


def strategy_of(settings: SampleConfig) -> Strategy:
    """The strategy that `strategy`, `threshold` and `factor` of the settings name."""
    order = NAMED[settings.strategy]
    if settings.threshold > 0:
        return AboveThreshold(settings.threshold, order=order)
    if settings.factor > 0:
        return ByFactor(settings.factor, order=order)
    return order


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


def _quota(masked: jax.Array, left: jax.Array) -> jax.Array:
    """Slots that this call fixes in each row, int32 [B, 1]: `ceil(masked / left)`."""
    count = jnp.sum(masked, axis=1, keepdims=True)
    return (count + left - 1) // left
