"""A checkpoint goes on on any mesh: the same parameters, moments and losses."""

import dataclasses
import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from jax_mdlm.config import Config, MeshConfig
from jax_mdlm.containers import TrainState
from jax_mdlm.data.corpus import Corpus, load_corpus
from jax_mdlm.sharding import Layout, make_layout
from jax_mdlm.storage import Checkpoints, open_checkpoints
from jax_mdlm.training import begin
from jax_mdlm.training.begin import resume
from jax_mdlm.training.optimizer import make_optimizer
from jax_mdlm.training.state import abstract_state, create_state
from jax_mdlm.training.step import make_train_step

pytestmark = pytest.mark.slow

MESHES = {
    "one": (MeshConfig(), 1),
    "fsdp8": (MeshConfig(fsdp=8), 8),
    "2x2x2": (MeshConfig(data=2, fsdp=2, tensor=2), 8),
    "fsdp2": (MeshConfig(fsdp=2), 2),
}
PAIRS = [("fsdp8", "one"), ("one", "fsdp8"), ("fsdp8", "2x2x2"), ("2x2x2", "fsdp2")]
SAVED, LAST = 3, 6


@pytest.fixture
def run(tiny: Config, tmp_path: Path) -> tuple[Config, Corpus]:
    corpus = load_corpus(tiny, epath.Path(tmp_path))
    model = dataclasses.replace(tiny.model, vocab_size=corpus.tokenizer.vocab_size + 1)
    model = dataclasses.replace(model, vocab_size=-(-model.vocab_size // 8) * 8)
    optimizer = dataclasses.replace(tiny.optimizer, learning_rate=1e-3)
    return dataclasses.replace(tiny, model=model, optimizer=optimizer), corpus


def layout_of(name: str) -> Layout:
    mesh, devices = MESHES[name]
    return make_layout(mesh, jax.devices()[:devices])


def steps(
    config: Config, corpus: Corpus, layout: Layout, state: TrainState | None, count: int
) -> tuple[TrainState, list[float]]:
    optimizer = make_optimizer(config, corpus.tokenizer.ids)
    if state is None:
        state = create_state(config, optimizer, layout)
    step = make_train_step(config, optimizer, corpus.tokenizer.ids, layout)
    batches = corpus.batches(config, int(state.step), layout.share())
    found = []
    for batch in itertools.islice(batches, count):
        state, metrics = step(state, layout.place_rows(batch))
        found.append(float(metrics["loss"].value))
    batches.close()
    return state, found


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_another_mesh_goes_on(
    run: tuple[Config, Corpus], tmp_path: Path, before: str, after: str
) -> None:
    config, corpus = run
    first, second = layout_of(before), layout_of(after)
    state, _ = steps(config, corpus, first, None, SAVED)
    checkpoints: Checkpoints = open_checkpoints(epath.Path(tmp_path / "c"), keep=1)
    begin.save_state(checkpoints, state, "{}")
    checkpoints.wait()
    optimizer = make_optimizer(config, corpus.tokenizer.ids)
    restored = resume(checkpoints, abstract_state(config, optimizer, second))
    checkpoints.close()
    assert restored is not None
    saved, found = jax.tree.leaves(state), jax.tree.leaves(restored)
    assert len(saved) == len(found) > 30
    for old, new in zip(saved, found, strict=True):
        if not jax.dtypes.issubdtype(old.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(old, new)
        assert new.sharding.mesh == second.mesh
    _, expected = steps(config, corpus, first, state, LAST - SAVED)
    _, losses = steps(config, corpus, second, restored, LAST - SAVED)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
