"""PyTorch pickles (`pytorch_model.bin`): only through PyTorch, only its weights-only reader.

A pickle can run code when it is read. PyTorch's reader with `weights_only=True` refuses everything
but tensors; nothing here unpickles by itself. PyTorch is no dependency: whoever has none is told
how to get safetensors.
"""

import importlib.util
import os
from typing import Any

import numpy as np
from etils import epath

from jax_mdlm.config import ConfigError, first_line
from jax_mdlm.conversion.shards import DTYPES, Tensor

INDEX = "pytorch_model.bin.index.json"
SINGLE = ("pytorch_model.bin", "pytorch_model.pt", "model.pt")


def read_file(path: epath.Path) -> dict[str, Tensor]:
    """Maps the tensors of a pickle into memory.

    Raises:
      ConfigError: PyTorch is not installed, the file is not local, or it holds anything else than
        tensors by name.
    """
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(
            f"{path} is a PyTorch pickle, which only PyTorch can read safely, and it is not "
            "installed; install torch, or take the safetensors files of this model"
        )
    if not os.path.exists(path):
        raise ConfigError(f"{path} must be a local file to be read by PyTorch; copy it here")
    import torch  # pyright: ignore[reportMissingImports]

    try:
        state = torch.load(os.fspath(path), map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # whatever is not a plain file of tensors
        raise ConfigError(
            f"{path} must be a whole file of nothing but tensors, as torch.save writes it today, "
            f"PyTorch refuses it ({first_line(error)}); save it again, or take the safetensors "
            "files"
        ) from error
    names = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float16: "F16"}
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise ConfigError(f"{path} must hold tensors by name, it does not; save a state_dict")
    return {
        name: Tensor(
            name,
            tuple(value.shape),
            names.get(value.dtype, str(value.dtype).removeprefix("torch.")),
            path.name,
            _rows(value, names.get(value.dtype)),
        )
        for name, value in state.items()
    }


def _rows(value: Any, dtype: str | None) -> Any:
    def rows(first: int, last: int) -> np.ndarray:
        import torch  # pyright: ignore[reportMissingImports]

        kind = DTYPES[dtype or ""]
        piece = value.detach()[first:last].contiguous()
        bits = torch.int32 if kind.itemsize == 4 else torch.int16  # NumPy knows no bfloat16
        return piece.view(bits).numpy().view(kind)

    return rows
