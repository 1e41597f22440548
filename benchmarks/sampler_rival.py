"""Another sampler in the same process: a Python file whose function decodes the same prompts.

The file defines `make(params, config, options)`, which returns a function of prompts (lists of
token ids) that returns the canvas, integers [B, L], of which the last `options.settings.length`
slots are compared. `params` holds NumPy arrays. If it also defines `describe()`, a dict, that is
printed.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax_mdlm.config import ConfigError

DEFAULT_FUNCTION = "make"


@dataclasses.dataclass(frozen=True)
class Rival:
    """A sampler that is measured beside ours.

    Attributes:
      name: The file's name and the function's.
      make: (params, ModelConfig, SampleOptions) -> function of prompts.
      describe: What is printed about it.
    """

    name: str
    make: Callable[..., Callable[[list[list[int]]], Any]]
    describe: Callable[[], dict[str, Any]]


def load(place: str) -> Rival:
    """Imports a rival's file.

    Args:
      place: `FILE` or `FILE:FUNCTION`.

    Returns:
      The rival, nothing made yet.

    Raises:
      ConfigError: no such file or function, or the file needs a package that is not installed.
    """
    path, _, function = place.partition(".py:")
    path = Path(path + ".py" if function else place)
    function = function or DEFAULT_FUNCTION
    if not path.is_file():
        raise ConfigError(
            f"--rival must be a Python file, or FILE:FUNCTION, got {place}; there is no file {path}"
        )
    spec = importlib.util.spec_from_file_location(f"rival_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--rival must be a Python file, got {place}; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"--rival {path} needs the package {error.name}; install it") from error
    if not callable(getattr(module, function, None)):
        raise ConfigError(
            f"--rival {path} must define {function}(params, config, options), it does not"
        )
    return Rival(
        name=f"{path.name}:{function}",
        make=getattr(module, function),
        describe=getattr(module, "describe", dict),
    )
