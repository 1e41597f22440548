"""Random numbers that depend on (seed, epoch, row) only.

The order of rows, the turn cuts and the random lengths are functions of these three numbers: there
is no generator whose state a checkpoint would have to hold, batches do not depend on the number of
processes, and a library upgrade does not change the order of a run that is resumed.
"""

import numpy as np

ORDER, TURN, CUT, CUT_LENGTH, PADDING = range(5)  # what a draw is for; each has its own stream

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def uniform(seed: int, stream: int, epochs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1), one per row.

    Args:
      seed: `data.seed`.
      stream: One of the names above.
      epochs: int [n], or [] for all rows.
      rows: int [n].

    Returns:
      float64 [n].
    """
    return (_bits(seed, stream, epochs, rows) >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, epoch: int, rows: int) -> np.ndarray:
    """The order of an epoch: int64 [rows], every row once."""
    bits = _bits(seed, ORDER, np.asarray(epoch), np.arange(rows))
    return np.argsort(bits, kind="stable")


def _bits(seed: int, stream: int, epochs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    state = _mix(np.asarray(seed % 2**64, np.uint64))
    for word in (np.asarray(stream), epochs, rows):
        state = _mix(state ^ np.asarray(word).astype(np.uint64))
    return state


def _mix(state: np.ndarray) -> np.ndarray:
    """One step of SplitMix64 (Steele, Lea and Flood, 2014); the products wrap around."""
    with np.errstate(over="ignore"):
        state = state + _GAMMA
        state = (state ^ (state >> np.uint64(30))) * _MIX_1
        state = (state ^ (state >> np.uint64(27))) * _MIX_2
        return state ^ (state >> np.uint64(31))
