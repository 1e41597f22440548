"""The update: meshes, accumulation and remat change nothing; resumed draws are the same."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from jax_mdlm.config import Config, ConfigError, MeshConfig
from jax_mdlm.containers import SpecialIds, TrainState
from jax_mdlm.data.corpus import Corpus, load_corpus
from jax_mdlm.model import table
from jax_mdlm.sharding import Layout, Share, make_layout
from jax_mdlm.training.optimizer import make_optimizer
from jax_mdlm.training.state import abstract_state, create_state
from jax_mdlm.training.step import make_train_step


@pytest.fixture
def corpus(tiny: Config, tmp_path) -> Corpus:
    return load_corpus(tiny, epath.Path(tmp_path))


def with_vocabulary(config: Config, corpus: Corpus) -> Config:
    size = -(-corpus.tokenizer.vocab_size // 4) * 4  # divides over 4 tensor shards
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


def run(config: Config, corpus: Corpus, layout: Layout, steps: int = 5):
    """Losses of some steps, and the state after them."""
    optimizer = make_optimizer(config, corpus.tokenizer.ids)
    state = create_state(config, optimizer, layout)
    step = make_train_step(config, optimizer, corpus.tokenizer.ids, layout)
    batches = corpus.batches(config, 0, layout.share())
    losses = []
    for _ in range(steps):
        state, metrics = step(state, layout.place_rows(next(batches)))
        losses.append({name: float(mean.value) for name, mean in metrics.items()})
    batches.close()
    return losses, state


def one_device() -> Layout:
    return make_layout(MeshConfig(fsdp=1), jax.devices()[:1])


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(MeshConfig(fsdp=8), marks=pytest.mark.slow),
        MeshConfig(data=2, fsdp=2, tensor=2),
        pytest.param(MeshConfig(fsdp=2, tensor=2, context=2), marks=pytest.mark.slow),
    ],
    ids=["fsdp8", "2x2x2", "context"],
)
def test_eight_devices_are_one(tiny: Config, corpus: Corpus, mesh: MeshConfig) -> None:
    config = with_vocabulary(tiny, corpus)
    single, alone = run(config, corpus, one_device())
    several, spread = run(config, corpus, make_layout(mesh))
    for a, b in zip(single, several):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5, rel=1e-5)
    wte = spread.params["wte"]
    assert len({shard.device for shard in wte.addressable_shards}) == 8
    assert wte.addressable_shards[0].data.size < wte.size
    moments = jax.tree.leaves(spread.opt_state)
    assert any(m.shape == wte.shape and m.sharding == wte.sharding for m in moments)


@pytest.mark.parametrize(
    "preset",
    ["merge", *(pytest.param(name, marks=pytest.mark.slow) for name in ("slack_only", "ce"))],
)
def test_accumulation_equals_the_large_batch(tiny: Config, corpus: Corpus, preset: str) -> None:
    objective = {
        "merge": dataclasses.replace(tiny.objective, separate_repeats=False),
        "slack_only": dataclasses.replace(tiny.objective, collapse="slack_only"),
        "ce": dataclasses.replace(
            tiny.objective, collapse="slack_only", ctc_weight=0.0, slack_max=0.0
        ),
    }[preset]
    whole = with_vocabulary(dataclasses.replace(tiny, objective=objective), corpus)
    parts = dataclasses.replace(whole, train=dataclasses.replace(whole.train, microbatches=4))
    (a, *_), left = run(whole, corpus, one_device(), 1)
    (b, *_), right = run(parts, corpus, one_device(), 1)
    if preset == "merge":
        assert a["infeasible"] > 0, "the denominators must be exercised"
    for name in a:
        assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-6), name
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), left.params, right.params
    )


def test_a_restart_repeats_the_draws(tiny: Config, corpus: Corpus) -> None:
    config = with_vocabulary(tiny, corpus)
    _, whole = run(config, corpus, one_device(), 4)
    layout = one_device()
    optimizer = make_optimizer(config, corpus.tokenizer.ids)
    _, state = run(config, corpus, layout, 2)
    step = make_train_step(config, optimizer, corpus.tokenizer.ids, layout)
    batches = corpus.batches(config, 2, layout.share())
    for _ in range(2):
        state, _ = step(state, layout.place_rows(next(batches)))
    batches.close()
    jax.tree.map(np.testing.assert_array_equal, state.params, whole.params)


def test_the_state_is_donated_and_nothing_recompiles(tiny: Config, corpus: Corpus) -> None:
    config, layout = with_vocabulary(tiny, corpus), one_device()
    optimizer = make_optimizer(config, corpus.tokenizer.ids)
    state = create_state(config, optimizer, layout)
    step = make_train_step(config, optimizer, corpus.tokenizer.ids, layout)
    batches = corpus.batches(config, 0, layout.share())
    first = state.params["head"]
    for _ in range(3):
        state, _ = step(state, layout.place_rows(next(batches)))
    batches.close()
    assert first.is_deleted()
    assert step._cache_size() == 1


def test_training_lowers_the_loss(tiny: Config, corpus: Corpus) -> None:
    longer = dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, steps=60))
    losses, _ = run(with_vocabulary(longer, corpus), corpus, one_device(), 60)
    early = np.mean([step["loss"] for step in losses[:5]])
    late = np.mean([step["loss"] for step in losses[-5:]])
    assert late < 0.7 * early


def test_a_mesh_that_does_not_divide_the_model_is_refused(tiny: Config, corpus: Corpus) -> None:
    config = with_vocabulary(tiny, corpus)
    optimizer = make_optimizer(config, corpus.tokenizer.ids)
    with pytest.raises(ConfigError, match="model has 2 heads, which mesh axis tensor=8 does not"):
        abstract_state(config, optimizer, make_layout(MeshConfig(fsdp=1, tensor=8)))


def test_the_8b_config_by_shape(eight_devices) -> None:
    """Shardings, optimizer state and one traced step of the shipped config; no weights."""
    from jax_mdlm import command
    from jax_mdlm.containers import Batch

    config = command.parse_config(
        "llada_ctc", ["--config.train.steps=100", "--config.train.microbatches=32"]
    )
    layout = make_layout(config.mesh)
    ids = SpecialIds(mask=126336, slack=126084, pad=126081, eos=126081, terminator=126348)
    optimizer = make_optimizer(config, ids)
    abstract: TrainState = abstract_state(config, optimizer, layout)
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract.params)) == 8_015_581_184
    for row in table.rows(config.model):
        leaf = abstract.params
        for name in row.path:
            leaf = leaf[name]
        assert leaf.sharding.shard_shape(leaf.shape) != leaf.shape, f"{row.path} is not sharded"
    moments = [leaf for leaf in jax.tree.leaves(abstract.opt_state) if leaf.size > 1]
    assert len(moments) == 2 * len(table.rows(config.model))
    assert {str(leaf.dtype) for leaf in moments} == {"bfloat16", "float32"}
    rows, length, labels = config.train.batch_size, config.data.length, config.data.max_labels
    batch = Batch(
        tokens=jax.ShapeDtypeStruct((rows, length), jnp.int32),
        response=jax.ShapeDtypeStruct((rows, length), jnp.bool),
        valid=jax.ShapeDtypeStruct((rows, length), jnp.bool),
        labels=jax.ShapeDtypeStruct((rows, labels), jnp.int32),
        label_count=jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    step = make_train_step(config, optimizer, ids, layout)
    after, metrics = jax.eval_shape(step, abstract, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after.params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract.params
    )
    assert {"loss", "ce", "ctc", "infeasible", "padding", "tokens"} <= set(metrics)


def test_pretraining_is_a_setting_of_the_same_path(tiny: Config, tmp_path) -> None:
    """Whole texts as responses, no terminator, slack with room; the loss falls."""
    path = tmp_path / "texts.jsonl"
    words = ["A", "B", "C", "D"]
    rows = [{"text": " ".join(words[(i * j) % 4] for j in range(1, 30))} for i in range(1, 60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = dataclasses.replace(
        tiny.data, files=str(path), pretraining=True, max_labels=24, random_length_share=0.5
    )
    config = dataclasses.replace(
        tiny, data=data, train=dataclasses.replace(tiny.train, steps=40, batch_size=8)
    )
    corpus = load_corpus(config, epath.Path(tmp_path))
    batch = next(corpus.batches(config, 0, Share()))
    assert (np.argmax(batch.response, axis=1) == 0).all(), "no prompt"
    assert batch.label_count.max() == 32 // 1.5
    assert batch.label_count.min() < 32 // 1.5, "some rows are cut to a random length"
    assert (batch.response.sum(1) == batch.label_count).all(), "no end padding"
    losses, _ = run(with_vocabulary(config, corpus), corpus, one_device(), 40)
    assert np.mean([step["loss"] for step in losses[-5:]]) < 0.9 * losses[0]["loss"]
