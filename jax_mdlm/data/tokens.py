"""Where the tokens of rows are, and how those of a batch are fetched.

A split's tokens are one sequence, whether an array holds it or files do, the shards of `prepare`. A
shard is a NumPy file. A local one is mapped, so that reading costs the pages that are touched and
no memory of the process. One in a bucket is read by ranges, all of a batch at once, so that a batch
waits for the bucket once and not once a row.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from etils import epath

from jax_mdlm.config import ConfigError, first_line


class Tokens(Protocol):
    """A sequence of token ids."""

    def take(self, begin: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Pieces of the sequence, one after the other.

        Args:
          begin: int64 [n]; where each begins.
          size: int64 [n]; its tokens.

        Returns:
          int32 [sum of size].
        """
        ...


@dataclasses.dataclass(frozen=True)
class HeldTokens:
    """Tokens in memory.

    Attributes:
      ids: int32 [tokens].
    """

    ids: np.ndarray

    def take(self, begin: np.ndarray, size: np.ndarray) -> np.ndarray:
        """See `Tokens`."""
        return self.ids[_indices(begin, size)]


def open_shards(files: Sequence[epath.Path], sizes: Sequence[int]) -> Tokens:
    """The tokens of files: in memory where a bucket has few, else where they are (`ShardTokens`).

    Raises:
      ConfigError: as `ShardTokens`, or an object cannot be read.
    """
    shards = ShardTokens(files, sizes)
    if "://" not in os.fspath(files[0]) or sum(sizes) > _HELD:
        return shards
    return HeldTokens(shards.take(np.zeros(1, np.int64), np.full(1, sum(sizes))))


class ShardTokens:
    """Tokens in files, each an int32 array of NumPy's format."""

    def __init__(self, files: Sequence[epath.Path], sizes: Sequence[int]) -> None:
        """Maps local files; of others nothing is read yet.

        Args:
          files: The shards, in order.
          sizes: Tokens of each.

        Raises:
          ConfigError: a file is not there, or not of that size.
        """
        self._files = list(files)
        self._border = np.concatenate([[0], np.cumsum(np.asarray(sizes, np.int64))])
        remote = [path for path in self._files if "://" in os.fspath(path)]
        self._maps = None if remote else [map_array(path) for path in self._files]
        for path, size, array in zip(self._files, sizes, self._maps or (), strict=False):
            if len(array) != size or array.dtype != np.int32:
                raise ConfigError(
                    f"{path} must hold {size:,} tokens, it has {len(array):,} of {array.dtype}; "
                    f"{_REMEDY}"
                )

    def take(self, begin: np.ndarray, size: np.ndarray) -> np.ndarray:
        """See `Tokens`."""
        shard = np.searchsorted(self._border, begin, side="right") - 1
        shard = np.where(size > 0, shard, 0)  # what is empty may stand at the very end
        # A row of pre-training may go on in the next shards.
        if (crossing := begin + size > self._border[shard + 1])[size > 0].any():
            return self._take_cut(begin, size, crossing & (size > 0))
        local = begin - self._border[shard]
        if self._maps is None:
            return self._fetch(shard, local, size)
        found = np.empty(int(size.sum()), np.int32)
        target = np.cumsum(size) - size
        for number in np.unique(shard[size > 0]):
            own = shard == number
            indices = _indices(local[own], size[own])
            found[_indices(target[own], size[own])] = self._maps[number][indices]
        return found

    def _take_cut(self, begin: np.ndarray, size: np.ndarray, crossing: np.ndarray) -> np.ndarray:
        """As `take`, each piece cut where its shard ends."""
        begins, sizes = [], []
        for first, count, crosses in zip(begin, size, crossing, strict=True):
            inside = self._border[(self._border > first) & (self._border < first + count)]
            edges = np.concatenate([[first], inside if crosses else [], [first + count]])
            begins.append(edges[:-1].astype(np.int64))
            sizes.append(np.diff(edges).astype(np.int64))
        return self.take(np.concatenate(begins), np.concatenate(sizes))

    def _fetch(self, shard: np.ndarray, local: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Reads pieces from a bucket; those that stand close to each other by one request."""
        from jax_mdlm.storage.places import read_ranges  # buckets' clients: only where there is one

        wanted = np.flatnonzero(size)
        if not len(wanted):
            return np.empty(0, np.int32)
        wanted = wanted[np.lexsort((local[wanted], shard[wanted]))]
        begins, ends = local[wanted], local[wanted] + size[wanted]
        reached = np.maximum.accumulate(ends + shard[wanted] * _FAR) - shard[wanted] * _FAR
        apart = (shard[wanted][1:] != shard[wanted][:-1]) | (begins[1:] - reached[:-1] > _GAP)
        opens = np.concatenate([[0], np.flatnonzero(apart) + 1])
        ranges = [
            (self._files[shard[wanted[at]]], HEADER + 4 * int(begins[at]), HEADER + 4 * int(end))
            for at, end in zip(opens, reached[np.append(opens[1:], len(wanted)) - 1], strict=True)
        ]
        read = [np.frombuffer(content, "<i4") for content in read_ranges(ranges)]
        request = np.searchsorted(opens, np.arange(len(wanted)), side="right") - 1
        found: list[np.ndarray] = [np.empty(0, np.int32)] * len(size)
        for at, begin, number in zip(wanted, begins, request, strict=True):
            offset = int(begin - begins[opens[number]])
            found[at] = read[number][offset : offset + size[at]]
        return np.concatenate(found).astype(np.int32, copy=False)


_HELD = 2**24  # tokens of a bucket that are read once and kept: 64 MB
_GAP = 2**14  # tokens, 64 kB; closer pieces are read together
_FAR = 2**40  # more tokens than a shard has
HEADER = 128  # bytes before the values of a file of `shards.npy_bytes`
_REMEDY = "copy the folder again, or prepare the rows into another one"


def map_array(path: epath.Path, remedy: str = _REMEDY) -> np.ndarray:
    """A local file of NumPy's format, mapped; an empty array where it holds none.

    Raises:
      ConfigError: it is not there, or damaged.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ConfigError(
            f"{path} must be a whole NumPy file, but cannot be read ({reason}); {remedy}"
        ) from error


def _indices(begin: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Every index of the pieces, int64 [sum of size]."""
    before = np.cumsum(size) - size
    return np.repeat(begin - before, size) + np.arange(int(size.sum()))
