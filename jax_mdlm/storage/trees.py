"""A tree of arrays in an Orbax folder: what it holds, and whether it fits what is asked for."""

from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from jax_mdlm.config import ConfigError
from jax_mdlm.storage.chunks import check_files

Shapes = Mapping[str, tuple[tuple[int, ...], str]]

_DESCRIPTION = "_METADATA"  # the file that Orbax writes into every folder of arrays
# Names under which a tree stands in a folder of several items: ours, Orbax's own.
_ITEMS = ("tree", "default", "params", "state")


class CheckpointError(ConfigError):
    """A checkpoint that cannot be read as asked; its text names the folder and the remedy."""


class DamagedError(CheckpointError):
    """A checkpoint whose files are missing, short or unreadable, whatever is asked of it."""


def is_tree(folder: epath.Path) -> bool:
    """Whether arrays that Orbax wrote are in `folder`, or in an item of it."""
    return _find(folder) is not None


def tree_shapes(folder: epath.Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """`{"params/wte": ((V, D), "float32"), ...}` as stored; reads no array.

    Raises:
      CheckpointError: the folder is damaged.
    """
    try:
        check_files(_need(folder), values=False)
        metadata = ocp.PyTreeCheckpointHandler().metadata(_need(folder))
    except Exception as error:  # Orbax and TensorStore raise nothing narrower
        raise _damaged(folder, error) from error
    tree = metadata.tree if hasattr(metadata, "tree") else metadata
    return {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in named_leaves(tree)}


def restore_tree(folder: epath.Path, abstract: Any) -> Any:
    """Reads arrays straight into their places, cast to the dtypes that are asked for.

    Args:
      folder: What Orbax wrote, or a folder of several items of which one is a tree.
      abstract: Tree of `jax.ShapeDtypeStruct` with shardings; may be a part of what is stored.

    Raises:
      CheckpointError: another structure or shape than stored, or damaged files.
    """
    check_fits(tree_shapes(folder), abstract, str(folder), cast=True)
    try:
        check_files(_need(folder), values=True)
        return ocp.PyTreeCheckpointHandler().restore(_need(folder), args=restore_args(abstract))
    except Exception as error:
        raise _damaged(folder, error) from error


def check_fits(stored: Shapes, abstract: Any, what: str, cast: bool) -> None:
    """Raises CheckpointError if `abstract` asks for arrays that are not `stored`; names all.

    Args:
      stored: Shapes and dtypes by name.
      abstract: What is asked for.
      what: The folder, for the message.
      cast: Another dtype is no difference.
    """
    wanted = {name: (tuple(x.shape), str(x.dtype)) for name, x in named_leaves(abstract)}
    wrong = [f"{name} is not stored" for name in wanted if name not in stored]
    wrong += [
        f"{name} is {stored[name][0]} {stored[name][1]} there, {shape} {dtype} here"
        for name, (shape, dtype) in wanted.items()
        if name in stored and (stored[name][0] != shape or (stored[name][1] != dtype and not cast))
    ]
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if wrong[3:] else "")
        raise CheckpointError(
            f"{what} is of another model or optimizer: {shown}; use its own config or another "
            "--workdir"
        )


def restore_args(abstract: Any) -> ocp.args.PyTreeRestore:
    """What Orbax needs to read a part of a tree into its places."""
    return ocp.args.PyTreeRestore(
        abstract,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=True,
    )


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Leaves with their paths, `params/wte`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: hasattr(x, "shape") and hasattr(x, "dtype")
    )
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _find(folder: epath.Path) -> epath.Path | None:
    places = [folder, *(folder / item for item in _ITEMS)]
    return next((place for place in places if (place / _DESCRIPTION).exists()), None)


def _need(folder: epath.Path) -> epath.Path:
    found = _find(folder)
    if found is None:
        raise CheckpointError(f"{folder} must hold arrays that Orbax wrote, it holds none")
    return found


def _damaged(folder: epath.Path, reason: object) -> DamagedError:
    text = " ".join(str(reason).split())
    return DamagedError(f"{folder} must hold whole arrays, but is damaged ({text[:300]})")
