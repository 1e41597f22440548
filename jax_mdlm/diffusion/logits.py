"""What the loss needs of the logits, without ever holding them: four numbers a slot.

Enters: hidden states [B, L, D] and the head [D, V]. Leaves: log-sum-exp, largest, target's and
slack's logit of every slot, with a gradient.

The head is taken a part of its columns at a time, and a tile of logits [B, L, V / C] is all that
exists. Columns and not slots, because of meshes: where the head is cut over `fsdp` each part is
gathered once, used by all slots and dropped, and the gradient of its columns is complete and
scattered at once. Parts of the slots would want the whole head gathered, and its whole gradient
added up over all devices for every part: 124 GB a chip and step of LLaDA-8B on v5e 4x4, 2.3 s of
links where the matrices need 1.4.

The target's logit comes from the tile's own product: from a gathered column it would differ in
rounding, and `target >= largest` would count right answers as wrong.

The backward pass makes each tile again (one product), and from it the gradients of hidden states
and head (two): nothing else is computed twice.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Fixes the placement of an array by the logical names of its axes; see `sharding.Layout.constrain`.
Constrain = Callable[..., jax.Array]


_NOTHING = -1e30  # logit of a column that only fills up a part


class SlotLogits(NamedTuple):
    """Of every slot, float32 (or wider) [B, L]; all but the first and third without a gradient."""

    log_normaliser: jax.Array  # log-sum-exp over the vocabulary
    largest: jax.Array
    target: jax.Array
    slack: jax.Array


class Parts(NamedTuple):
    """How the columns of the head are taken: static."""

    number: int  # C, parts, one after the other
    cut: int  # devices that share every part's columns

    @classmethod
    def of(cls, vocab: int, slots: int, tile: int, cut: int = 1) -> "Parts":
        """As many parts that a device holds at most `tile` logits (or a column).

        A number that divides V is taken where one is near; else the last part is filled up.

        Args:
          vocab: V.
          slots: Slots of a device.
          tile: Logits that a device may hold.
          cut: Devices over which the mesh cuts V.
        """
        own = vocab // cut
        least = min(math.ceil(slots * own / tile), own)
        near = range(least, least + least // 2 + 1)
        return cls(next((number for number in near if own % number == 0), least), cut)


def slot_logits(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    slack_id: int,
    *,
    parts: Parts,
    constrain: Constrain,
) -> SlotLogits:
    """Reduces the logits `hidden head` of each slot.

    Args:
      hidden: float [B, L, D].
      head: float [D, V]; multiplied in the dtype of `hidden`, sums in float32 or wider.
      targets: int [B, L]; whose logits are wanted.
      slack_id: The other column that is wanted.
      parts: Of the columns.
      constrain: `constrain(array, *logical_axes) -> array`.

    Returns:
      `SlotLogits`. Target and largest come from the same product: computed apart they differ in
      rounding, and an accuracy would count a right answer as wrong.
    """
    hidden = constrain(hidden, "batch", "length", None)
    slots: Any = _reduce(hidden, head, targets, slack_id, parts, constrain)
    stop = jax.lax.stop_gradient
    return slots._replace(largest=stop(slots.largest), slack=stop(slots.slack))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _reduce(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    slack_id: int,
    parts: Parts,
    constrain: Constrain,
) -> SlotLogits:
    columns = _by_device(head, parts)

    def part(so_far: SlotLogits, number: jax.Array) -> tuple[SlotLogits, None]:
        ids, logits, _ = _tile(hidden, columns, number, parts, head.shape[1], constrain)
        largest = jnp.maximum(so_far.largest, jnp.max(logits, axis=-1))
        # A comparison that fuses into the sum: no gather from a sharded axis.
        target = jnp.sum(jnp.where(targets[..., None] == ids, logits, 0.0), axis=-1)
        slack = jnp.sum(jnp.where(slack_id == ids, logits, 0.0), axis=-1)
        total = so_far.log_normaliser * jnp.exp(so_far.largest - largest)
        total += jnp.sum(jnp.exp(logits - largest[..., None]), axis=-1)
        new = SlotLogits(total, largest, so_far.target + target, so_far.slack + slack)
        return SlotLogits(*(constrain(x, "batch", "length") for x in new)), None

    zero = jnp.zeros(targets.shape, _wide(hidden))
    # The sum of exponentials stands in the place of its logarithm until the end.
    start = SlotLogits(zero, jnp.full_like(zero, -jnp.inf), zero, zero)
    end, _ = jax.lax.scan(part, start, jnp.arange(parts.number))
    return end._replace(log_normaliser=end.largest + jnp.log(end.log_normaliser))


def _reduce_forward(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    slack_id: int,
    parts: Parts,
    constrain: Constrain,
) -> tuple[SlotLogits, tuple]:
    slots: Any = _reduce(hidden, head, targets, slack_id, parts, constrain)
    return slots, (hidden, head, targets, slots.log_normaliser)


def _reduce_backward(
    slack_id: int, parts: Parts, constrain: Constrain, saved: tuple, cotangent: SlotLogits
) -> tuple[jax.Array, jax.Array, None]:
    hidden, head, targets, normaliser = saved
    columns = _by_device(head, parts)

    def part(slopes: tuple, number: jax.Array) -> tuple[tuple, None]:
        of_hidden, of_head = slopes
        ids, logits, weights = _tile(hidden, columns, number, parts, head.shape[1], constrain)
        probability = jnp.exp(logits - normaliser[..., None])
        tile = probability * cotangent.log_normaliser[..., None]
        tile += jnp.where(targets[..., None] == ids, cotangent.target[..., None], 0.0)
        tile = tile.astype(hidden.dtype)
        own = jnp.einsum("bld,blv->dv", hidden, tile, preferred_element_type=_wide(hidden))
        # Scattered here, a part at a time: the whole gradient never stands on one device.
        own = constrain(own.astype(head.dtype), "embed", "vocab")
        own = own.reshape(head.shape[0], parts.cut, -1)
        of_head = jax.lax.dynamic_update_slice(of_head, own, (0, 0, number * own.shape[2]))
        product = jnp.einsum("blv,dv->bld", tile, weights, preferred_element_type=_wide(hidden))
        return (constrain(of_hidden + product, "batch", "length", None), of_head), None

    start = jnp.zeros(hidden.shape, _wide(hidden)), jnp.zeros_like(columns)
    (of_hidden, of_head), _ = jax.lax.scan(part, start, jnp.arange(parts.number))
    of_head = of_head[:, :, : head.shape[1] // parts.cut].reshape(head.shape)
    return of_hidden.astype(hidden.dtype), constrain(of_head, "embed", "vocab"), None


_reduce.defvjp(_reduce_forward, _reduce_backward)


def _by_device(head: jax.Array, parts: Parts) -> jax.Array:
    """[D, cut, V / cut]: a part is the same slice of every device's columns; filled up if odd."""
    own = head.shape[1] // parts.cut
    columns = head.reshape(-1, parts.cut, own)
    return jnp.pad(columns, ((0, 0), (0, 0), (0, -own % parts.number)))


def _tile(
    hidden: jax.Array,
    columns: jax.Array,
    number: jax.Array,
    parts: Parts,
    vocab: int,
    constrain: Constrain,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Ids [V / C], logits [B, L, V / C] and weights [D, V / C] of a part."""
    own, size = vocab // parts.cut, columns.shape[2] // parts.number
    weights = jax.lax.dynamic_slice_in_dim(columns, number * size, size, axis=2)
    weights = weights.reshape(len(columns), -1).astype(hidden.dtype)
    weights = constrain(weights, None, "vocab")
    place = number * size + jnp.arange(size)  # among the device's columns
    ids = (own * jnp.arange(parts.cut)[:, None] + place).reshape(-1)
    logits = jnp.einsum("bld,dv->blv", hidden, weights, preferred_element_type=_wide(hidden))
    if own % parts.number:
        logits = jnp.where(jnp.tile(place < own, parts.cut), logits, _NOTHING)
        ids = jnp.where(jnp.tile(place < own, parts.cut), ids, -1)
    return ids, constrain(logits, "batch", "length", "vocab"), weights


def _wide(hidden: jax.Array) -> jnp.dtype:
    return jnp.promote_types(hidden.dtype, jnp.float32)
