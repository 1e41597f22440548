"""Boxes of stored arrays against whole arrays; the direct way and TensorStore's read the same."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from etils import epath

from jax_mdlm.storage import arrays, open_checkpoints

SHAPE = (3, 10, 7)
VALUES = np.arange(np.prod(SHAPE)).reshape(SHAPE)


def spans(size: int) -> list[slice]:
    return [slice(a, b) for a, b in itertools.combinations(range(0, size + 1, 2), 2)]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "chunk", [(1, 5, 7), (1, 10, 7), (2, 4, 3), (3, 10, 7), (1, 1, 1)], ids=str
)
def test_every_box_of_every_chunking(tmp_path: Path, chunk: tuple, dtype: type) -> None:
    values = VALUES.astype(dtype)
    array = arrays.create(epath.Path(tmp_path / "a"), SHAPE, chunk, np.dtype(dtype))
    whole = tuple(slice(0, size) for size in SHAPE)
    array.write(whole, values)
    # TensorStore, which Orbax reads with, is the oracle of the form
    spec = {"driver": "zarr", "kvstore": f"file://{tmp_path}/a/", "fill_missing_data_reads": False}
    theirs = tensorstore.open(spec).result().read().result()
    np.testing.assert_array_equal(theirs.astype(np.float32), values.astype(np.float32))
    (raw,) = arrays.open_arrays(epath.Path(tmp_path), ["a"]).values()
    assert isinstance(raw, arrays.RawArray)
    assert (raw.shape, raw.dtype, raw.chunk) == (SHAPE, np.dtype(dtype), chunk)
    for index in itertools.product(*map(spans, SHAPE)):
        out = np.empty([part.stop - part.start for part in index], dtype)
        raw.read(index, out)
        np.testing.assert_array_equal(out.astype(np.float32), values[index].astype(np.float32))


@pytest.mark.parametrize("options", [{}, {"use_zarr3": True}, {"use_ocdbt": False}], ids=str)
def test_whatever_orbax_wrote_is_read(tmp_path: Path, options: dict) -> None:
    """Packed, zarr 3 and compressed folders go through TensorStore."""
    folder = epath.Path(tmp_path / "tree")
    tree = {"params": {"w": jnp.asarray(VALUES, jnp.bfloat16)}}
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)).save(folder, tree)
    (array,) = arrays.open_arrays(folder, ["params/w"]).values()
    assert isinstance(array, arrays.OpenedArray)
    assert (array.shape, array.dtype) == (SHAPE, np.dtype(ml_dtypes.bfloat16))
    index = (slice(1, 3), slice(2, 9), slice(0, 7))
    out = np.empty((2, 7, 7), ml_dtypes.bfloat16)
    array.read(index, out)
    np.testing.assert_array_equal(out.astype(np.float32), VALUES[index])


def test_lost_and_short_chunks_are_errors(tmp_path: Path) -> None:
    array = arrays.create(epath.Path(tmp_path / "a"), SHAPE, (1, 10, 7), np.dtype(np.float32))
    whole = tuple(slice(0, size) for size in SHAPE)
    array.write(whole, VALUES.astype(np.float32))
    (tmp_path / "a" / "2.0.0").write_bytes(b"123")
    out = np.empty(SHAPE, np.float32)
    with pytest.raises(OSError, match=r"2.0.0 must have 280 bytes, it has 3"):
        array.read(whole, out)
    (tmp_path / "a" / "2.0.0").unlink()
    with pytest.raises(FileNotFoundError, match=r"2\.0\.0"):
        array.read(whole, out)


def test_layers_of_a_saved_state_are_chunks_of_their_own(tmp_path: Path) -> None:
    """So that an export reads every byte of a training checkpoint once."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    tree = {"w": jax.device_put(VALUES.astype(np.float32), place), "v": jnp.ones(4)}
    checkpoints = open_checkpoints(epath.Path(tmp_path / "c"), keep=1)
    checkpoints.save(0, tree, {})
    checkpoints.wait()
    array = checkpoints.arrays(0)["w"]
    assert isinstance(array, arrays.OpenedArray)
    assert array.store.chunk_layout.read_chunk.shape == (1, 10, 7)
    checkpoints.close()
