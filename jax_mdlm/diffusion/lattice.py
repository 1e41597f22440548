"""The CTC lattice: log-sums forward over the frames, and a backward pass that is linear.

Enters: what each class scores at each slot. Leaves: negative log-likelihoods and their gradient,
minus the probability that a frame holds a class given the labels (Graves et al. 2006, Eq. 15).

States. After some frames a row has emitted k of its labels, k = 0..U. `SlackOnly` needs no more:
a frame is slack (k stays) or the next label (k grows). `Merge` also asks whether the last frame
was label k or slack, because a frame may repeat the label before it.

Backward. Every sum of the forward pass has two terms, and the share of the first is kept. Going
back, the probability mass of a state is split by these shares (the derivative of a log-sum is a
weighted mean): products only, and the mass of a frame stays 1 to rounding. Kept are one number
(`SlackOnly`) or two (`Merge`) per frame and label, the order of the input.

Precision. States are logarithms: a state that is e^-200 of the best now may be the only one that a
later, observed slot allows. They reach -1e5 at a few thousand frames, where one rounding of float32
is 0.004, and it is their differences that make the shares. So a state also carries what its
roundings took from it (`Sum`). (Moving each frame's largest state to 0 instead leaves the states
that matter in the end hundreds below it: a gradient error of 2.5e-4 at 4,096 frames, not 1e-6.)

Band. After t of T frames, k lies between t - (T - U) and t; other states are dead. Where all rows
have few slacks, only a window of the states is worked on.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

# log(0) that stays finite under addition and has finite derivatives. The default of optax, -1e5,
# is reached by real log-probabilities at a few thousand frames.
IMPOSSIBLE = -1e30
_FEASIBLE = 0.1 * IMPOSSIBLE  # above it, no impossible step was taken

# The window is 1 + U states divided by one of these, where there are that many states.
_DIVISORS, _LEAST_STATES = (4, 2), 256

Arrays = tuple[jax.Array, ...]


class Sum(NamedTuple):
    """A number and what rounding took from it, `value + rest`."""

    value: jax.Array
    rest: jax.Array

    def plus(self, x: jax.Array) -> "Sum":
        """Adds a number; what is rounded off joins the rest (Knuth's two-sum)."""
        value = self.value + x
        part = value - self.value
        lost = (self.value - (value - part)) + (x - part)
        return Sum(value, self.rest + lost)

    @staticmethod
    def where(condition: jax.Array, one: "Sum", other: "Sum") -> "Sum":
        """Chooses both parts."""
        return jax.tree.map(lambda x, y: jnp.where(condition, x, y), one, other)


Sums = tuple[Sum, ...]


class Rows(NamedTuple):
    """Holds what is known of the rows before any score."""

    first: jax.Array  # int [B], slot of the first frame
    frames: jax.Array  # int [B], number of frames
    labels: jax.Array  # int [B], number of labels
    repeats: jax.Array  # bool [B, 1 + U], label k equals label k - 1


class SlackOnly:
    """Each label stands at exactly one frame. State: (log-sum,), mass: (any,)."""

    @staticmethod
    def step(
        here: Sums, before: Sums, slack: jax.Array, label: jax.Array, repeats: jax.Array
    ) -> tuple[Sums, Arrays]:
        """The states after a frame from those before it, and the shares to keep.

        `any'(k) = slack any(k) + label(k) any(k - 1)`. All arrays are [B, W], windows of k;
        `here` holds the states k, `before` the states k - 1. The last array of a state is the sum
        over everything that the last frame may be.
        """
        total, stays = _add(here[0].plus(slack), before[0].plus(label))
        return (total,), (stays,)

    @staticmethod
    def split(
        mass: Arrays, shares: Arrays, repeats: jax.Array
    ) -> tuple[Arrays, Arrays, jax.Array, jax.Array]:
        """Sends the mass of states after a frame back to those before it.

        Returns:
          Mass for states k and for states k - 1, and what slack and each label have of it.
        """
        slack = mass[0] * shares[0]
        label = mass[0] - slack
        return (slack,), (label,), slack, label


class Merge:
    """A label may stand at several frames in a row. State: (label, slack, any), so is mass."""

    @staticmethod
    def step(
        here: Sums, before: Sums, slack: jax.Array, label: jax.Array, repeats: jax.Array
    ) -> tuple[Sums, Arrays]:
        """Sums what leads to each state; between equal labels only slack leads on.

        `label'(k) = label(k) (label(k) + any(k - 1))`, `slack'(k) = slack any(k)`.
        """
        reached, stays = _add(here[0], Sum.where(repeats, before[1], before[2]))
        ends_label, ends_slack = reached.plus(label), here[2].plus(slack)
        total, is_label = _add(ends_label, ends_slack)
        return (ends_label, ends_slack, total), (stays, is_label)

    @staticmethod
    def split(
        mass: Arrays, shares: Arrays, repeats: jax.Array
    ) -> tuple[Arrays, Arrays, jax.Array, jax.Array]:
        """Divides the mass of each state among those that lead to it."""
        stays, is_label = shares
        label = mass[0] + mass[2] * is_label
        slack = mass[1] + (mass[2] - mass[2] * is_label)
        kept = label * stays
        came = label - kept
        none = jnp.zeros_like(kept)
        before = (none, jnp.where(repeats, came, 0.0), jnp.where(repeats, 0.0, came))
        return (kept, none, slack), before, slack, label


Rule = type[SlackOnly] | type[Merge]
_NUM_STATES = {SlackOnly: 1, Merge: 3}
_NUM_SHARES = {SlackOnly: 1, Merge: 2}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def negative_log_likelihood(log_probs: jax.Array, rows: Rows, rule: Rule) -> jax.Array:
    """`-log` of the sum over all alignments, above 1e29 where no alignment fits.

    Args:
      log_probs: float [B, L, 1 + U]; scores of slack and of each label.
      rows: Frames and labels.
      rule: `Merge` or `SlackOnly`.

    Returns:
      float [B], nats per row. The gradient has the dtype of `log_probs` and is 0 outside frames.
    """

    def solve(width: int) -> jax.Array:
        return _forward(_scores(log_probs, rows), log_probs.shape, rows, rule, width)[0]

    return _banded(solve, rows, log_probs.shape[2])


def fits(
    scores_at: Callable[[jax.Array], jax.Array], shape: tuple[int, int, int], rows: Rows, rule: Rule
) -> jax.Array:
    """Whether any alignment fits, from scores that are made frame by frame.

    Args:
      scores_at: Takes a slot of each row, int [B]; gives float [B, 1 + U], 0 or `IMPOSSIBLE`.
      shape: (B, L, 1 + U).
      rows: Frames and labels of each row.
      rule: The collapse map, as a rule of sums.

    Returns:
      bool [B].
    """

    def at(t: jax.Array) -> jax.Array:
        return scores_at(jnp.minimum(rows.first + t, shape[1] - 1))

    return _forward(at, shape, rows, rule, shape[2])[0] < -_FEASIBLE


def _solve_forward(log_probs: jax.Array, rows: Rows, rule: Rule) -> tuple[jax.Array, jax.Array]:
    _, length, num_classes = log_probs.shape

    def solve(width: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        scores = _scores(log_probs, rows)
        nll, shares = _forward(scores, log_probs.shape, rows, rule, width, keep=True)
        return nll, *_backward(shares, num_classes, rows, rule, width)

    nll, slack, label = _banded(solve, rows, num_classes)
    # From frames, which begin at 0 in every row, to slots.
    frame = jnp.arange(length) - rows.first[:, None]
    held = (frame >= 0) & (frame < rows.frames[:, None])
    frame = jnp.clip(frame, 0, length - 1)
    label = jnp.take_along_axis(label, frame[:, :, None], axis=1)
    slack = jnp.take_along_axis(slack, frame, axis=1)
    is_slack = jnp.arange(num_classes) == 0
    mass = jnp.where(is_slack, slack[:, :, None], label)
    return nll, jnp.where(held[:, :, None], mass, 0.0)


def _solve_backward(rule: Rule, mass: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, None]:
    return -cotangent[:, None, None] * mass, None


negative_log_likelihood.defvjp(_solve_forward, _solve_backward)


def _banded(solve: Callable, rows: Rows, num_classes: int):
    """`solve(width)` with the smallest of a few widths that holds all rows' slacks."""
    divisors = _DIVISORS if num_classes >= _LEAST_STATES else ()
    widths = [-(-num_classes // divisor) for divisor in divisors] + [num_classes]
    most = jnp.max(rows.frames - rows.labels)
    branch = sum((most >= width).astype(jnp.int32) for width in widths[:-1])
    return jax.lax.switch(branch, [functools.partial(solve, width) for width in widths])


def _scores(log_probs: jax.Array, rows: Rows) -> Callable[[jax.Array], jax.Array]:
    """`t -> [B, 1 + U]`, the scores of each row's frame t."""

    def at(t: jax.Array) -> jax.Array:
        slot = jnp.minimum(rows.first + t, log_probs.shape[1] - 1)
        return jnp.maximum(
            jnp.take_along_axis(log_probs, slot[:, None, None], axis=1)[:, 0], IMPOSSIBLE
        )

    return at


def _forward(
    scores_at: Callable[[jax.Array], jax.Array],
    shape: tuple[int, ...],
    rows: Rows,
    rule: Rule,
    width: int,
    keep: bool = False,
) -> tuple[jax.Array, Arrays]:
    """Runs over the frames; float [B] and, with `keep`, shares [B, L, W] of every frame."""
    num_rows, length, num_classes = shape
    dtype = jax.eval_shape(scores_at, jnp.zeros((), jnp.int32)).dtype
    # --- the states before the first frame ---
    # One dead state before k = 0, so that states k - 1 are a slice as well.
    none = jnp.full((num_rows, 1 + num_classes), IMPOSSIBLE, dtype)
    dead = Sum(none, jnp.zeros_like(none))
    first = dead._replace(value=none.at[:, 1].set(0.0))
    states = (first,) if rule is SlackOnly else (dead, first, first)
    kept = tuple(
        jnp.zeros((num_rows, length, width), dtype) for _ in range(_NUM_SHARES[rule] * keep)
    )
    room = rows.frames - rows.labels

    def frame(t: jax.Array, carry: tuple) -> tuple:
        states, kept = carry
        k, window = _window(t, width, num_classes)
        scores = scores_at(t)
        here = jax.tree.map(lambda x: window(x, 1), states)
        before = jax.tree.map(lambda x: window(x, 0), states)
        new, shares = rule.step(
            here, before, scores[:, :1], window(scores, 0), window(rows.repeats, 0)
        )
        alive = (k >= (t + 1 - room)[:, None]) & (k <= rows.labels[:, None])
        running = (t < rows.frames)[:, None]
        new = tuple(
            Sum(jnp.where(alive, x.value, IMPOSSIBLE), jnp.where(alive, x.rest, 0.0)) for x in new
        )
        states = jax.tree.map(
            lambda x, fresh, old: _write(x, jnp.where(running, fresh, old), 1 + k[0]),
            states,
            new,
            here,
        )
        kept = tuple(
            jax.lax.dynamic_update_slice(x, share[:, None], (0, t, 0))
            for x, share in zip(kept, shares, strict=False)
        )
        return states, kept

    # --- all frames, then the state after the last label ---
    states, kept = _over_frames(frame, (states, kept), rows, length)
    end = 1 + rows.labels[:, None]
    total = jax.tree.map(lambda x: jnp.take_along_axis(x, end, axis=1)[:, 0], states[-1])
    return -(total.value + total.rest), kept


def _backward(
    shares: Arrays, num_classes: int, rows: Rows, rule: Rule, width: int
) -> tuple[jax.Array, jax.Array]:
    """The mass of slack [B, L] and of each label [B, L, 1 + U] at every frame."""
    num_rows, length, _ = shares[0].shape
    dtype = shares[0].dtype
    none = jnp.zeros((num_rows, 1 + num_classes), dtype)
    end = (jnp.arange(1 + num_classes) == 1 + rows.labels[:, None]).astype(dtype)
    mass = (none,) * (_NUM_STATES[rule] - 1) + (end,)
    slacks = jnp.zeros((num_rows, length), dtype)
    labels = jnp.zeros((num_rows, length, num_classes), dtype)
    last = jnp.max(rows.frames) - 1

    def frame(i: jax.Array, carry: tuple) -> tuple:
        mass, slacks, labels = carry
        t = last - i
        k, window = _window(t, width, num_classes)
        own = tuple(jax.lax.dynamic_index_in_dim(x, t, 1, keepdims=False) for x in shares)
        here = tuple(window(x, 1) for x in mass)
        to_here, to_before, slack, label = rule.split(here, own, window(rows.repeats, 0))
        running = (t < rows.frames)[:, None]

        def fresh(old: jax.Array, here: jax.Array, before: jax.Array) -> jax.Array:
            old = jax.lax.dynamic_slice_in_dim(old, k[0], width + 1, axis=1)
            new = jnp.pad(here, ((0, 0), (1, 0))) + jnp.pad(before, ((0, 0), (0, 1)))
            return jnp.where(running, new, old)

        mass = tuple(
            _write(old, fresh(old, here, before), k[0])
            for old, here, before in zip(mass, to_here, to_before, strict=True)
        )
        slacks = jax.lax.dynamic_update_slice(slacks, jnp.sum(slack, 1, keepdims=True), (0, t))
        labels = jax.lax.dynamic_update_slice(labels, label[:, None], (0, t, k[0]))
        return mass, slacks, labels

    _, slacks, labels = _over_frames(frame, (mass, slacks, labels), rows, length)
    return slacks, labels


def _over_frames(body: Callable, carry: tuple, rows: Rows, length: int) -> tuple:
    """As many turns as the row with the most frames has: rows are usually shorter than canvases."""
    with jax.named_scope(f"at_most_{length}"):  # for who counts the turns of compiled loops
        return jax.lax.fori_loop(0, jnp.max(rows.frames), body, carry)


def _window(t: jax.Array, width: int, num_classes: int) -> tuple[jax.Array, Callable]:
    """The states k [W] that may be alive after frame t, and what cuts them out of [B, ...]."""
    start = jnp.clip(t + 2 - width, 0, num_classes - width)

    def cut(x: jax.Array, shift: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, start + shift, width, axis=1)

    return start + jnp.arange(width), cut


def _write(x: jax.Array, part: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, part, start, axis=1)


def _add(x: Sum, y: Sum) -> tuple[Sum, jax.Array]:
    """`log(e^x + e^y)` of finite numbers, and the share of the first, e^x of it."""
    gap = (x.value - y.value) + (x.rest - y.rest)
    ratio = jnp.exp(-jnp.abs(gap))
    total = 1.0 + ratio
    larger = Sum.where(gap >= 0, x, y)
    return larger.plus(jnp.log(total)), jnp.where(gap >= 0, 1.0, ratio) / total
