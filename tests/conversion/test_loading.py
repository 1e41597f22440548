"""One line gives parameters and config, whatever holds them; on a mesh only slices are read."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from jax_mdlm import conversion, convert, model
from jax_mdlm.config import ConfigError, MeshConfig
from jax_mdlm.containers import Params
from jax_mdlm.conversion.placing import place_params
from jax_mdlm.conversion.reading import Meter, opened_params
from jax_mdlm.model import table
from jax_mdlm.sharding import make_layout
from tests.conftest import GOLDEN
from tests.conversion import folders

GROUPED = {"heads": 4, "kv_heads": 2}


def flat(params: Params) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same(a: Params, b: Params) -> None:
    left, right = flat(a), flat(b)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.dtype == right[name].dtype, name
        np.testing.assert_array_equal(value, right[name], err_msg=name)


@pytest.mark.parametrize("mesh", [None, MeshConfig(data=2, fsdp=2, tensor=2)], ids=["one", "2x2x2"])
def test_logits_are_those_of_the_published_code(mesh: MeshConfig | None) -> None:
    arrays = dict(np.load(GOLDEN / "golden.npz"))
    layout = None if mesh is None else make_layout(mesh)
    params, config = conversion.load(GOLDEN, layout=layout)
    run = jax.jit(model.apply, static_argnames=("config", "layout"))
    repeat = lambda x: np.concatenate([x, x[:1]])  # noqa: E731  (4 rows: the batch shards)
    logits = run(params, repeat(arrays["fwd_ids"]), config, layout=layout)
    np.testing.assert_allclose(logits[:3], arrays["fwd_logits"], atol=2e-5)
    valid = repeat(arrays["pad_mask"]).astype(bool)
    logits = run(params, repeat(arrays["pad_ids"]), config, jnp.asarray(valid), layout)
    np.testing.assert_allclose(logits[:3][valid[:3]], arrays["pad_logits"][valid[:3]], atol=2e-5)


def test_every_form_gives_the_same(tmp_path: Path) -> None:
    folders.write_folder(tmp_path / "in", dtype="bfloat16", **GROUPED)
    expected, config = conversion.load(tmp_path / "in")
    assert config.param_dtype == config.compute_dtype == "bfloat16"
    assert (config.heads, config.kv_heads, config.head_dim) == (4, 2, 8)
    convert.main(["import", str(tmp_path / "in"), str(tmp_path / "run")])
    params, same = conversion.load(tmp_path / "run")
    assert_same(params, expected)
    assert same == config


@pytest.mark.parametrize("kind", ["in", "run"])
def test_a_dtype_can_be_asked_for(tmp_path: Path, kind: str) -> None:
    tensors = folders.write_folder(tmp_path / "in", dtype="bfloat16")
    if kind == "run":
        convert.main(["import", str(tmp_path / "in"), str(tmp_path / "run")])
    params, config = conversion.load(tmp_path / kind, dtype="float32")
    assert config.param_dtype == config.compute_dtype == "float32"
    wte = tensors["model.transformer.wte.weight"].astype(np.float32)
    np.testing.assert_array_equal(np.asarray(params["wte"]), wte)


@pytest.mark.parametrize(
    "mesh",
    [MeshConfig(fsdp=8), MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(tensor=2, fsdp=4)],
    ids=["fsdp8", "2x2x2", "4x2"],
)
def test_a_mesh_reads_its_slices_and_no_more(tmp_path: Path, mesh: MeshConfig) -> None:
    tensors = folders.write_folder(tmp_path / "in", **GROUPED)
    layout = make_layout(mesh)
    meter = Meter()
    source = conversion.open_source(tmp_path / "in")
    with opened_params(source, source.config, "float32", meter) as (_, arrays):
        params = place_params(
            arrays, source.config, lambda row: layout.sharding(row.axes), "float32"
        )
    expected, config = conversion.load(tmp_path / "in")
    assert_same(params, expected)
    for row in table.rows(config):
        leaf = params
        for key in row.path:
            leaf = leaf[key]
        assert leaf.sharding == layout.sharding(row.axes)
    # every slice once, although `data` holds it twice
    assert meter.num_bytes == sum(tensor.nbytes for tensor in tensors.values())


def test_rows_for_other_meshes(tmp_path: Path) -> None:
    """Any axis may be sharded by changed rules, head_dim and layers too."""
    folders.write_folder(tmp_path / "in", layers=4, **GROUPED)
    rules = ("head_dim=tensor", "heads=", "kv_heads=", "layers=context", "mlp=tensor")
    layout = make_layout(MeshConfig(fsdp=2, tensor=2, context=2, rules=rules))
    params, _ = conversion.load(tmp_path / "in", layout=layout)
    assert_same(params, conversion.load(tmp_path / "in")[0])


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    message = r"nothing must be a folder of published weights or a work directory, nothing of that"
    with pytest.raises(ConfigError, match=message):
        conversion.load(tmp_path / "nothing")


def test_a_dtype_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"dtype must be float32 or bfloat16, got 'int8'"):
        conversion.load(GOLDEN, dtype="int8")


def test_pickles_need_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PyTorch the file is not touched, let alone unpickled."""
    folders.write_folder(tmp_path / "in")
    (tmp_path / "in" / "model.safetensors").unlink()
    (tmp_path / "in" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pytorch_model.bin is a PyTorch pickle, which only Py"):
        conversion.load(tmp_path / "in")


def test_a_work_directory_needs_its_checkpoint(tmp_path: Path) -> None:
    folders.write_folder(tmp_path / "in")
    convert.main(["import", str(tmp_path / "in"), str(tmp_path / "run")])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    epath.Path(tmp_path / "run" / "checkpoints").rmtree()
    assert config["model"]["embed"] == 32
    with pytest.raises(ConfigError, match=r"run must hold a checkpoint, none is there"):
        conversion.load(tmp_path / "run")
