"""jax_mdlm: masked-diffusion language models in JAX, trained so that a token may slip by a slot.

    import jax_mdlm

    model = jax_mdlm.load("runs/quickstart")
    print(model.generate(["alignment"]))

Importing the package starts nothing: what `load` needs is imported when it is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax_mdlm.mdlm import Mdlm, load

__version__ = "0.1.0"

__all__ = ["Mdlm", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in ("Mdlm", "load"):
        from jax_mdlm import mdlm

        return getattr(mdlm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
