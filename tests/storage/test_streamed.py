"""Leaves that are written box by box."""

import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from etils import epath

from jax_mdlm.storage import open_checkpoints
from jax_mdlm.storage.arrays import Index, Streamed, run_in_threads

VALUES = np.arange(2 * 6 * 4).reshape(2, 6, 4).astype(ml_dtypes.bfloat16)


class Values:
    """An array in memory, read in boxes."""

    shape, dtype = VALUES.shape, VALUES.dtype

    def read(self, index: Index, out: np.ndarray) -> None:
        out[...] = VALUES[index]


def leaf(array: Values | None = None) -> Streamed:
    boxes = [(slice(i, i + 1), slice(j, j + 3), slice(0, 4)) for i in range(2) for j in (0, 3)]
    return Streamed(array or Values(), (1, 3, 4), tuple(boxes))


def test_orbax_restores_what_was_streamed(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(epath.Path(tmp_path / "c"), keep=1, streamed=True)
    checkpoints.save(0, {"params": {"w": leaf()}}, {"step": 0})
    checkpoints.wait()
    checkpoints.close()
    checkpoints = open_checkpoints(epath.Path(tmp_path / "c"))
    assert checkpoints.shapes(0) == {"params/w": ((2, 6, 4), "bfloat16")}
    assert checkpoints.record(0) == {"step": 0}
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {"params": {"w": jax.ShapeDtypeStruct((2, 6, 4), jnp.bfloat16, sharding=place)}}
    back = checkpoints.restore(0, abstract)["params"]["w"]
    np.testing.assert_array_equal(back.astype(jnp.float32), VALUES.astype(np.float32))


def test_a_box_that_fails_leaves_no_checkpoint(tmp_path: Path, capfd) -> None:
    class Failing(Values):
        def read(self, index: Index, out: np.ndarray) -> None:
            raise OSError("no space")

    checkpoints = open_checkpoints(epath.Path(tmp_path / "c"), keep=1, streamed=True)
    checkpoints.save(0, {"w": leaf(Failing())}, {})
    with pytest.raises(OSError, match="no space"):
        checkpoints.wait()
    assert open_checkpoints(epath.Path(tmp_path / "c")).latest() is None


def test_buffers_are_used_again_and_bounded() -> None:
    """Each thread holds one buffer; never more of them than threads are alive at once."""
    seen: dict[int, set[int]] = {}
    lock = threading.Lock()

    def note(buffer: np.ndarray) -> None:
        assert buffer.dtype == np.uint8
        time.sleep(0.001)
        with lock:
            seen.setdefault(threading.get_ident(), set()).add(buffer.__array_interface__["data"][0])

    run_in_threads([(note, 1000)] * 50, workers=2)
    assert 1 <= len(seen) <= 2
    assert all(len(places) == 1 for places in seen.values())


def test_the_first_error_stops_the_rest() -> None:
    done = []

    def work(number: int):
        def run(_: np.ndarray) -> None:
            if number == 3:
                raise ValueError("the third")
            done.append(number)
            time.sleep(0.002)

        return run

    with pytest.raises(ValueError, match="the third"):
        run_in_threads([(work(number), 0) for number in range(1000)], workers=2)
    assert len(done) < 20
