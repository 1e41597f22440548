"""Pytrees on disk and on `gs://`: numbered checkpoints through Orbax.

Plain trees of arrays enter with a small JSON record beside them; sharded arrays leave. Training
and conversion build on this file; nothing else touches Orbax.
"""

import dataclasses
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from jax_mdlm.config import ConfigError


class CheckpointError(ConfigError):
    """A checkpoint that cannot be read as asked; its text names the folder and the remedy."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The numbered checkpoints of one folder: `<folder>/<step>/{tree,record}`.

    A step's folder appears under its final name only when it is whole (written aside, renamed), so
    a killed process leaves no half checkpoint that a restart would read.
    """

    folder: epath.Path
    manager: ocp.CheckpointManager

    def latest(self) -> int | None:
        """The newest step, or None."""
        return self.manager.latest_step()

    def save(self, step: int, tree: Any, record: dict[str, Any]) -> None:
        """Starts writing; returns when the arrays have been copied off the devices."""
        self.manager.save(
            step,
            args=ocp.args.Composite(
                tree=ocp.args.PyTreeSave(tree), record=ocp.args.JsonSave(record)
            ),
            force=True,
        )

    def wait(self) -> None:
        """Returns when everything that was started is on disk; raises what went wrong."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the threads."""
        self.manager.close()

    def shapes(self, step: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """`{"params/wte": ((V, D), "float32"), ...}` as stored; reads no array."""
        try:
            metadata = self.manager.item_metadata(step)["tree"]
        except Exception as error:
            raise self._damaged(step, error) from error
        if metadata is None:
            raise self._damaged(step, "its description is missing")
        return {
            name: (tuple(leaf.shape), str(leaf.dtype))
            for name, leaf in _named_leaves(
                metadata.tree if hasattr(metadata, "tree") else metadata
            )
        }

    def restore(self, step: int, abstract: Any) -> Any:
        """Reads arrays straight into their places.

        Args:
          step: Which checkpoint.
          abstract: Tree of `jax.ShapeDtypeStruct` with shardings; may be a part of what is
            stored (e.g. only "params").

        Raises:
          CheckpointError: another structure or shape than stored (all differences named), or
            files that are missing or damaged.
        """
        stored = self.shapes(step)
        wanted = {name: (tuple(x.shape), str(x.dtype)) for name, x in _named_leaves(abstract)}
        wrong = [f"{name} is not stored" for name in wanted if name not in stored]
        wrong += [
            f"{name} is {stored[name][0]} {stored[name][1]} there, {shape} {dtype} here"
            for name, (shape, dtype) in wanted.items()
            if name in stored and stored[name] != (shape, dtype)
        ]
        if wrong:
            shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if wrong[3:] else "")
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} is of another model or optimizer: {shown}; "
                "use its own config or another --workdir"
            )
        try:
            restored = self.manager.restore(
                step,
                args=ocp.args.Composite(
                    tree=ocp.args.PyTreeRestore(
                        abstract,
                        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                        partial_restore=True,
                    )
                ),
            )
        except Exception as error:
            raise self._damaged(step, error) from error
        return restored["tree"]

    def record(self, step: int) -> dict[str, Any]:
        """The JSON record that was saved with the step."""
        try:
            restored = self.manager.restore(
                step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
            )
        except Exception as error:
            raise self._damaged(step, error) from error
        return restored["record"]

    def _damaged(self, step: int, reason: object) -> CheckpointError:
        others = [other for other in self.manager.all_steps() if other != step]
        rest = f"step {max(others)} is used then" if others else "no other checkpoint is there"
        text = " ".join(str(reason).split())
        return CheckpointError(
            f"checkpoint {self.folder / str(step)} must be whole, but is damaged ({text[:160]}); "
            f"remove that folder, {rest}"
        )


def open_checkpoints(folder: epath.Path, *, keep: int | None = None) -> Checkpoints:
    """Opens a folder of checkpoints; `keep` newest ones stay (None: all, and nothing is created).

    Values are stored as they are: compressing floats costs several times the writing time.
    """
    folder = epath.Path(folder).resolve()  # Orbax refuses a relative one, at the first save
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handler = ocp.PyTreeCheckpointHandler(use_compression=False)
    registry.add("tree", ocp.args.PyTreeSave, handler)
    registry.add("tree", ocp.args.PyTreeRestore, handler)
    record = ocp.JsonCheckpointHandler()
    registry.add("record", ocp.args.JsonSave, record)
    registry.add("record", ocp.args.JsonRestore, record)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=keep is not None, cleanup_tmp_directories=keep is not None
    )
    return Checkpoints(
        folder, ocp.CheckpointManager(folder, options=options, handler_registry=registry)
    )


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: hasattr(x, "shape") and hasattr(x, "dtype")
    )
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]
