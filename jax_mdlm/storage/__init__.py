"""Pytrees on disk and on `gs://`: numbered checkpoints, arrays in boxes."""

from jax_mdlm.storage.arrays import (
    Index,
    StoredArray,
    Streamed,
    as_bits,
    box_shape,
    run_in_threads,
)
from jax_mdlm.storage.checkpoints import (
    CheckpointError,
    Checkpoints,
    DamagedError,
    named_steps,
    open_checkpoints,
)
from jax_mdlm.storage.places import (
    alone_in,
    check_room,
    given_path,
    in_one_line,
    reaching,
    read_range,
    taking,
)

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "DamagedError",
    "Index",
    "StoredArray",
    "Streamed",
    "alone_in",
    "as_bits",
    "box_shape",
    "check_room",
    "given_path",
    "in_one_line",
    "named_steps",
    "open_checkpoints",
    "reaching",
    "read_range",
    "run_in_threads",
    "taking",
]
