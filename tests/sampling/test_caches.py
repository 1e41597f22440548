"""Which calls run on the whole canvas, and what the cache is worth; exactness is `test_grid`'s."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mdlm.sampling import AboveThreshold, SampleOptions, make_canvas
from tests.sampling import oracle, standin
from tests.sampling.making import changed, make_options
from tests.sampling.standin import IDS, VOCABULARY

PROMPTS = [[1, 2, 3, 4, 5, 6], [0], [2, 2]]
FULL, CACHED = 1, 2


def options_with(**changes) -> SampleOptions:
    plain = {"length": 12, "block_length": 6, "steps": 12, "ids": IDS, "collapse": "slack_only"}
    return make_options(**{**plain, **changes})


@flax.struct.dataclass
class Marks:
    """Offers one token from full runs and another from later calls, the leftmost slots first.

    Its cache is the column of the block that `full` saw: later calls offer 0 where it is another's.
    """

    options: SampleOptions = flax.struct.field(pytree_node=False)

    def full(self, canvas: jax.Array, start: jax.Array, end: jax.Array) -> tuple[jax.Array, Any]:
        cache = None if self.options.settings.cache == "none" else start.astype(jnp.int32)
        return self._logits(canvas, jnp.asarray(FULL)), cache

    def cached(self, cache: Any, canvas: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
        return self._logits(canvas, jnp.where(cache == start, CACHED, 0))

    def _logits(self, canvas: jax.Array, token: jax.Array) -> jax.Array:
        width = self.options.settings.block_length
        strength = 8 - 0.1 * jnp.arange(width)
        one = (jnp.arange(VOCABULARY) == token) * strength[:, None]
        return jnp.broadcast_to(one, (canvas.shape[0], width, VOCABULARY))


def marks_of(options: SampleOptions, prompts: list[list[int]]) -> tuple[np.ndarray, int]:
    """The committed marks, [B, slots of the region], and the calls."""
    canvas = make_canvas(prompts, options, max_length=64, bucket=lambda n: n)
    state = oracle.run_with(Marks(options), canvas, options)
    return np.asarray(state.canvas[:, canvas.region.start :]), int(state.step)


@pytest.mark.parametrize(
    ("cache", "refresh", "block"),
    [
        ("prefix", 0, [FULL, CACHED, CACHED, CACHED, CACHED, CACHED]),
        ("dual", 0, [FULL, CACHED, CACHED, CACHED, CACHED, CACHED]),
        pytest.param("dual", 1, [FULL] * 6, marks=pytest.mark.slow),
        ("prefix", 2, [FULL, CACHED] * 3),
        ("dual", 4, [FULL, CACHED, CACHED, CACHED, FULL, CACHED]),
        pytest.param("prefix", 9, [FULL] + [CACHED] * 5, marks=pytest.mark.slow),
    ],
)
def test_the_first_call_of_a_block_and_every_refreshing_one_are_full(cache, refresh, block):
    """One slot a call, from left to right: the marks are the schedule. Each block starts anew."""
    options = options_with(cache=cache, refresh=refresh)
    marks, calls = marks_of(options, [[], []])
    np.testing.assert_array_equal(marks, [block * 2] * 2)
    assert calls == 12


@pytest.mark.parametrize(("early_stop", "calls"), [(True, 2), (False, 4)])
def test_a_full_call_commits_too(early_stop, calls):
    """A rule that takes everything at once needs no other call.

    Fast-dLLM makes one more, which finds no mask; without early stop the calls are those of there.
    """
    options = options_with(cache="dual", strategy=AboveThreshold(0.1), early_stop=early_stop)
    marks, got = marks_of(options, [[]])
    assert (marks == FULL).all()
    assert got == calls


def test_appended_blocks_start_with_a_full_call():
    options = options_with(length=3, limit=9, block_length=3, steps=3, cache="prefix")
    marks, calls = marks_of(options, [[]])
    np.testing.assert_array_equal(marks, [[FULL, CACHED, CACHED] * 3])
    assert calls == 9


def test_without_a_cache_every_call_is_full():
    marks, _ = marks_of(options_with(), [[]])
    assert (marks == FULL).all()


def test_a_cache_that_is_made_at_every_call_is_exact():
    options = options_with(cache="dual", refresh=1, collapse="merge")
    canvas = make_canvas(PROMPTS, options, max_length=64, bucket=lambda n: n)
    got = oracle.run_jax(standin.tables(0), canvas, options)
    plain = changed(options, cache="none", refresh=0)
    want = oracle.run_jax(standin.tables(0), canvas, plain)
    np.testing.assert_array_equal(got.canvas, want.canvas)
    np.testing.assert_array_equal(got.committed_at, want.committed_at)


def test_the_prefix_cache_of_the_last_block_and_the_dual_one_hold_the_same():
    """Nothing stands behind the last block, so there is nothing more that could be stale."""
    prefix = options_with(length=6, steps=6, cache="prefix")
    dual = changed(prefix, cache="dual")
    canvas = make_canvas(PROMPTS, prefix, max_length=64, bucket=lambda n: n)
    one = oracle.run_jax(standin.tables(0), canvas, prefix)
    two = oracle.run_jax(standin.tables(0), canvas, dual)
    np.testing.assert_array_equal(one.canvas, two.canvas)
