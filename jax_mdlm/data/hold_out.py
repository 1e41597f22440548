"""Which rows are held out for validation: by a hash of what they say.

A row keeps its side when rows are added, moved or read from other files, and equal rows are on one
side.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from jax_mdlm.data.examples import Example


def held_out(examples: Sequence[Example], percent: float) -> np.ndarray:
    """Which rows belong to the validation split, by a hash of their content.

    Where the hash holds out none, the rows with the smallest hash are taken, so that a
    small file can be evaluated too; where it holds out all, those with the largest are left to
    train on. Rows that are all equal have one hash: none of them is held out.

    Args:
      examples: The rows of the source.
      percent: Expected share, in percent; 0 = none.

    Returns:
      bool [rows].
    """
    hashes = np.array([content_hash(example) for example in examples], dtype=np.uint64)
    if not len(hashes):
        return np.zeros(0, bool)
    limit = settle_limit(hash_limit(percent), int(hashes.min()), int(hashes.max()))
    return hashes < np.uint64(limit)


def hash_limit(percent: float) -> int:
    """Rows whose hash is below belong to the validation split; `percent` as for `held_out`."""
    return int(min(percent / 100, 1 - 2**-52) * 2.0**64) if percent > 0 else 0


def settle_limit(limit: int, least: int, most: int) -> int:
    """The limit for rows with these hashes, that leaves both splits a row where it can be.

    Args:
      limit: From `hash_limit`.
      least: The smallest hash of all rows.
      most: The largest.
    """
    if limit == 0 or least == most:
        return 0
    if least >= limit:
        return least + 1
    return min(limit, most)


def content_hash(example: Example) -> int:
    """A hash of roles and contents, below 2^64."""
    text = "\x1e".join(f"{message.role}\x1f{message.content}" for message in example)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
