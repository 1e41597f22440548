"""The objective on meshes against its dense form: all logits, optax on the full vocabulary."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.loss import IDS
from jax_mdlm.config import MeshConfig, ObjectiveConfig
from jax_mdlm.containers import Batch
from jax_mdlm.diffusion import corrupt, objective, terms
from jax_mdlm.sharding import make_layout
from tests.reference.ctc_optax import optax_ctc
from tests.reference.dense import dense_loss

ROWS, EMBED, VOCAB = 8, 16, 192
MESHES = {
    "1": None,
    "fsdp 8": MeshConfig(fsdp=8),
    "4 x 2": MeshConfig(fsdp=4, tensor=2),
    "2 x 2 x 2": MeshConfig(data=2, fsdp=2, tensor=2),
    "context": MeshConfig(fsdp=4, context=2),
}


def inputs(length, labels, config):
    """Rows that are all response, with as much slack as the canvas holds."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, VOCAB, (ROWS, labels))
    tokens[:, -1] = IDS.terminator
    rows = Batch(
        tokens=jnp.pad(tokens, ((0, 0), (0, length - labels)), constant_values=IDS.eos),
        response=jnp.ones((ROWS, length), bool),
        valid=jnp.ones((ROWS, length), bool),
        labels=jnp.asarray(tokens),
        label_count=jnp.full(ROWS, labels),
    )
    corruption = jax.jit(corrupt, static_argnums=(2, 3))(jax.random.key(1), rows, IDS, config)
    hidden = rng.normal(size=(ROWS, length, EMBED))
    head = rng.normal(size=(EMBED, VOCAB)) / 2
    return hidden, head, corruption


def value_and_slopes(hidden, head, corruption, config, mesh, loss=None):
    if loss is None:
        loss = functools.partial(_objective, config=config, layout=mesh and make_layout(mesh))
        if mesh:
            layout = make_layout(mesh)
            hidden = jax.device_put(hidden, layout.sharding(("batch", "length", None)))
            head = jax.device_put(head, layout.sharding(("embed", "vocab")))
            corruption = jax.device_put(corruption, layout.rows)
    value, slopes = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(hidden, head, corruption)
    return [np.asarray(x, np.float64) for x in (value, *slopes)]


def _objective(hidden, head, corruption, *, config, layout):
    on_mesh = {}
    if layout:
        shards = layout.parts("batch", "length"), layout.parts("vocab")
        on_mesh = {"constrain": layout.constrain, "shards": shards}
    return objective(hidden, head, corruption, IDS, config, weights={"ctc": 0.3}, **on_mesh)[0]


@pytest.mark.parametrize(
    ("length", "labels", "slack_max", "collapse"),
    [
        pytest.param(512, 128, 3.0, "merge", marks=pytest.mark.slow),
        pytest.param(512, 128, 3.0, "slack_only", marks=pytest.mark.slow),
        pytest.param(4096, 128, 31.0, "merge", marks=pytest.mark.slow),
        pytest.param(4096, 128, 31.0, "slack_only", marks=pytest.mark.slow),
    ],
)
def test_value_and_gradient_on_every_mesh(
    length, labels, slack_max, collapse, eight_devices, monkeypatch
):
    config = ObjectiveConfig(
        ctc_weight=0.3, collapse=collapse, slack_max=slack_max, loss_tile=length * 60
    )
    in_one = ObjectiveConfig(**{**vars(config), "loss_tile": 2**40})
    with jax.enable_x64(True):
        wide = inputs(length, labels, config)
        dense = functools.partial(dense_loss, ids=IDS, config=config)
        if collapse == "slack_only":  # optax on the full vocabulary knows `merge` only
            dense = functools.partial(_objective, config=in_one, layout=None)
        with monkeypatch.context() as through_optax:
            through_optax.setattr(terms, "ctc_loss", optax_ctc)
            expected = value_and_slopes(*wide, config, None, loss=dense)
        for name, mesh in MESHES.items():
            for one, other in zip(value_and_slopes(*wide, config, mesh), expected):
                error = np.linalg.norm(one - other) / np.linalg.norm(other)
                assert error < 1e-6, (name, error)
    narrow = [np.asarray(x, np.float32) for x in wide[:2]]
    corruption = jax.tree.map(
        lambda x: jnp.asarray(
            np.asarray(x), None if x.dtype == bool else x.dtype.name.replace("64", "32")
        ),
        wide[2],
    )
    for name, mesh in MESHES.items():
        for one, other in zip(value_and_slopes(*narrow, corruption, config, mesh), expected):
            error = np.linalg.norm(one - other) / np.linalg.norm(other)
            assert error < 1e-4, (name, error)
