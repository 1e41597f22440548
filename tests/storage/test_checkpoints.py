"""Checkpoints: whole or refused, with the text of every refusal."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from jax_mdlm.config import MeshConfig
from jax_mdlm.sharding import make_layout
from jax_mdlm.storage import CheckpointError, Checkpoints, DamagedError, open_checkpoints

TREE = {"a": {"b": jnp.arange(16.0).reshape(8, 2)}, "n": jnp.int32(3)}


def abstract(tree=TREE):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoints:
    checkpoints = open_checkpoints(epath.Path(tmp_path / "c"), keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, jax.tree.map(lambda x: x + step, TREE), {"step": step})
    checkpoints.wait()
    return checkpoints


def test_round_trip_and_keeping(saved: Checkpoints) -> None:
    assert saved.latest() == 3
    assert sorted(saved.manager.all_steps()) == [2, 3]
    back = saved.restore(2, abstract())
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x + 2, y), TREE, back)
    assert saved.record(3) == {"step": 3}
    assert saved.shapes(3) == {"a/b": ((8, 2), "float32"), "n": ((), "int32")}


def test_multiples_stay_for_good(tmp_path: Path) -> None:
    """On disk, and over restarts: the newest two, and every fourth."""
    folder = epath.Path(tmp_path / "c")
    for first, kept in ((1, [4, 8, 9]), (10, [4, 8, 12, 16, 17])):
        checkpoints = open_checkpoints(folder, keep=2, keep_every=4)
        for step in range(first, first + 9 if first == 1 else 18):
            checkpoints.save(step, TREE, {})
        checkpoints.close()
        assert sorted(int(path.name) for path in folder.iterdir()) == kept
    checkpoints = open_checkpoints(folder, keep=1)  # switched off again
    checkpoints.save(18, TREE, {})
    checkpoints.close()
    assert open_checkpoints(folder).steps() == [18]


def test_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints = open_checkpoints(epath.Path("runs/c"), keep=1)
    checkpoints.save(1, TREE, {})
    checkpoints.close()
    assert open_checkpoints(epath.Path("runs/c")).latest() == 1


def test_a_part_goes_straight_to_another_mesh(saved: Checkpoints) -> None:
    place = make_layout(MeshConfig(fsdp=8)).sharding(("embed", None))
    want = {"a": {"b": jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=place)}}
    back = saved.restore(3, want)
    assert back["a"]["b"].sharding == place
    np.testing.assert_array_equal(back["a"]["b"], TREE["a"]["b"] + 3)


def test_another_shape_is_refused_with_every_difference(saved: Checkpoints) -> None:
    other = {"a": {"b": jnp.zeros((8, 3))}, "n": jnp.float32(0), "c": jnp.zeros(1)}
    with pytest.raises(CheckpointError) as raised:
        saved.restore(3, abstract(other))
    text = str(raised.value)
    assert "c is not stored" in text
    assert "a/b is (8, 2) float32 there, (8, 3) float32 here" in text
    assert "n is () int32 there, () float32 here" in text
    assert text.endswith("use its own config or another --workdir")


@pytest.mark.parametrize("what", ["arrays", "description", "cut"])
def test_damage_is_named(saved: Checkpoints, what: str) -> None:
    folder = saved.folder / "3" / "tree"
    if what == "arrays":
        for part in folder.glob("ocdbt.process_*"):
            shutil.rmtree(part)
        shutil.rmtree(folder / "d", ignore_errors=True)
    elif what == "description":
        (folder / "_METADATA").write_text("{")
    else:
        for file in (f for f in Path(folder).glob("**/d/*") if f.is_file()):
            file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(
        DamagedError,
        match=r"c/3 must be whole, but is damaged \(.*\); remove that folder, step 2",
    ):
        saved.restore(3, abstract())
