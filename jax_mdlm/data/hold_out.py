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
    if percent <= 0 or len(np.unique(hashes)) < 2:
        return np.zeros(len(examples), bool)
    chosen = hashes < hash_limit(percent)
    if not chosen.any():
        return hashes == hashes.min()
    if chosen.all():
        return hashes != hashes.max()
    return chosen


def hash_limit(percent: float) -> np.uint64:
    """Rows whose hash is below belong to the validation split; `percent` as for `held_out`."""
    return np.uint64(min(percent / 100, 1 - 2**-52) * 2.0**64)


def content_hash(example: Example) -> int:
    """A hash of roles and contents, below 2^64."""
    text = "\x1e".join(f"{message.role}\x1f{message.content}" for message in example)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
