"""Parameters in their places: the same as whole ones, and never more than a layer on the way."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jax_mdlm import model
from jax_mdlm.config import MeshConfig, ModelConfig
from jax_mdlm.containers import ParamRow, Params
from jax_mdlm.conversion import placing
from jax_mdlm.conversion.placing import place_params, place_prepared
from jax_mdlm.conversion.reading import ChangedArray, _low_rank, _one_token
from jax_mdlm.model import Form, table
from jax_mdlm.sharding import Layout, make_layout
from jax_mdlm.storage.arrays import Index, box_shape
from tests.sampling.standin import random_params

CONFIG = ModelConfig(
    vocab_size=72,
    embed=32,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp=48,
    max_length=64,
    compute_dtype="float32",
)
FORMS = {"full": Form(), "int8": Form("int8"), "int4": Form("int4", 16)}
ONE = MeshConfig()
MESHES = {
    "one": (ONE, 1),
    "fsdp4 tensor2": (MeshConfig(fsdp=4, tensor=2), 8),
    "layers cut": (MeshConfig(fsdp=1, context=3, rules=("layers=context",)), 3),
    "head_dim cut": (
        MeshConfig(fsdp=2, tensor=2, rules=("head_dim=tensor", "heads=", "kv_heads=")),
        4,
    ),
}


@dataclasses.dataclass(frozen=True)
class Held:
    """An array in memory that is read in boxes; `seen` has their sizes."""

    values: np.ndarray
    seen: list[int] = dataclasses.field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    def read(self, index: Index, out: np.ndarray) -> None:
        assert out.shape == box_shape(index)
        self.seen.append(out.nbytes)
        out[...] = self.values[index]


@pytest.fixture(scope="module")
def params() -> Params:
    return random_params(CONFIG)


def held(params: Params, dtype: str = "float32") -> dict[ParamRow, Held]:
    return {
        row: Held(np.asarray(table.at(params, row.path)).astype(dtype))
        for row in table.rows(CONFIG)
    }


def layout_of(name: str, devices: list) -> Layout:
    mesh, count = MESHES[name]
    return make_layout(mesh, devices[:count])


@pytest.fixture
def accelerators(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Takes the host's devices for others, on which layers are stacked."""

    def pretend() -> None:
        for module in (placing, model.form):
            monkeypatch.setattr(module, "is_cpu", lambda sharding: False)

    return pretend


@pytest.mark.parametrize("kind", ["cpu", "accelerators"])
@pytest.mark.parametrize("mesh", MESHES)
def test_as_they_are_trained(params, eight_devices, accelerators, mesh: str, kind: str) -> None:
    if kind == "accelerators":
        accelerators()
    layout = layout_of(mesh, eight_devices)
    got = place_params(held(params), CONFIG, lambda row: layout.sharding(row.axes), "float32")
    jax.tree.map(np.testing.assert_array_equal, got, params)
    for row in table.rows(CONFIG):
        assert table.at(got, row.path).sharding == layout.sharding(row.axes)
    narrow = place_params(held(params), CONFIG, lambda row: layout.sharding(row.axes), "bfloat16")
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x, y.astype("bfloat16")), narrow, params
    )


@pytest.mark.parametrize("kind", ["cpu", "accelerators"])
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("form", FORMS)
def test_as_the_sampler_reads_them(
    params, eight_devices, accelerators, form: str, mesh: str, kind: str
) -> None:
    if kind == "accelerators":
        accelerators()
    layout = layout_of(mesh, eight_devices)
    got = place_prepared(held(params), CONFIG, layout, FORMS[form])
    want = model.prepare(params, CONFIG, FORMS[form].weights, FORMS[form].group)
    assert isinstance(got["blocks"], list) == (kind == "cpu")
    jax.tree.map(np.testing.assert_array_equal, got, want)
    if kind == "accelerators":
        abstract = model.abstract_prepared(CONFIG, FORMS[form], layout)
        jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), got, abstract)


@pytest.mark.parametrize("form", FORMS)
def test_no_more_than_a_layer_is_on_its_way(
    params, eight_devices, accelerators, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is handed to a device, and what is read, is one layer of one array, or a part."""
    accelerators()
    monkeypatch.setattr(placing, "_PART_BYTES", 1000)
    placed, put = [], jax.device_put

    def watched(x, *args, **kwargs):
        placed.extend(leaf for leaf in jax.tree.leaves(x) if isinstance(leaf, np.ndarray))
        return put(x, *args, **kwargs)

    monkeypatch.setattr(jax, "device_put", watched)
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    arrays = held(params, "bfloat16")
    place_prepared(arrays, config, make_layout(ONE, eight_devices[:1]), FORMS[form])
    largest = 32 * 48 * 2  # a matrix of the MLP
    assert max(array.nbytes for array in placed) == largest
    assert sum(array.nbytes for array in placed) == 2 * table.num_parameters(CONFIG)
    for array in arrays.values():
        assert max(array.seen) <= largest


def test_bytes_are_told(params, eight_devices) -> None:
    told: list[int] = []
    layout = layout_of("fsdp4 tensor2", eight_devices)
    place_prepared(held(params), CONFIG, layout, Form(), told.append)
    assert sum(told) == 4 * table.num_parameters(CONFIG), "every slice is read once"


def test_what_fails_while_it_is_read_is_raised(params) -> None:
    class Broken(Held):
        def read(self, index: Index, out: np.ndarray) -> None:
            raise OSError("short")

    arrays = held(params)
    row = table.rows(CONFIG)[5]
    arrays[row] = Broken(arrays[row].values)
    with pytest.raises(OSError, match="short"):
        place_prepared(arrays, CONFIG, make_layout(ONE, jax.devices()[:1]), Form())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mesh", ["one", "fsdp4 tensor2"])
def test_adapters_are_added_and_rounded_once(eight_devices, params, mesh: str, dtype: str) -> None:
    """W + (alpha / r) A B of a bfloat16 base, in float64; the slack row apart."""
    rng = np.random.default_rng(0)
    arrays = held(params, "bfloat16")
    rows = {row.path: row for row in arrays}
    exact = {}
    for name in ("q_proj", "attn_out", "ff_out"):
        row = rows["blocks", name]
        layers, inputs, outputs = table.flat_shape(row, table.shape(row, CONFIG))
        down = rng.normal(size=(layers, inputs, 2)).astype(np.float32)
        up = rng.normal(size=(layers, 2, outputs)).astype(np.float32)
        exact[name] = arrays[row].values.astype(np.float64)
        exact[name] += 0.5 * (down.astype(np.float64) @ up).reshape(exact[name].shape)
        arrays[row] = ChangedArray(arrays[row], _low_rank(row, Held(down), Held(up), 0.5))
    slack = rng.normal(size=32).astype(np.float32)
    table_row = rows["wte",]
    whole = arrays[table_row].values.astype(np.float32)
    arrays[table_row] = ChangedArray(arrays[table_row], _one_token(table_row, slack, 7))
    layout = layout_of(mesh, eight_devices)
    got = place_params(arrays, CONFIG, lambda row: layout.sharding(row.axes), dtype)
    for name, want in exact.items():
        found = np.asarray(got["blocks"][name])
        if dtype == "float32":
            np.testing.assert_allclose(found, want, atol=1e-5)
        else:
            same = found == want.astype(ml_dtypes.bfloat16)
            assert same.mean() > 0.99, "a tie of float32 sums may fall to the other side"
    whole[7] += slack
    np.testing.assert_array_equal(got["wte"], jnp.asarray(whole).astype(dtype))
