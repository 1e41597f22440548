"""Published weights -> a work directory, tensor by tensor; never the whole model in memory."""

import contextlib
import os
import shutil
from collections.abc import Callable

import jax
import numpy as np
from etils import epath

from jax_mdlm.config import (
    Config,
    ConfigError,
    DataConfig,
    ObjectiveConfig,
    SampleConfig,
    TokenizerConfig,
    first_line,
)
from jax_mdlm.containers import ParamRow
from jax_mdlm.conversion import boxes, published
from jax_mdlm.conversion.boxes import Box
from jax_mdlm.conversion.prompting import prompted
from jax_mdlm.conversion.reading import Meter, read_box
from jax_mdlm.conversion.source import Source, copy_files, kept_files
from jax_mdlm.data.corpus import tokenizer_folder
from jax_mdlm.data.tokenizer import keep_tokenizer
from jax_mdlm.model import table
from jax_mdlm.processes import barrier
from jax_mdlm.storage import (
    CheckpointError,
    Piece,
    Streamed,
    alone_in,
    open_checkpoints,
    reaching,
)
from jax_mdlm.workdir import (
    begin_import,
    checkpoint_folder,
    end_import,
    source_folder,
)


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
    config = config_of(source, workdir.name)
    with alone_in(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
        _write(source, workdir, config, meter, warn)
    return config


def _write(
    source: Source,
    workdir: epath.Path,
    config: Config,
    meter: Meter,
    warn: Callable[[str], None],
) -> None:
    first = jax.process_index() == 0
    if first:
        with reaching(workdir):
            begin_import(workdir)
            _check_room(source, workdir)
    barrier("import_begun")
    try:
        _write_checkpoint(source, workdir, meter)
        for line in meter.warnings():
            warn(line)
        if first:
            _write_files(source, workdir, warn)
            end_import(workdir, config)
    except ConfigError:
        raise
    except Exception as error:  # what a disk, a bucket or TensorStore answers
        raise CheckpointError(
            f"work directory {workdir} must take {source.num_bytes:,} bytes, but writing failed "
            f"({first_line(error)[:300]}); free space or choose another, then import again"
        ) from error
    barrier("import_ended")


def _write_checkpoint(source: Source, workdir: epath.Path, meter: Meter) -> None:
    checkpoints = open_checkpoints(checkpoint_folder(workdir), keep=1, streamed=True)
    try:
        checkpoints.save(0, {"params": _leaves(source, meter)}, {"step": 0, "imported": True})
        checkpoints.wait()
    finally:
        checkpoints.close()


def _write_files(source: Source, workdir: epath.Path, warn: Callable[[str], None]) -> None:
    """What stands beside the weights."""
    with reaching(source.folder, workdir):
        copy_files(kept_files(source.folder), source_folder(workdir))
        if not keep_tokenizer(source.folder, tokenizer_folder(workdir)):
            warn(
                f"{source.folder} holds no tokenizer.json; put one beside the weights and import "
                "again, or name one with --config.data.tokenizer.path=FOLDER to sample, evaluate "
                "and train"
            )


def config_of(source: Source, name: str) -> Config:
    """The settings with which imported weights are sampled."""
    ids = published.token_ids(source.settings, str(source.folder / "config.json"))
    tokenizer = TokenizerConfig(
        kind="huggingface",
        mask_id=_given(ids.mask),
        eos_id=_given(ids.eos),
        pad_id=_given(ids.pad),
        slack_id=_given(ids.slack),
    )
    slots = source.config.max_length
    new = max(1, min(128, slots // 2))
    block = max(size for size in range(1, 33) if new % size == 0)
    config = Config(
        name=name,
        model=source.config,
        # Without a slack id the weights have never seen slack: nothing merges, "22" stays "22".
        objective=ObjectiveConfig(
            collapse=ids.collapse or ("slack_only" if ids.slack is None else "merge"),
            slack_max=0.0 if ids.slack is None else 0.5,
        ),
        data=DataConfig(
            template="llada",
            length=slots,
            max_labels=max(1, slots // 2),
            tokenizer=tokenizer,
        ),
        sample=SampleConfig(length=new, block_length=block, steps=new),
    )
    return prompted(config, source.settings, str(source.folder / "config.json"))


def _given(index: int | None) -> int:
    return -1 if index is None else index  # -1: looked up by its string


def _leaves(source: Source, meter: Meter) -> dict:
    """A `Streamed` leaf per row; the boxes of all rows are dealt out to the processes by size."""
    itemsize = source.dtype.itemsize
    mine, load = jax.process_index(), [0] * jax.process_count()
    leaves = {}
    for row in table.rows(source.config):
        pieces = []
        for box in boxes.boxes(row, source.config, itemsize):
            least = int(np.argmin(load))
            load[least] += int(np.prod(box.shape))
            if least == mine:
                pieces.append(Piece(box.index, _filler(source, row, box, meter)))
        leaves[row.path] = Streamed(
            table.shape(row, source.config),
            source.dtype,
            boxes.chunk_shape(row, source.config, itemsize),
            tuple(pieces),
        )
    return table.tree(leaves)


def _filler(source: Source, row: ParamRow, box: Box, meter: Meter) -> Callable[[np.ndarray], None]:
    tensor = source.layers(row)[box.layer]
    axes = boxes.axes_of(row, source.config)
    index = box.index[1:] if boxes.is_stacked(row) else box.index

    def fill(out: np.ndarray) -> None:
        read_box(tensor, axes, index, out.reshape(box.shape), meter)

    return fill


def _check_room(source: Source, workdir: epath.Path) -> None:
    if not os.path.exists(workdir):
        return  # a bucket
    needed = source.dtype.itemsize * table.num_parameters(source.config)
    free = shutil.disk_usage(workdir).free
    if free < needed:
        raise ConfigError(
            f"work directory {workdir} must have room for {needed:,} bytes, its disk has "
            f"{free:,} free; free space or choose another"
        )
