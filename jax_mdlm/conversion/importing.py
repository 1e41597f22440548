"""Published weights -> a work directory, box by box; never the whole model in memory."""

import contextlib
from collections.abc import Callable

import jax
import numpy as np
from etils import epath

from jax_mdlm.config import Config
from jax_mdlm.conversion.beside import copy_files, kept_files
from jax_mdlm.conversion.boxes import FLOATS
from jax_mdlm.conversion.reading import Meter, published_arrays
from jax_mdlm.conversion.source import Source
from jax_mdlm.data.corpus import tokenizer_folder
from jax_mdlm.data.tokenizer import keep_tokenizer
from jax_mdlm.model import table
from jax_mdlm.processes import barrier
from jax_mdlm.storage import alone_in, open_checkpoints, reaching
from jax_mdlm.storage.arrays import Streamed, box_shape
from jax_mdlm.storage.places import check_room, taking
from jax_mdlm.workdir import begin_import, checkpoint_folder, end_import, source_folder


def import_weights(
    source: Source,
    workdir: epath.Path,
    meter: Meter,
    warn: Callable[[str], None] = lambda text: None,
) -> Config:
    """Writes a work directory whose step 0 holds the weights, value by value.

    With several processes each reads and writes its part. What is needed to export a folder that
    loads as the source does is kept in `source/`.

    Args:
      source: Opened and checked.
      workdir: New or empty; an import that was killed is begun again.
      meter: Counts what this process reads.
      warn: Receives a line for whatever is odd but no error.

    Returns:
      The config of the work directory.

    Raises:
      ConfigError: the directory is in use, or the disk is full.
    """
    config = source.run_config(workdir.name)
    what = f"work directory {workdir}"
    first = jax.process_index() == 0
    with alone_in(workdir) if first else contextlib.nullcontext():
        # Claim the directory.
        if first:
            with reaching(workdir):
                begin_import(workdir)
                needed = FLOATS[config.model.param_dtype].itemsize
                needed *= table.num_parameters(config.model)
                check_room(workdir, what, needed, "free space or choose another")
        barrier("import_begun")
        # Write the parameters, then what makes them a work directory.
        again = "free space or choose another, then import again"
        with taking(what, source.num_bytes, again):
            _write_checkpoint(source, workdir, meter)
            for line in meter.warnings():
                warn(line)
            if first:
                _write_files(source, workdir, warn)
                end_import(workdir, config)
        barrier("import_ended")
    return config


def _write_checkpoint(source: Source, workdir: epath.Path, meter: Meter) -> None:
    """Writes step 0; the boxes of all rows are dealt out to the processes by size."""
    mine, load = jax.process_index(), [0] * jax.process_count()
    leaves = {}
    for row, array in published_arrays(source, source.config.param_dtype, meter).items():
        boxes = []
        for box in array.layouts.boxes(array.dtype.itemsize):
            least = int(np.argmin(load))
            load[least] += int(np.prod(box_shape(box)))
            if least == mine:
                boxes.append(box)
        leaves[row.path] = Streamed(array, array.layouts.chunk(array.dtype.itemsize), tuple(boxes))
    checkpoints = open_checkpoints(checkpoint_folder(workdir), keep=1, streamed=True)
    with contextlib.closing(checkpoints):
        checkpoints.save(0, {"params": table.tree(leaves)}, {"step": 0, "imported": True})
        checkpoints.wait()


def _write_files(source: Source, workdir: epath.Path, warn: Callable[[str], None]) -> None:
    """Keeps what stands beside the weights."""
    with reaching(source.folder, workdir):
        copy_files(kept_files(source.folder), source_folder(workdir))
        if not keep_tokenizer(source.folder, tokenizer_folder(workdir)):
            warn(
                f"{source.folder} holds no tokenizer.json; put one beside the weights and import "
                "again, or name one with --config.data.tokenizer.path=FOLDER to sample, evaluate "
                "and train"
            )
