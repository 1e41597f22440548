"""LoRA runs: only adapters move, meshes change nothing, a base in int8 is what it stands for."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from jax.sharding import PartitionSpec

from jax_mdlm.config import Config, LoraConfig, MeshConfig
from jax_mdlm.containers import Params, TrainState
from jax_mdlm.data.corpus import Corpus, load_corpus
from jax_mdlm.model import table
from jax_mdlm.model.weights import as_array
from jax_mdlm.sharding import Layout, make_layout
from jax_mdlm.training.optimizer import make_optimizer
from jax_mdlm.training.state import create_state, network_params, with_slack_row
from jax_mdlm.training.step import make_evaluation_step, make_train_step

pytestmark = pytest.mark.slow


@pytest.fixture
def corpus(tiny: Config, tmp_path: Path) -> Corpus:
    return load_corpus(tiny, epath.Path(tmp_path))


@pytest.fixture
def adapted(tiny: Config, corpus: Corpus) -> Config:
    """Grouped heads; sizes that divide over two shards of anything."""
    rows = -(-corpus.tokenizer.vocab_size // 8) * 8
    model = dataclasses.replace(tiny.model, vocab_size=rows, heads=4, kv_heads=2, head_dim=4)
    return dataclasses.replace(tiny, model=model, lora=LoraConfig(rank=3, alpha=6.0))


def one_device() -> Layout:
    return make_layout(MeshConfig(fsdp=1), jax.devices()[:1])


def begin(config: Config, corpus: Corpus, layout: Layout) -> TrainState:
    optimizer = make_optimizer(config, corpus.tokenizer.ids)
    return create_state(config, optimizer, layout)


def run(config: Config, corpus: Corpus, layout: Layout, state: TrainState, steps: int):
    """Losses of some steps, and the state after them."""
    optimizer = make_optimizer(config, corpus.tokenizer.ids)
    step = make_train_step(config, optimizer, corpus.tokenizer.ids, layout)
    batches = corpus.batches(config, 0, layout.share())
    losses = []
    for _ in range(steps):
        state, metrics = step(state, layout.place_rows(next(batches)))
        losses.append(float(metrics["loss"].value))
    batches.close()
    return losses, state


def copies(params: Params) -> Params:
    return jax.tree.map(np.array, params)


def test_only_adapters_move_and_nothing_is_copied(adapted: Config, corpus: Corpus) -> None:
    layout = make_layout(MeshConfig(fsdp=8))
    state = begin(adapted, corpus, layout)
    assert state.frozen is not None
    before, start = copies(state.frozen), copies(state.params)
    memory = state.frozen["head"].addressable_shards[0].data.unsafe_buffer_pointer()
    given = state.frozen["head"]
    losses, state = run(adapted, corpus, layout, state, 5)
    assert state.frozen is not None
    jax.tree.map(np.testing.assert_array_equal, before, state.frozen)
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(start), jax.tree.leaves(state.params)
    ):
        assert not np.array_equal(old, new), path
    assert given.is_deleted(), "the state is donated, what is frozen too"
    now = state.frozen["head"].addressable_shards[0].data.unsafe_buffer_pointer()
    assert now == memory, "the frozen parameters stay where they are"
    assert all(np.isfinite(losses))


def test_the_optimizer_holds_two_moments_per_adapter_value(adapted: Config, corpus: Corpus) -> None:
    state = begin(adapted, corpus, one_device())
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    # embed 16, 4 heads of 4 over 2 key heads, mlp 24, 2 layers, rank 3; the slack row and column
    pairs = [(16, 16), (16, 8), (16, 8), (16, 16), (16, 24), (16, 24), (24, 16)]
    assert trained == 2 * 3 * sum(map(sum, pairs)) + 2 * 16
    moments = [leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(moments) == 2 * trained
    narrow = dataclasses.replace(adapted.model, compute_dtype="bfloat16")
    state = begin(dataclasses.replace(adapted, model=narrow), corpus, one_device())
    assert {leaf.dtype for leaf in jax.tree.leaves(state.frozen)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


def test_eight_devices_are_one(adapted: Config, corpus: Corpus) -> None:
    layout = make_layout(MeshConfig(data=2, fsdp=2, tensor=2))
    single, alone = run(adapted, corpus, one_device(), begin(adapted, corpus, one_device()), 4)
    several, spread = run(adapted, corpus, layout, begin(adapted, corpus, layout), 4)
    np.testing.assert_allclose(single, several, rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), alone.params, spread.params
    )
    block = spread.params["blocks"]
    assert block["q_proj"]["down"].sharding.spec == PartitionSpec(None, "fsdp", None)
    assert block["q_proj"]["up"].sharding.spec == PartitionSpec(None, None, "tensor")
    assert block["ff_out"]["down"].sharding.spec == PartitionSpec(None, "tensor", None)
    assert block["ff_out"]["up"].sharding.spec == PartitionSpec(None, None, "fsdp")
    moments, down = jax.tree.leaves(spread.opt_state), block["ff_proj"]["down"]
    assert any(m.shape == down.shape and m.sharding == down.sharding for m in moments)


def test_accumulation_equals_the_large_batch(adapted: Config, corpus: Corpus) -> None:
    parts = dataclasses.replace(adapted, train=dataclasses.replace(adapted.train, microbatches=4))
    layout = one_device()
    (a,), left = run(adapted, corpus, layout, begin(adapted, corpus, layout), 1)
    (b,), right = run(parts, corpus, layout, begin(parts, corpus, layout), 1)
    assert a == pytest.approx(b, rel=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), left.params, right.params
    )


def test_the_gradient_is_that_of_the_whole_model(adapted: Config, corpus: Corpus) -> None:
    """At the start, where `up` is 0, an SGD step moves it by `scale * down^T dW`."""
    layout = one_device()
    ids = corpus.tokenizer.ids
    whole = dataclasses.replace(adapted, lora=LoraConfig())
    batch = layout.place_rows(next(corpus.batches(adapted, 0, layout.share())))
    plain = optax.sgd(1.0)
    before = copies(create_state(whole, plain, layout).params)
    full, _ = make_train_step(whole, plain, ids, layout)(create_state(whole, plain, layout), batch)
    state = create_state(adapted, plain, layout)
    down = copies(state.params)["blocks"]
    after, _ = make_train_step(adapted, plain, ids, layout)(state, batch)
    for name, factors in after.params["blocks"].items():
        moved = np.asarray(full.params["blocks"][name]) - before["blocks"][name]
        inputs = down[name]["down"].shape[1]
        want = 2.0 * np.swapaxes(down[name]["down"], 1, 2) @ moved.reshape(2, inputs, -1)
        got = np.asarray(factors["up"])
        assert np.abs(want).max() > 1e-4, name
        np.testing.assert_allclose(got, want, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(factors["down"], down[name]["down"])
    for name, of in (("wte", lambda x: x[ids.slack]), ("head", lambda x: x[:, ids.slack])):
        moved = of(np.asarray(full.params[name])) - of(before[name])
        assert np.abs(moved).max() > 1e-4, name
        np.testing.assert_allclose(after.params[name]["slack"], moved, atol=1e-5, err_msg=name)


# --- a base in int8 ---


def int8(config: Config) -> Config:
    return dataclasses.replace(config, lora=dataclasses.replace(config.lora, base="int8"))


def shaken(params: Params) -> Params:
    """Adapters as after some training: no part of them is zero."""
    leaves, form = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    moved = [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys)]
    return jax.tree.unflatten(form, moved)


def rounded(frozen: Params, config: Config) -> Params:
    """What an int8 base stands for, as float arrays in the shapes in which they are trained."""
    return table.tree(
        {
            row.path: as_array(table.at(frozen, row.path), "float32").reshape(
                table.shape(row, config.model)
            )
            for row in table.rows(config.model)
        }
    )


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_quantised_base_has_the_gradient_of_what_it_stands_for(
    adapted: Config, corpus: Corpus, remat: str
) -> None:
    """An SGD step on the real objective, every adapter and both slack rows away from 0."""
    layout, ids, plain = one_device(), corpus.tokenizer.ids, optax.sgd(1.0)
    adapted = dataclasses.replace(adapted, model=dataclasses.replace(adapted.model, remat=remat))
    batch = layout.place_rows(next(corpus.batches(adapted, 0, layout.share())))
    state = create_state(int8(adapted), plain, layout)
    frozen, start = rounded(state.frozen or {}, adapted), copies(shaken(state.params))
    moved = []
    for config, base in ((int8(adapted), state.frozen), (adapted, frozen)):
        begun = dataclasses.replace(
            create_state(config, plain, layout),
            params=jax.tree.map(jnp.asarray, start),
            frozen=jax.tree.map(jnp.copy, base),
        )
        after, _ = make_train_step(config, plain, ids, layout)(begun, batch)
        moved.append(jax.tree.map(lambda x, y: np.asarray(x) - y, after.params, start))
    got, want = moved
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want)):
        assert np.abs(y).max() > 1e-4, path
        error = np.linalg.norm(x - y) / np.linalg.norm(y)
        assert error <= 1e-5, path


def test_a_quantised_base_is_the_rounded_one(adapted: Config, corpus: Corpus) -> None:
    """A byte a value, a scale a channel; each within half a step of its scale; norms and head."""
    narrow = dataclasses.replace(adapted.model, compute_dtype="bfloat16")
    adapted = dataclasses.replace(adapted, model=narrow)
    full = begin(adapted, corpus, one_device()).frozen
    held = begin(int8(adapted), corpus, one_device()).frozen
    assert full is not None
    assert held is not None
    for row in table.rows(adapted.model):
        exact = np.asarray(table.at(full, row.path), np.float32)
        found = table.at(held, row.path)
        if row.is_vector or row.path == ("head",):
            assert found.dtype == jnp.bfloat16
            np.testing.assert_array_equal(np.asarray(found, np.float32), exact)
            continue
        assert (found.values.dtype, found.scale.dtype) == (jnp.int8, jnp.float32)
        assert (
            found.scale.size == found.values.size / found.values.shape[-2 if row.num_inputs else -1]
        )
        step = np.broadcast_to(np.asarray(found.scale), found.values.shape).reshape(exact.shape)
        error = np.abs(np.asarray(found.merged("float32")).reshape(exact.shape) - exact)
        assert (error <= 0.5001 * step).all(), row.path
        assert error.max() > 0.3 * step.min(), "it is rounded, not exact"


def test_only_adapters_move_beside_a_quantised_base(adapted: Config, corpus: Corpus) -> None:
    """Over a mesh, in bfloat16; nothing of the base is copied or becomes wider."""
    narrow = dataclasses.replace(adapted.model, compute_dtype="bfloat16")
    config = int8(dataclasses.replace(adapted, model=narrow))
    layout = make_layout(MeshConfig(fsdp=4, tensor=2))
    state = begin(config, corpus, layout)
    before, start = copies(state.frozen or {}), copies(state.params)
    losses, state = run(config, corpus, layout, state, 3)
    assert np.isfinite(losses).all()
    jax.tree.map(np.testing.assert_array_equal, before, state.frozen)
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(start), jax.tree.leaves(state.params)
    ):
        assert new.dtype == jnp.float32
        assert not np.array_equal(old, new), path


def test_eight_devices_are_one_with_a_quantised_base(adapted: Config, corpus: Corpus) -> None:
    config, layout = int8(adapted), make_layout(MeshConfig(fsdp=4, tensor=2))
    single, alone = run(config, corpus, one_device(), begin(config, corpus, one_device()), 4)
    several, spread = run(config, corpus, layout, begin(config, corpus, layout), 4)
    np.testing.assert_allclose(single, several, rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), alone.params, spread.params
    )
    jax.tree.map(np.testing.assert_array_equal, alone.frozen, spread.frozen)
    assert spread.frozen is not None
    blocks = spread.frozen["blocks"]
    assert blocks["q_proj"].values.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert blocks["q_proj"].scale.sharding.spec == PartitionSpec(None, None, "tensor")
    assert blocks["ff_out"].values.sharding.spec == PartitionSpec(None, "tensor", "fsdp")
    assert spread.frozen["wte"].values.sharding.spec == PartitionSpec("tensor", "fsdp")


@pytest.mark.parametrize("how", ["mean", "normal"])
def test_the_slack_row_of_a_quantised_table_is_a_quantised_row(
    adapted: Config, corpus: Corpus, how: str
) -> None:
    ids = corpus.tokenizer.ids
    frozen = begin(int8(adapted), corpus, one_device()).frozen or {}
    before = rounded(frozen, adapted)
    values = np.asarray(frozen["wte"].values)
    plain = with_slack_row(jax.tree.map(jnp.copy, before), how, ids, seed=4)
    held = with_slack_row(frozen, how, ids, seed=4)
    row, want = np.asarray(held["wte"].merged("float32"))[ids.slack], plain["wte"][ids.slack]
    assert np.abs(row - before["wte"][ids.slack]).max() > 1e-2
    np.testing.assert_allclose(row, want, atol=np.abs(want).max() / 254 * 1.001)
    np.testing.assert_array_equal(held["head"], plain["head"])
    others = np.delete(np.arange(len(values)), ids.slack)
    np.testing.assert_array_equal(np.asarray(held["wte"].values)[others], values[others])


def test_frozen_matrices_have_no_gradient_in_the_program(adapted: Config, corpus: Corpus) -> None:
    """Two thirds of a full step's products are left: forward, and back through the stream."""

    def flops(config: Config) -> float:
        config = dataclasses.replace(
            config, objective=dataclasses.replace(config.objective, ctc_weight=0.0)
        )
        layout = one_device()
        ids = corpus.tokenizer.ids
        optimizer = make_optimizer(config, ids)
        step = make_train_step(config, optimizer, ids, layout)
        batch = layout.place_rows(next(corpus.batches(config, 0, layout.share())))
        analysis = step.lower(create_state(config, optimizer, layout), batch).compile()
        return analysis.cost_analysis()["flops"]

    wide = dataclasses.replace(adapted.model, embed=64, head_dim=16, mlp=256)
    asked = LoraConfig(rank=1, train_slack_row=False)
    adapted = dataclasses.replace(adapted, model=wide, lora=asked)
    share = flops(adapted) / flops(dataclasses.replace(adapted, lora=LoraConfig()))
    assert 0.6 < share < 0.8


def test_matrices_decay_and_slack_rows_do_not(adapted: Config, corpus: Corpus) -> None:
    settings = dataclasses.replace(
        adapted.optimizer, learning_rate=0.1, warmup_steps=0, decay_share=0.0, weight_decay=0.5
    )
    config = dataclasses.replace(adapted, optimizer=settings)
    optimizer = make_optimizer(config, corpus.tokenizer.ids)
    params = jax.tree.map(jnp.ones_like, begin(adapted, corpus, one_device()).params)
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(still, optimizer.init(params), params)
    for factors in updates["blocks"].values():
        for update in factors.values():
            np.testing.assert_allclose(update, -0.05, rtol=1e-6)
    for name in ("wte", "head"):
        np.testing.assert_array_equal(updates[name]["slack"], 0)


def test_evaluation_sees_the_adapters(adapted: Config, corpus: Corpus) -> None:
    layout, ids = one_device(), corpus.tokenizer.ids
    state = begin(adapted, corpus, layout)
    evaluate = make_evaluation_step(adapted, ids, layout)
    batch = layout.place_rows(next(corpus.batches(adapted, 0, layout.share())))

    def loss(state: TrainState) -> float:
        params = network_params(state.params, state.frozen, adapted, ids)
        return float(evaluate(params, batch, jax.random.key(0))["loss"].value)

    before = loss(state)
    _, state = run(adapted, corpus, layout, state, 5)
    assert abs(loss(state) - before) > 0.01
