"""Training on canvases of several lengths: meshes, restarts, the weight of a step."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from jax_mdlm.config import Config, MeshConfig, ModelConfig, config_to_json, validate
from jax_mdlm.data.corpus import Corpus, load_corpus
from jax_mdlm.sharding import Layout, make_layout
from jax_mdlm.training import timing
from jax_mdlm.training.claim import claim
from jax_mdlm.training.optimizer import make_optimizer
from jax_mdlm.training.state import create_state
from jax_mdlm.training.step import make_train_step

pytestmark = pytest.mark.slow

STEPS = 6


@pytest.fixture
def config(tiny: Config) -> Config:
    """Rows need 12 to 17 slots: the canvas of 16 or, where padding is long, that of 32."""
    data = dataclasses.replace(tiny.data, buckets=(8, 16, 32), draw_end_padding=True)
    train = dataclasses.replace(tiny.train, batch_size=8)
    return validate(dataclasses.replace(tiny, data=data, train=train))


@pytest.fixture
def corpus(config: Config, tmp_path: Path) -> Corpus:
    return load_corpus(config, epath.Path(tmp_path))


def with_vocabulary(config: Config, corpus: Corpus) -> Config:
    size = -(-corpus.tokenizer.vocab_size // 8) * 8  # divides over 8 shards
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


def one_device() -> Layout:
    return make_layout(MeshConfig(fsdp=1), jax.devices()[:1])


def run(config: Config, corpus: Corpus, layout: Layout, stops: tuple[int, ...] = (STEPS,)):
    """Losses and canvases of some steps, and the last state; at each stop the run is restarted."""
    ids = corpus.tokenizer.ids
    optimizer = make_optimizer(config, ids)
    state = create_state(config, optimizer, layout)
    mean_rows = corpus.order(config).mean_rows
    losses, lengths = [], []
    for stop in stops:
        step = make_train_step(config, optimizer, ids, layout, mean_rows=mean_rows)
        batches = corpus.batches(config, int(state.step), layout.share())
        while int(state.step) < stop:
            batch = layout.place_rows(next(batches))
            state, metrics = step(state, batch)
            losses.append({name: float(mean.value) for name, mean in metrics.items()})
            lengths.append(batch.tokens.shape[1])
        batches.close()
        if layout.mesh.size == 1 and len(stops) == 1:
            assert step._cache_size() == len(set(lengths)), "a program for each canvas"
    return losses, lengths, state


@pytest.mark.slow
def test_eight_devices_are_one(config: Config, corpus: Corpus, eight_devices) -> None:
    config = with_vocabulary(config, corpus)
    single, lengths, _ = run(config, corpus, one_device())
    several, others, spread = run(config, corpus, make_layout(MeshConfig(fsdp=8)))
    assert lengths == others
    assert len(set(lengths)) >= 2
    for a, b in zip(single, several, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5, rel=1e-5)
    assert len({shard.device for shard in spread.params["wte"].addressable_shards}) == 8


def test_a_restart_changes_nothing(config: Config, corpus: Corpus) -> None:
    config = with_vocabulary(config, corpus)
    losses, lengths, whole = run(config, corpus, one_device())
    again, same, resumed = run(config, corpus, one_device(), (3, STEPS))
    assert (losses, lengths) == (again, same)
    jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)


@pytest.mark.slow
def test_accumulation_equals_the_large_batch(config: Config, corpus: Corpus) -> None:
    whole = with_vocabulary(config, corpus)
    parts = dataclasses.replace(whole, train=dataclasses.replace(whole.train, microbatches=4))
    (a, *_), _, left = run(whole, corpus, one_device(), (1,))
    (b, *_), _, right = run(parts, corpus, one_device(), (1,))
    for name in a:
        assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-6), name
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), left.params, right.params
    )


def test_a_step_weighs_what_its_rows_do(config: Config, corpus: Corpus) -> None:
    """Twice the rows of the mean step: twice the gradient, and the loss counts twice."""
    plain = dataclasses.replace(config.objective, ctc_weight=0.0, slack_max=0.0)
    config = with_vocabulary(dataclasses.replace(config, objective=plain), corpus)
    layout, ids = one_device(), corpus.tokenizer.ids
    optimizer = make_optimizer(config, ids)
    batches = corpus.batches(config, 0, layout.share())
    batch = next(batches)
    batches.close()
    rows = len(batch.tokens)
    found = {}
    for mean_rows in (rows, rows / 2):
        step = make_train_step(config, optimizer, ids, layout, mean_rows=mean_rows)
        state = create_state(config, optimizer, layout)
        _, found[mean_rows] = step(state, layout.place_rows(batch))
    alone, twice = found.values()
    assert float(twice["grad_norm"].value) == pytest.approx(2 * float(alone["grad_norm"].value))
    assert float(twice["loss"].value) == pytest.approx(float(alone["loss"].value))
    assert float(twice["loss"].count) == 2 * float(alone["loss"].count)


def test_epochs_become_steps(config: Config, tmp_path: Path) -> None:
    train = dataclasses.replace(config.train, steps=0, epochs=2.0)
    resolved, corpus = claim(dataclasses.replace(config, train=train), epath.Path(tmp_path / "run"))
    order = corpus.order(resolved)
    rows = [order.at(step).bucket.rows for step in range(resolved.train.steps)]
    assert sum(rows) >= 2 * len(corpus.train) > sum(rows[:-1])
    assert '"buckets": [' in config_to_json(resolved)


def test_mfu_of_several_canvases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal slots on 1,024 and on 4,096: attention counts as on 2,560."""
    config = ModelConfig()
    chip = dataclasses.make_dataclass("Chip", ["peak_flops"])(1e18)
    monkeypatch.setattr(timing, "find_chip", lambda kind: chip)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: 0.0)
    throughput = timing.Throughput(config, 4096)
    for length in (1024, None):
        throughput.step(length)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: 2.0)
    per_token = sum(timing.training_flops(config, 2560))
    assert throughput.read(500.0)["mfu"] == pytest.approx(
        500 * per_token / (1e18 * jax.device_count())
    )
