"""Numbered checkpoints through Orbax, local and on `gs://`.

Plain trees of arrays enter with a small JSON record beside them; sharded arrays leave.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from jax_mdlm.config import ConfigError
from jax_mdlm.storage.arrays import (
    StoredArray,
    Streamed,
    StreamedHandler,
    check_files,
    open_arrays,
)

Shapes = Mapping[str, tuple[tuple[int, ...], str]]


class CheckpointError(ConfigError):
    """A checkpoint that cannot be read as asked; its text names the folder and the remedy."""


class DamagedError(CheckpointError):
    """A checkpoint whose files are missing, short or unreadable, whatever is asked of it."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The numbered checkpoints of one folder: `<folder>/<step>/{tree,record}`.

    A step's folder appears under its final name only when it is whole (written aside, renamed), so
    a killed process leaves no half checkpoint that a restart would read.
    """

    folder: epath.Path
    manager: ocp.CheckpointManager

    def latest(self) -> int | None:
        """Gives the newest step, one that is being written included, or None."""
        return self.manager.latest_step()

    def steps(self) -> list[int]:
        """Lists all steps that are there, ascending."""
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
        """Gives `{"params/wte": ((V, D), "float32"), ...}` as stored; reads no array.

        Raises:
          DamagedError: files are missing or damaged.
        """
        with self._whole(step):
            self._check_files(step, values=False)
            found = ocp.PyTreeCheckpointHandler().metadata(self._tree(step))
        leaves = _named_leaves(getattr(found, "tree", found))
        return {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in leaves}

    def arrays(self, step: int) -> dict[str, StoredArray]:
        """Opens a step's arrays, to be read in boxes; names and errors are those of `shapes`."""
        names = self.shapes(step)
        with self._whole(step):
            return open_arrays(self._tree(step), names)

    def restore(self, step: int, abstract: Any) -> Any:
        """Reads arrays straight into their places.

        Args:
          step: Which checkpoint.
          abstract: Tree of `jax.ShapeDtypeStruct` with shardings; may be a part of what is stored.

        No process waits for another in here, so that one that finds its slices damaged can say so
        to the others (Orbax's manager has a barrier after its reads).

        Raises:
          CheckpointError: another structure or shape than stored (all differences named).
          DamagedError: a description, an array or a chunk of it is missing, short or unreadable.
        """
        _check_fits(self.shapes(step), abstract, f"checkpoint {self.folder / str(step)}")
        args = ocp.args.PyTreeRestore(
            abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=True,
        )
        with self._whole(step):
            self._check_files(step, values=True)
            return ocp.PyTreeCheckpointHandler().restore(self._tree(step), args=args)

    def record(self, step: int) -> dict[str, Any]:
        """Reads the JSON record that was saved with the step.

        Raises:
          DamagedError: it is missing or no JSON.
        """
        with self._whole(step):
            return dict(ocp.JsonCheckpointHandler().restore(self.folder / str(step) / "record"))

    def set_aside(self, step: int) -> epath.Path:
        """Renames a step's folder, so that the step can be saved again; returns the new place.

        For one process to call; all call `reload` after it.
        """
        aside = self.folder.parent / f"{self.folder.name}.damaged"
        aside.mkdir(parents=True, exist_ok=True)
        numbers = (f"{step}.{number}" if number else str(step) for number in itertools.count())
        place = next(aside / name for name in numbers if not (aside / name).exists())
        (self.folder / str(step)).rename(place)
        return place

    def reload(self) -> None:
        """Looks at the folder again."""
        self.manager.reload()

    def damaged(self, step: int, error: Exception) -> DamagedError:
        """What to say where reading a step's files raised an error."""
        others = [other for other in self.manager.all_steps() if other != step]
        rest = f"step {max(others)} is used then" if others else "no other checkpoint is there"
        text = " ".join(str(error).split())
        return DamagedError(
            f"checkpoint {self.folder / str(step)} must be whole, but is damaged "
            f"({text[:300]}); remove that folder, {rest}"
        )

    def _tree(self, step: int) -> epath.Path:
        return self.folder / str(step) / "tree"

    def _check_files(self, step: int, *, values: bool) -> None:
        if not self._tree(step).exists():
            raise FileNotFoundError(f"{self._tree(step)} is missing")
        check_files(self._tree(step), values=values)

    @contextlib.contextmanager
    def _whole(self, step: int) -> Iterator[None]:
        """What Orbax and TensorStore raise, nothing narrow, becomes a DamagedError."""
        try:
            with _first_error_only():
                yield
        except jax.errors.JaxRuntimeError:  # a device that is full says nothing of the files
            raise
        except Exception as error:
            raise self.damaged(step, error) from error


def named_steps(folder: epath.Path) -> list[int]:
    """Lists the steps that a folder has checkpoints of, by their names.

    Nothing is opened, for which processes would have to agree that the folder is there.
    """
    return list(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def open_checkpoints(
    folder: epath.Path,
    *,
    keep: int | None = None,
    keep_every: int = 0,
    streamed: bool = False,
) -> Checkpoints:
    """Opens a folder of checkpoints.

    Values are stored as they are: compressing floats costs several times the writing time.

    Args:
      folder: Local or `gs://`.
      keep: Newest ones that stay; None: all, and nothing is created.
      keep_every: Steps that are multiples of it stay for good, beside the newest; 0: none.
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
    registry.add("record", ocp.args.JsonSave, ocp.JsonCheckpointHandler())
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        keep_period=keep_every or None,
        create=keep is not None,
        cleanup_tmp_directories=keep is not None,
    )
    return Checkpoints(
        folder, ocp.CheckpointManager(folder, options=options, handler_registry=registry)
    )


def _check_fits(stored: Shapes, abstract: Any, what: str) -> None:
    """Raises CheckpointError if `abstract` asks for what is not stored in the folder `what`."""
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
            f"{what} is of another model or optimizer: {shown}; use its own config or another "
            "--workdir"
        )


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Lists leaves with their paths, `params/wte`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: hasattr(x, "shape") and hasattr(x, "dtype")
    )
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


@contextlib.contextmanager
def _first_error_only() -> Iterator[None]:
    """Keeps what fails beside the error that is raised from printing tracebacks.

    Orbax reads arrays side by side and leaves after the first that fails. The others end later, in
    threads of TensorStore's and when their tasks are collected: so nothing is put back then.
    """
    hook, log = sys.unraisablehook, logging.getLogger("asyncio")

    def other(found: Any) -> None:
        if "Event loop is closed" not in str(found.exc_value):
            hook(found)

    sys.unraisablehook = other
    log.addFilter(_is_no_second)
    yield
    sys.unraisablehook = hook
    log.removeFilter(_is_no_second)


def _is_no_second(record: logging.LogRecord) -> bool:
    """Drops what asyncio says of tasks that failed unnoticed."""
    return "was never retrieved" not in record.getMessage()


def _is_news(record: logging.LogRecord) -> bool:
    """Drops what Orbax says of every folder that has neither its arrays nor packed files.

    And the tracebacks, one per thread, of an error that `wait` raises anyway.
    """
    expected = ("No jax.Array in TypeHandlerRegistry", "Skipping merge of OCDBT checkpoints")
    return not record.exc_info and not any(text in record.getMessage() for text in expected)
