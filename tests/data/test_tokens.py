"""Pieces of tokens, from memory, from mapped shards and by ranges from a bucket."""

import os
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from jax_mdlm.config import ConfigError
from jax_mdlm.data import tokens
from jax_mdlm.data.shards import npy_bytes
from jax_mdlm.data.tokens import HeldTokens, ShardTokens

SIZES = [50, 0, 300, 7, 1000]


@pytest.fixture(scope="module")
def arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 1000, size).astype(np.int32) for size in SIZES]


def compare(shards: ShardTokens, arrays: list[np.ndarray]) -> None:
    whole = np.concatenate(arrays)
    rng = np.random.default_rng(1)
    for _ in range(300):
        count = rng.integers(0, 12)
        begin = rng.integers(0, len(whole) + 1, count)
        size = np.minimum(
            rng.integers(0, 60, count) * rng.integers(0, 2, count), len(whole) - begin
        )
        expected = [whole[b : b + s] for b, s in zip(begin, size, strict=True)]
        expected = np.concatenate([np.empty(0, np.int32), *expected])
        for found in (shards.take(begin, size), HeldTokens(whole).take(begin, size)):
            assert found.dtype == np.int32
            np.testing.assert_array_equal(found, expected)


def test_local_shards_are_one_sequence(tmp_path: Path, arrays: list[np.ndarray]) -> None:
    paths = [epath.Path(tmp_path / f"{number}.npy") for number in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        path.write_bytes(npy_bytes(array))
        np.testing.assert_array_equal(np.load(path), array)
    compare(ShardTokens(paths, SIZES), arrays)
    with pytest.raises(
        ConfigError, match=r"0\.npy must hold 51 tokens, it has 50 of int32; copy the folder again"
    ):
        ShardTokens(paths, [51, *SIZES[1:]])
    paths[2].write_bytes(b"no array")
    with pytest.raises(ConfigError, match=r"2\.npy must be a whole NumPy file, but "):
        ShardTokens(paths, SIZES)


@pytest.mark.parametrize("gap", [0, 3, 100, 2**14])
def test_neighbours_in_a_bucket_are_read_by_one_request(
    arrays: list[np.ndarray], gap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [epath.Path(f"gs://bucket/{number}.npy") for number in range(len(arrays))]
    files = {os.fspath(p): npy_bytes(a) for p, a in zip(paths, arrays, strict=True)}
    asked: list[int] = []

    def read_ranges(ranges: list[tuple[epath.Path, int, int]]) -> list[bytes]:
        asked.append(len(ranges))
        return [files[os.fspath(path)][begin:end] for path, begin, end in ranges]

    monkeypatch.setattr("jax_mdlm.storage.places.read_ranges", read_ranges)
    monkeypatch.setattr(tokens, "_GAP", gap)
    shards = ShardTokens(paths, SIZES)
    compare(shards, arrays)
    asked.clear()
    shards.take(np.array([400, 60, 500, 63]), np.array([5, 3, 5, 10]))
    assert asked == [{0: 3, 3: 3, 100: 2}.get(gap, 2)]
