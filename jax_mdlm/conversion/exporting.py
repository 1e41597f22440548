"""A work directory -> a folder of published weights, tensor by tensor.

The folder is written under a temporary name and renamed: a killed export leaves nothing that looks
whole. Buckets have no rename; there `config.json`, without which nothing loads, comes last.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

import jax
import numpy as np
from etils import epath

from jax_mdlm.config import Config, ConfigError, ModelConfig
from jax_mdlm.containers import ParamRow
from jax_mdlm.conversion import published, shards
from jax_mdlm.conversion.beside import token_ids_of, write_beside
from jax_mdlm.conversion.boxes import FLOATS, BothLayouts, copy, count_not_finite, transpose
from jax_mdlm.conversion.reading import Meter, stored_params
from jax_mdlm.conversion.shards import INDEX, Shard
from jax_mdlm.conversion.source import CONFIG
from jax_mdlm.model import table
from jax_mdlm.processes import barrier
from jax_mdlm.storage import CheckpointError, alone_in, reaching
from jax_mdlm.storage.arrays import WORKERS, Index, StoredArray, box_shape, run_in_threads
from jax_mdlm.storage.places import check_room, taking
from jax_mdlm.workdir import choose_step, load_config, open_existing, source_folder

SHARD_BYTES = 5_000_000_000  # Hugging Face's default


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
      step: Of the checkpoint.
      files: Names of the weight files.
      num_bytes: Of all tensors.
    """

    step: int
    files: tuple[str, ...]
    num_bytes: int


def export_weights(
    workdir: epath.Path,
    target: epath.Path,
    meter: Meter,
    *,
    dtype: str = "bfloat16",
    step: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """Writes a Hugging Face folder that PyTorch users load as they load the published one.

    The adapters of a LoRA run are merged. With several processes each writes its shards; all must
    see the target.

    Args:
      workdir: Of a training run or an import.
      target: New folder, local, `gs://` or `s3://`.
      meter: Counts bytes written, and values that are not finite.
      dtype: `bfloat16` (float32 values are rounded to nearest even) or `float32`.
      step: Which checkpoint; None: the newest.
      shard_bytes: Most bytes of tensors in a file.

    Raises:
      ConfigError: no such checkpoint, the target is in use, or the disk is full.
    """
    with reaching(workdir):
        config = load_config(workdir)
        published.check_published_positions(config.model, workdir)
        checkpoints = open_existing(workdir)
    try:
        step = choose_step(checkpoints, step)
        arrays = stored_params(workdir, checkpoints, step, config.model)
        plan = shards.plan_shards(_tensors(config.model), dtype, shard_bytes)
        with new_folder(target, workdir, sum(shard.size for shard in plan)) as folder:
            _write_shards(plan, arrays, config.model, FLOATS[dtype], folder, meter)
            barrier("shards_written")
            if jax.process_index() == 0:
                _write_files(workdir, config, dtype, plan, folder)
    finally:
        checkpoints.close()
    scalars = table.num_parameters(config.model)
    files = tuple(shard.file for shard in plan)
    return Exported(step, files, scalars * FLOATS[dtype].itemsize)


def _tensors(config: ModelConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Lists names and shapes as the files have them: embedding, layer by layer, norm, head."""
    rows = [BothLayouts(row, config) for row in table.rows(config)]
    stacked = [row for row in rows if row.stacked]
    first, *last = [(row.torch_names[0], row.torch_shape) for row in rows if not row.stacked]
    by_row = [[(name, row.torch_shape) for name in row.torch_names] for row in stacked]
    blocks = itertools.chain.from_iterable(zip(*by_row, strict=True))
    return [first, *blocks, *last]


def _write_shards(
    plan: Sequence[Shard],
    arrays: Mapping[ParamRow, StoredArray],
    config: ModelConfig,
    dtype: np.dtype,
    folder: epath.Path,
    meter: Meter,
) -> None:
    # Which boxes make up each tensor, in the order of its rows.
    boxes: dict[str, list[tuple[BothLayouts, Index]]] = {}
    for row, array in arrays.items():
        layouts = BothLayouts(row, config)
        for index in layouts.boxes(array.dtype.itemsize):
            (layer,), _ = layouts.by_layer(index)
            boxes.setdefault(row.torch_name.format(layer=layer), []).append((layouts, index))
    # Every process writes files of its own; a bucket takes bytes in order only.
    local = os.path.exists(folder)
    for shard in plan[jax.process_index() :: jax.process_count()]:
        with (folder / shard.file).open("wb") as file:
            file.write(shard.header)
            if local:
                file.truncate(shard.size)
                file.flush()
            work = []
            for name, start in shard.offsets.items():
                write = functools.partial(_write_at if local else _append, file, start)
                for layouts, index in boxes[name]:
                    array = arrays[layouts.row]
                    work.append(_conversion(array, layouts, index, dtype, write, meter))
            run_in_threads(work, WORKERS if local else 1)


def _conversion(
    array: StoredArray,
    layouts: BothLayouts,
    index: Index,
    dtype: np.dtype,
    write: Callable[[int, np.ndarray], None],
    meter: Meter,
) -> tuple[Callable[[np.ndarray], None], int]:
    """Gives what reads a box, turns it into rows and writes them, and the buffer that it needs."""
    (layer,), own = layouts.by_layer(index)
    first, last = layouts.torch_rows(own)
    shape = (last - first, *layouts.torch_shape[1:])
    scalars = math.prod(shape)
    stored = array.dtype.itemsize * scalars

    def convert(buffer: np.ndarray) -> None:
        values = buffer[:stored].view(array.dtype).reshape(box_shape(index))
        try:
            array.read(index, values)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{'/'.join(layouts.row.path)} of the checkpoint must be whole, but is damaged "
                f"({str(error)[:200]}); export another --step, or import or train again"
            ) from error
        rows = buffer[stored:].view(dtype).reshape(shape)
        if layouts.row.num_inputs:
            transpose(values.reshape(-1, len(rows)), rows)
        else:
            copy(values.reshape(shape), rows)
        write(first * rows[0].nbytes, rows)
        name = layouts.row.torch_name.format(layer=layer)
        meter.add(name, rows.nbytes, count_not_finite(rows))

    return convert, stored + dtype.itemsize * scalars


def _write_at(file: IO[bytes], start: int, first: int, rows: np.ndarray) -> None:
    left, begin = rows.reshape(-1).view(np.uint8).data, start + first
    while left:
        written = os.pwrite(file.fileno(), left, begin)
        left, begin = left[written:], begin + written


def _append(file: IO[bytes], start: int, first: int, rows: np.ndarray) -> None:
    file.write(rows.reshape(-1).view(np.uint8).data)


def _write_files(
    workdir: epath.Path, config: Config, dtype: str, plan: Sequence[Shard], folder: epath.Path
) -> None:
    """Writes everything beside the weights; `config.json` last."""
    ids = token_ids_of(config, workdir)
    write_beside(config, workdir, ids, folder, lambda name: name != CONFIG)
    if len(plan) > 1:
        (folder / INDEX).write_text(shards.index_of(plan))
    described = source_folder(workdir) / CONFIG
    source = None
    if described.exists():
        source = published.read_settings(described.read_bytes(), str(described))
    prompts = published.prompting(config)
    settings = published.published_settings(config.model, ids, dtype, source, prompts)
    (folder / CONFIG).write_text(published.settings_text(settings))


@contextlib.contextmanager
def new_folder(target: epath.Path, workdir: epath.Path, size: int) -> Iterator[epath.Path]:
    """Gives a folder for `size` bytes beside `target`, and renames it to that when all went well.

    In a bucket, where nothing is renamed, it is `target` itself: write last what makes it whole.
    With several processes all enter; the first one makes and renames.

    Raises:
      ConfigError: the target is in use, another process writes it, or the disk is full.
    """
    if "://" in os.fspath(target):
        aside = target
    else:
        target = epath.Path(os.path.abspath(target))  # "." has no name to put one beside it
        aside = target.parent / f"{target.name}.export.partial"
        # A folder inside would be taken for one of the work directory's own.
        outer, inner = os.path.realpath(workdir), os.path.realpath(target)
        if os.path.commonpath([outer, inner]) == outer != inner:
            raise ConfigError(
                f"{target} must lie outside of the work directory {workdir}; choose another target"
            )
    first = jax.process_index() == 0
    again = "free space or choose another target, then export again"
    with alone_in(aside) if first else contextlib.nullcontext():
        try:
            with taking(os.fspath(target), size, again):
                if first:
                    with reaching(target):
                        _begin(target, aside, size)
                barrier("export_begun")
                yield aside
                barrier("export_written")
                if first and aside != target:
                    aside.rename(target)
        finally:
            if aside != target and jax.process_count() == 1:
                shutil.rmtree(aside, ignore_errors=True)  # it may be what fills the disk
        barrier("export_ended")


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
    check_room(aside, os.fspath(target), size, "free space or choose another target")
