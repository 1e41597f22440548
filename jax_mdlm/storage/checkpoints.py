"""Numbered checkpoints through Orbax, local and on `gs://`.

Plain trees of arrays enter with a small JSON record beside them; sharded arrays leave.
"""

import dataclasses
import logging
import os
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from jax_mdlm.storage.chunks import StoredArray, check_files, open_arrays
from jax_mdlm.storage.pieces import Streamed, StreamedHandler
from jax_mdlm.storage.trees import CheckpointError, check_fits, named_leaves, restore_args


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

    def steps(self) -> list[int]:
        """All steps that are there, ascending."""
        return sorted(self.manager.all_steps())

    def save(self, step: int, tree: Any, record: dict[str, Any]) -> None:
        """Starts writing; returns when the arrays have been copied off the devices.

        Arrays of three and more axes are stacks of layers: each layer gets chunks of its own, so
        that a layer can be read alone.
        """
        save_args = jax.tree.map(
            lambda leaf: ocp.SaveArgs(shard_axes=(0,) if len(leaf.shape) >= 3 else ()), tree
        )
        self.manager.save(
            step,
            args=ocp.args.Composite(
                tree=ocp.args.PyTreeSave(tree, save_args=save_args),
                record=ocp.args.JsonSave(record),
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
            self._check_files(step, values=False)
            metadata = self.manager.item_metadata(step)["tree"]
        except Exception as error:
            raise self._damaged(step, error) from error
        if metadata is None:
            raise self._damaged(step, "its description is missing")
        return {
            name: (tuple(leaf.shape), str(leaf.dtype))
            for name, leaf in named_leaves(metadata.tree if hasattr(metadata, "tree") else metadata)
        }

    def arrays(self, step: int) -> dict[str, StoredArray]:
        """The arrays of a step, for reading in pieces; named as in `shapes`.

        Raises:
          CheckpointError: files are missing or damaged.
        """
        names = self.shapes(step)
        try:
            return open_arrays(self.folder / str(step) / "tree", names)
        except ValueError as error:  # TensorStore's, for whatever it cannot open
            raise self._damaged(step, error) from error

    def restore(self, step: int, abstract: Any, *, cast: bool = False) -> Any:
        """Reads arrays straight into their places.

        Args:
          step: Which checkpoint.
          abstract: Tree of `jax.ShapeDtypeStruct` with shardings; may be a part of what is
            stored (e.g. only "params").
          cast: Values of another dtype are cast while they are read, instead of refused.

        Raises:
          CheckpointError: another structure or shape than stored (all differences named), or
            files that are missing or damaged.
        """
        check_fits(self.shapes(step), abstract, f"checkpoint {self.folder / str(step)}", cast)
        try:
            self._check_files(step, values=True)
            restored = self.manager.restore(
                step,
                args=ocp.args.Composite(tree=restore_args(abstract)),
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

    def _check_files(self, step: int, *, values: bool) -> None:
        folder = self.folder / str(step) / "tree"
        if folder.exists():
            check_files(folder, values=values)

    def _damaged(self, step: int, reason: object) -> CheckpointError:
        others = [other for other in self.manager.all_steps() if other != step]
        rest = f"step {max(others)} is used then" if others else "no other checkpoint is there"
        text = " ".join(str(reason).split())
        return CheckpointError(
            f"checkpoint {self.folder / str(step)} must be whole, but is damaged ({text[:300]}); "
            f"remove that folder, {rest}"
        )


def open_checkpoints(
    folder: epath.Path, *, keep: int | None = None, streamed: bool = False
) -> Checkpoints:
    """Opens a folder of checkpoints.

    Values are stored as they are: compressing floats costs several times the writing time.

    Args:
      folder: Local or `gs://`.
      keep: Newest ones that stay; None: all, and nothing is created.
      streamed: The leaves that will be saved are `Streamed`, not arrays.
    """
    folder = epath.Path(folder)
    if "://" not in os.fspath(folder):  # `resolve` takes a bucket for a relative path
        folder = folder.resolve()  # Orbax refuses a relative one, at the first save
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    if streamed:
        logging.getLogger("absl").addFilter(_is_news)
        leaves = ocp.type_handlers.create_type_handler_registry((Streamed, StreamedHandler()))
        # Without OCDBT, whose files processes would have to merge at the end.
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=leaves)
    else:
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


def _is_news(record: logging.LogRecord) -> bool:
    """Drops what Orbax says of every folder that has neither its arrays nor packed files.

    And the tracebacks, one per thread, of an error that `wait` raises anyway.
    """
    expected = ("No jax.Array in TypeHandlerRegistry", "Skipping merge of OCDBT checkpoints")
    return not record.exc_info and not any(text in record.getMessage() for text in expected)
