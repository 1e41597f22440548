"""Checkpoints to and from PyTorch."""

from jax_mdlm.conversion.adapters import export_adapter
from jax_mdlm.conversion.exporting import export_weights
from jax_mdlm.conversion.importing import import_weights
from jax_mdlm.conversion.loading import Origin, inspect, load, open_origin
from jax_mdlm.conversion.reading import Meter
from jax_mdlm.conversion.source import is_published, open_source

__all__ = [
    "Meter",
    "Origin",
    "export_adapter",
    "export_weights",
    "import_weights",
    "inspect",
    "is_published",
    "load",
    "open_origin",
    "open_source",
]
