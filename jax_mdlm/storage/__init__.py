"""Pytrees on disk and on `gs://`: numbered checkpoints, plain trees, arrays in pieces."""

from jax_mdlm.storage.buckets import place, reaching, read_range
from jax_mdlm.storage.checkpoints import Checkpoints, named_steps, open_checkpoints
from jax_mdlm.storage.chunks import StoredArray
from jax_mdlm.storage.locks import alone_in
from jax_mdlm.storage.pieces import Piece, Streamed, run_pieces
from jax_mdlm.storage.trees import CheckpointError, DamagedError, is_tree, restore_tree, tree_shapes

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "DamagedError",
    "Piece",
    "StoredArray",
    "Streamed",
    "alone_in",
    "is_tree",
    "named_steps",
    "open_checkpoints",
    "place",
    "reaching",
    "read_range",
    "restore_tree",
    "run_pieces",
    "tree_shapes",
]
