"""Pytrees on disk and on `gs://`: numbered checkpoints, arrays in pieces."""

from jax_mdlm.storage.checkpoints import (
    CheckpointError,
    Checkpoints,
    DamagedError,
    named_steps,
    open_checkpoints,
)
from jax_mdlm.storage.chunks import StoredArray
from jax_mdlm.storage.pieces import Piece, Streamed, run_pieces
from jax_mdlm.storage.places import alone_in, place, reaching, read_range

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "DamagedError",
    "Piece",
    "StoredArray",
    "Streamed",
    "alone_in",
    "named_steps",
    "open_checkpoints",
    "place",
    "reaching",
    "read_range",
    "run_pieces",
]
