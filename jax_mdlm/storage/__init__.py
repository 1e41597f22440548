"""Pytrees on disk and on `gs://`: numbered checkpoints, arrays in boxes."""

from jax_mdlm.storage.checkpoints import (
    CheckpointError,
    Checkpoints,
    DamagedError,
    named_steps,
    open_checkpoints,
)
from jax_mdlm.storage.hub import fetch_repository
from jax_mdlm.storage.places import alone_in, given_path, reaching, read_range, replace_text

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "DamagedError",
    "alone_in",
    "fetch_repository",
    "given_path",
    "named_steps",
    "open_checkpoints",
    "reaching",
    "read_range",
    "replace_text",
]
