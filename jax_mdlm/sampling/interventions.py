"""Disturbances of a generation: committed tokens that slip by a slot, on purpose.

The experiment of arXiv 2601.22947: how much is lost when a share of the tokens lands beside its
slot? An intervention is a strategy that wraps another: the inner one chooses the slots, the outer
one disturbs their commit (`write`) or what stands after it (`after`). A displaced token takes a
masked slot and leaves its own masked, so that a call commits as many slots as it would have. The
`strength` is traced, in the state it keeps: a whole curve is one program.

Draws come from the key of the row and call, as all others: a row's text does not depend on what
is decoded beside it.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import flax.struct
import jax
import jax.numpy as jnp

from jax_mdlm.config import ConfigError, SampleConfig
from jax_mdlm.containers import SampleState
from jax_mdlm.sampling.commit import ByConfidence, Call, Strategy
from jax_mdlm.sampling.offer import Offer

Direction = Literal["right", "left", "both"]


@flax.struct.dataclass
class Disturbed:
    """What an intervention keeps from call to call.

    Attributes:
      strength: float32 []; probability in [0, 1].
      rows: bool [B]; rows whose boundary has been shifted.
      inner: What the inner strategy keeps.
    """

    strength: jax.Array
    rows: jax.Array
    inner: Any


@dataclasses.dataclass(frozen=True)
class Intervention(Strategy):
    """Leaves all to the strategy inside.

    Attributes:
      inner: What is disturbed; no intervention itself, since both would draw from one key.
    """

    inner: Strategy = ByConfidence()
    takes_strength: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses an intervention inside."""
        if self.inner.takes_strength:
            raise ConfigError(f"an intervention wraps a plain strategy, got {self.inner}")

    def score(self, offer: Offer, key: jax.Array) -> jax.Array:
        """Asks `inner`."""
        return self.inner.score(offer, key)

    def select(self, offer: Offer, score: jax.Array, masked: jax.Array, call: Call) -> jax.Array:
        """Asks `inner`."""
        return self.inner.select(offer, score, masked, _inner(call))

    def write(
        self, slots: jax.Array, tokens: jax.Array, chosen: jax.Array, masked: jax.Array, call: Call
    ) -> jax.Array:
        """Asks `inner`."""
        return self.inner.write(slots, tokens, chosen, masked, _inner(call))

    def calls(self, quota: int, width: int) -> int:
        """Asks `inner`."""
        return self.inner.calls(quota, width)

    def commits(self, width: int) -> int:
        """Asks `inner`."""
        return self.inner.commits(width)

    @property
    def lingers(self) -> bool:
        """Asks `inner`."""
        return self.inner.lingers

    @property
    def draws(self) -> bool:
        """Asks `inner`."""
        return self.inner.draws

    def begin(self, rows: int, strength: jax.Array) -> Disturbed:
        """No row disturbed."""
        return Disturbed(strength, jnp.zeros(rows, bool), self.inner.begin(rows, strength))

    def after(self, state: SampleState, call: Call) -> SampleState:
        """Keeps what `inner` keeps, inside of its own."""
        found = self.inner.after(dataclasses.replace(state, own=state.own.inner), _inner(call))
        return dataclasses.replace(found, own=dataclasses.replace(state.own, inner=found.own))

    def refuse(self, settings: SampleConfig) -> None:
        """Also remasking."""
        if settings.remask:
            raise ConfigError(
                "an intervention moves what was committed and sample.remask takes commits back; "
                "set sample.remask to false"
            )
        self.inner.refuse(settings)


@dataclasses.dataclass(frozen=True)
class Displace(Intervention):
    """Each newly committed token lands, with probability `strength`, on the neighbouring slot.

    Only if that slot is masked and in the same block, else the token stays. Two tokens never land
    on one slot: a slot that gets a token of its own in the same call is free only if that token
    moves away, in the same direction. The slot that was left stays masked, so a call commits as
    many slots as without intervention, and the loop runs until no mask is left.

    Attributes:
      inner: The strategy that is disturbed.
      direction: Where a token slips to; `both`: a fair coin for each token.
    """

    direction: Direction = "right"

    def write(
        self, slots: jax.Array, tokens: jax.Array, chosen: jax.Array, masked: jax.Array, call: Call
    ) -> jax.Array:
        """Each token where it lands."""
        return carried(
            slots, tokens, self.land(call.keys, call.own.strength, chosen, masked), chosen
        )

    def land(
        self, keys: jax.Array, strength: jax.Array, chosen: jax.Array, masked: jax.Array
    ) -> jax.Array:
        """Where the tokens of a call land.

        Args:
          keys: Typed PRNG keys [B].
          strength: float32 []; probability in [0, 1].
          chosen: bool [B, W]; slots whose tokens are committed by this call, all masked.
          masked: bool [B, W]; before the call.

        Returns:
          int32 [B, W]; 0 = stays, 1 = one slot to the right, -1 = to the left; 0 where not chosen.
        """
        draws = jax.vmap(lambda key: jax.random.uniform(key, (2, chosen.shape[1])))(keys)
        slips = chosen & (draws[:, 0] < strength)
        right = {
            "right": jnp.ones_like(slips),
            "left": jnp.zeros_like(slips),
            "both": draws[:, 1] < 0.5,
        }[self.direction]
        moved_right = _movers(slips & right, chosen, masked, jnp.zeros_like(chosen))
        # From the right, on the mirrored row, around those that have moved already.
        taken = jnp.pad(moved_right, ((0, 0), (1, 0)))[:, :-1]
        mirrored = (jnp.flip(x, axis=1) for x in (slips & ~right, chosen, masked, taken))
        moved_left = jnp.flip(_movers(*mirrored), axis=1)
        return moved_right.astype(jnp.int32) - moved_left.astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Boundary(Intervention):
    """Once, everything from a random slot of the block on moves by one, and a masked slot opens.

    It happens with probability `strength` in each row, after the first call at which a share of
    the row's slots is committed (and a call of the block is left, to fill the new mask). The slot
    is drawn among those of the block that is being decoded; what stood on the last slot of the
    canvas is lost. Rows with text of the caller after the prompt are left alone.

    Attributes:
      inner: The strategy that is disturbed.
      share: Of the row's slots, in [0, 1); 0: after the first call.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        """Refuses what is no share."""
        super().__post_init__()
        if not 0 <= self.share < 1:
            raise ConfigError(f"the share of a boundary must lie in [0, 1), got {self.share}")

    def refuse(self, settings: SampleConfig) -> None:
        """Also a quota without a call for the mask that opens."""
        super().refuse(settings)
        blocks = settings.length // settings.block_length
        if self.inner.calls(settings.steps // blocks, self.commits(settings.block_length)) < 2:
            raise ConfigError(
                "a shifted boundary opens a mask that a later call of the block fills: "
                f"sample.steps must give each of the {blocks} blocks two, got {settings.steps}; "
                "raise sample.steps or sample.block_length"
            )

    def commits(self, width: int) -> int:
        """A shifted boundary opens a mask once more."""
        return self.inner.commits(width) + 1

    def after(self, state: SampleState, call: Call) -> SampleState:
        """Shifts the rows that have come to the boundary's share of the generation."""
        state, region = super().after(state, call), state.region
        committed = jnp.sum(region.of(state.committed_at) >= 0, axis=1)
        due = (committed >= self.share * region.length) & (call.left > 1) & ~state.own.rows
        due &= jnp.any(region.of(state.canvas) == call.mask, axis=1)
        due &= ~jnp.any(region.of(state.given), axis=1)
        drawn, slot = self.draw(call.keys, state.own.strength, call.width)
        at = jnp.where(due & drawn, call.start + slot, state.canvas.shape[1])
        return dataclasses.replace(
            state,
            canvas=shift(state.canvas, at, call.end, call.mask),
            committed_at=shift(state.committed_at, at, call.end, -1),
            own=dataclasses.replace(state.own, rows=state.own.rows | due),
        )

    def draw(self, keys: jax.Array, strength: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
        """Whether a row is disturbed, bool [B], and at which slot of its block, int32 [B].

        Args:
          keys: Typed PRNG keys [B].
          strength: float32 []; probability in [0, 1].
          width: W, slots of a block.
        """

        def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            first, second = jax.random.split(key)
            return (
                jax.random.uniform(first) < strength,
                jax.random.randint(second, (), 0, width),
            )

        return jax.vmap(one)(keys)


def _inner(call: Call) -> Call:
    """The call as the inner strategy sees it."""
    return call._replace(own=call.own.inner)


def carried(slots: jax.Array, values: jax.Array, steps: jax.Array, chosen: jax.Array) -> jax.Array:
    """Writes each chosen slot's value where it lands.

    Args:
      slots: [B, W]; what stands there.
      values: [B, W]; of the chosen slots.
      steps: int32 [B, W]; from `Displace.land`.
      chosen: bool [B, W].

    Returns:
      [B, W]
    """
    for step in (0, 1, -1):
        lands = jnp.roll(chosen & (steps == step), step, axis=1)  # never over the block's edge
        slots = jnp.where(lands, jnp.roll(values, step, axis=1), slots)
    return slots


def shift(slots: jax.Array, at: jax.Array, end: jax.Array, fill: int) -> jax.Array:
    """Moves the slots `at .. end - 1` one to the right; `fill` opens at `at`.

    Args:
      slots: [B, L].
      at: int32 [B]; first column that moves; L or more: nothing does.
      end: int32 []; the column after the last one that exists.
      fill: Value of the slot that opens.
    """
    column = jnp.arange(slots.shape[1])
    first = at[:, None]
    moved = jnp.where((column > first) & (column < end), jnp.roll(slots, 1, axis=1), slots)
    return jnp.where((column == first) & (column < end), fill, moved)


def _movers(slips: jax.Array, chosen: jax.Array, masked: jax.Array, taken: jax.Array) -> jax.Array:
    """Which tokens that want to go one slot to the right can, bool [B, W].

    `moves[i] = slips[i] & masked[i + 1] & ~taken[i + 1] & (~chosen[i + 1] | moves[i + 1])`, from
    the right: the composition of maps `x -> free | (allowed & x)` in one associative scan.
    """

    def after(slots: jax.Array) -> jax.Array:
        return jnp.pad(slots, ((0, 0), (0, 1)))[:, 1:]

    allowed = slips & after(masked & ~taken)
    free = allowed & ~after(chosen)

    def compose(
        later: tuple[jax.Array, jax.Array], earlier: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        return earlier[0] | (earlier[1] & later[0]), earlier[1] & later[1]

    moves, _ = jax.lax.associative_scan(compose, (free, allowed), reverse=True, axis=1)
    return moves
