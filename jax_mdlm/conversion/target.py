"""A new folder that appears under its name only when it is whole."""

import contextlib
import os
import shutil
from collections.abc import Iterator

import jax
from etils import epath

from jax_mdlm.config import ConfigError
from jax_mdlm.sharding import barrier
from jax_mdlm.storage import CheckpointError, alone_in, reaching


@contextlib.contextmanager
def new_folder(target: epath.Path, workdir: epath.Path, size: int) -> Iterator[epath.Path]:
    """The folder to write into: beside `target`, renamed to it when the block ends well.

    In a bucket, where nothing is renamed, it is `target` itself: write last what makes it whole.
    With several processes all enter; the first one makes and renames.

    Args:
      target: New or empty; local, `gs://` or `s3://`.
      workdir: Which it must not lie in.
      size: Bytes that it will take.

    Raises:
      ConfigError: the target is in use, another process writes it, or the disk is full.
    """
    if "://" in os.fspath(target):
        aside = target
    else:
        target = epath.Path(os.path.abspath(target))  # "." has no name to put one beside it
        aside = target.parent / f"{target.name}.export.partial"
        _check_apart(workdir, target)
    first = jax.process_index() == 0
    with alone_in(aside) if first else contextlib.nullcontext():
        try:
            if first:
                with reaching(target):
                    _begin(target, aside, size)
            barrier("export_begun")
            yield aside
            barrier("export_written")
            if first and aside != target:
                aside.rename(target)
        except ConfigError:
            raise
        except Exception as error:  # what a disk, a bucket or TensorStore answers
            raise CheckpointError(
                f"{target} must take {size:,} bytes, but writing failed ({str(error)[:200]}); "
                "free space or choose another target, then export again"
            ) from error
        finally:
            if aside != target and jax.process_count() == 1:
                shutil.rmtree(aside, ignore_errors=True)  # it may be what fills the disk
        barrier("export_ended")


def _check_apart(workdir: epath.Path, target: epath.Path) -> None:
    """A folder inside would be taken for one of the work directory's own."""
    outer, inner = os.path.realpath(workdir), os.path.realpath(target)
    if os.path.commonpath([outer, inner]) == outer != inner:
        raise ConfigError(
            f"{target} must lie outside of the work directory {workdir}; choose another target"
        )


def _begin(target: epath.Path, aside: epath.Path, size: int) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} must be a new or empty folder, it is in use; choose another")
    if aside != target:
        for path in aside.iterdir():  # of an export that was killed
            if path.is_dir():
                path.rmtree()
            else:
                path.unlink()
        if target.exists():
            target.rmdir()
    free = shutil.disk_usage(aside).free if os.path.exists(aside) else size
    if free < size:
        raise ConfigError(
            f"{target} must have room for {size:,} bytes, its disk has {free:,} free; free space "
            "or choose another target"
        )
