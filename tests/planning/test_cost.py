"""Counters against what can be counted by hand, on programs that the CPU compiler made."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_mdlm.model import table
from jax_mdlm.planning import program
from jax_mdlm.planning.cost import Turns, count
from tests.planning.conftest import tiny_config

pytestmark = pytest.mark.slow


def compiled(function, *arguments) -> str:
    return jax.jit(function).lower(*arguments).compile().as_text()


def nested(x, w):
    """5 x 3 products of [8, 16] with [16, 16], and 5 with [16, 4]."""

    def outer(x, _):
        x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=3)
        return x, x @ w[:, :4]

    return jax.lax.scan(outer, x, None, length=5)


@pytest.mark.parametrize("known", [True, False])
def test_nested_loops_are_multiplied_out(known: bool) -> None:
    text = compiled(nested, jnp.ones((8, 16)), jnp.ones((16, 16)))
    if not known:  # as on a TPU, where the counter must be followed
        text, removed = re.subn(r'"known_trip_count":\{[^}]*\},?', "", text)
        assert removed == 2
    cost = count(text)
    assert cost.flops == 5 * (3 * 2 * 8 * 16 * 16 + 2 * 8 * 16 * 4)
    assert cost.attention_flops == 0
    assert not cost.doubts


def test_batched_and_convolved_products() -> None:
    x, y = jnp.ones((3, 5, 7)), jnp.ones((3, 7, 4))
    assert count(compiled(jnp.matmul, x, y)).flops == 2 * 3 * 5 * 7 * 4
    image, kernel = jnp.ones((2, 9, 3)), jnp.ones((4, 3, 6))

    def convolve(image, kernel, **settings):
        return jax.lax.conv_general_dilated(
            image, kernel, dimension_numbers=("NWC", "WIO", "NWC"), **settings
        )

    settings = {"window_strides": (2,), "padding": [(3, 1)], "rhs_dilation": (2,)}
    text = compiled(lambda x, w: convolve(x, w, **settings), image, kernel)
    # By enumeration: places of the window that meet one of the 9 elements.
    length = (9 + 3 + 1 - (2 * 3 + 1)) // 2 + 1
    pairs = sum(0 <= 2 * o - 3 + 2 * k < 9 for o in range(length) for k in range(4))
    assert count(text).flops == 2 * 2 * 3 * 6 * pairs


def until(x, enough):
    """A loop that data ends, and within it one of 4 turns and one that data ends."""

    def body(carry):
        x, turns = carry
        x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x @ x), None), x, None, length=4)
        x = jax.lax.while_loop(lambda x: x[0, 0] > enough, lambda x: 0.5 * (x @ x), x)
        return x, turns + 1

    return jax.lax.while_loop(lambda carry: carry[0][0, 1] < enough, body, (x, 0))


def test_loops_that_data_ends() -> None:
    text = compiled(until, jnp.ones((8, 8)), 0.5)
    product = 2 * 8 * 8 * 8
    cost = count(text)
    assert cost.flops == product * (4 + 1)
    assert len(cost.doubts) == 2
    cost = count(text, Turns(10, (3,)))
    assert cost.flops == 10 * product * (4 + 3)
    assert not cost.doubts


def test_a_counter_bounds_a_loop_that_data_may_end_earlier() -> None:
    def body(carry):
        step, x = carry
        return step + 2, jnp.tanh(x @ x)

    def loop(x):
        return jax.lax.while_loop(lambda c: (c[0] < 11) & ~jnp.all(c[1] < 0), body, (1, x))

    assert count(compiled(loop, jnp.ones((4, 4)))).flops == 5 * 2 * 4**3


def test_a_scope_says_the_most_turns() -> None:
    def loop(x, turns):
        with jax.named_scope("at_most_7"):
            return jax.lax.fori_loop(0, turns, lambda _, x: jnp.tanh(x @ x), x)

    cost = count(compiled(loop, jnp.ones((4, 4)), 3))
    assert (cost.flops, cost.doubts) == (7 * 2 * 4**3, {})


def test_the_dearest_branch_counts() -> None:
    def branch(which, x):
        branches = [lambda x: x, lambda x: x @ x @ x, lambda x: x @ x]
        return jax.lax.switch(which, branches, x)

    assert count(compiled(branch, 0, jnp.ones((4, 4)))).flops == 2 * 2 * 4**3


def test_a_slice_of_a_stack_is_not_the_stack() -> None:
    """Scanned layers read theirs, and write theirs, in place."""
    stack, x = jnp.ones((64, 32, 32)), jnp.ones((32, 32))

    def run(stack, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), x + 1), x, stack)

    layer = 32 * 32 * 4
    moved = count(compiled(run, stack, x)).hbm_bytes
    # Weights read, x read and written a few times over: far from 64 stacks of 64 layers.
    assert 64 * 4 * layer <= moved <= 64 * 24 * layer


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def test_collectives_of_a_sharded_program(mesh: Mesh) -> None:
    """A product whose inner axis is cut sums over that axis; in a loop of 6, six times."""

    def place(*names):
        return NamedSharding(mesh, PartitionSpec(*names))

    def run(x, w):
        def body(x, _):
            y = jax.lax.with_sharding_constraint(x @ w, place("rows", None))
            return jax.lax.with_sharding_constraint(y, place("rows", "columns")), None

        return jax.lax.scan(body, x, None, length=6)[0]

    x = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=place("rows", "columns"))
    w = jax.ShapeDtypeStruct((32, 32), jnp.float32, sharding=place("columns", None))
    cost = count(compiled(run, x, w))
    [(one, times)] = cost.collectives.items()
    assert (one.kind, one.bytes, times) == ("all-reduce", 4 * 32 * 4, 6)
    assert cost.flops == 6 * 2 * 4 * 16 * 32


@pytest.mark.parametrize(("remat", "forwards", "attention"), [("none", 1.0, 12), ("full", 2.0, 16)])
def test_a_layer_of_the_step_is_counted_exactly(
    remat: str, forwards: float, attention: int
) -> None:
    """Forward 2, backward 4, again 2 per matrix parameter and slot.

    Computed again under full remat is what the backward pass needs: all but the down projection,
    whose result only the next layer sees.
    """
    costs = []
    for layers in (2, 3):
        config = tiny_config(layers=layers, remat=remat)
        job = program.train_step(config, jax.devices()[:1])
        costs.append(count(program.compile_job(job).text))
    network, slots = tiny_config().model, 16 * 32
    matrices = 4 * 16 * 32 + 3 * 16 * 32
    again = (forwards - 1) * 2 * (matrices - 16 * 32)
    assert (
        table.num_parameters(tiny_config(layers=3).model) - table.num_parameters(network)
        == matrices + 2 * 16
    )
    difference = costs[1].flops - costs[0].flops
    of_attention = costs[1].attention_flops - costs[0].attention_flops
    assert of_attention == attention * 32 * 4 * 8 * slots
    assert difference - of_attention == (6 * matrices + again) * slots
    assert not costs[0].doubts
