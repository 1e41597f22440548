"""Checkpoints to and from PyTorch, in one walk.

Whatever holds parameters gives arrays that are read in boxes (`reading`); devices, a work directory
(`importing`) and a published folder (`exporting`) ask for the boxes.
"""

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
