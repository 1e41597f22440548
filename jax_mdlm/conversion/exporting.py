"""A work directory -> a folder of published weights, tensor by tensor.

The folder is written under a temporary name and renamed: a killed export leaves nothing that looks
whole. Buckets have no rename; there `config.json`, without which nothing loads, comes last.
"""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import jax
import numpy as np
from etils import epath

from jax_mdlm.config import Config, ConfigError
from jax_mdlm.conversion import boxes, prompting, published, shards
from jax_mdlm.conversion.boxes import Box
from jax_mdlm.conversion.merging import stored_params
from jax_mdlm.conversion.reading import Meter
from jax_mdlm.conversion.shards import Shard
from jax_mdlm.conversion.source import CONFIG, INDEX, copy_files, kept_files, to_json
from jax_mdlm.conversion.tokens import token_ids_of, write_tokenizer
from jax_mdlm.model import table
from jax_mdlm.processes import barrier
from jax_mdlm.storage import CheckpointError, StoredArray, alone_in, reaching, run_pieces
from jax_mdlm.workdir import choose_step, load_config, open_existing, source_folder

SHARD_BYTES = 5_000_000_000  # Hugging Face's default
KINDS = {"bfloat16": "BF16", "float32": "F32"}
_Write = Callable[[int, np.ndarray], None]


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
        arrays = _arrays(stored_params(workdir, checkpoints, step, config.model), config)
        plan = _plan(config, dtype, shard_bytes)
        with new_folder(target, workdir, sum(shard.size for shard in plan)) as folder:
            _write_shards(plan, arrays, config, dtype, folder, meter)
            barrier("shards_written")
            if jax.process_index() == 0:
                _write_files(workdir, config, dtype, plan, folder)
    finally:
        checkpoints.close()
    scalars = table.num_parameters(config.model)
    return Exported(
        step, tuple(shard.file for shard in plan), scalars * shards.DTYPES[KINDS[dtype]].itemsize
    )


def _arrays(
    stored: Mapping[str, StoredArray], config: Config
) -> dict[tuple[str, ...], StoredArray]:
    """The stored array of each row; their shapes must be those of the config."""
    found = {
        row.path: stored.get("params/" + "/".join(row.path)) for row in table.rows(config.model)
    }
    wrong = [
        f"{'/'.join(row.path)} is {array.shape if array else 'missing'}"
        for row in table.rows(config.model)
        for array in [found[row.path]]
        if array is None or array.shape != table.shape(row, config.model)
    ]
    if wrong:
        raise CheckpointError(f"the checkpoint does not fit its config.json: {'; '.join(wrong)}")
    return {path: array for path, array in found.items() if array is not None}


def _plan(config: Config, dtype: str, shard_bytes: int) -> list[Shard]:
    """Files and the order of tensors in them: embedding, layer by layer, norm, head."""
    rows = table.rows(config.model)
    names = {row: boxes.torch_names(row, config.model) for row in rows}
    shapes = {row: boxes.axes_of(row, config.model).torch_shape for row in rows}
    stacked = [row for row in rows if boxes.is_stacked(row)]
    top = [row for row in rows if not boxes.is_stacked(row)]
    order = [(names[row][0], shapes[row]) for row in top[:1]]
    for layer in range(config.model.layers):
        order += [(names[row][layer], shapes[row]) for row in stacked]
    order += [(names[row][0], shapes[row]) for row in top[1:]]
    return shards.plan_shards(order, KINDS[dtype], shard_bytes)


def _write_shards(
    plan: list[Shard],
    arrays: Mapping[tuple[str, ...], StoredArray],
    config: Config,
    dtype: str,
    folder: epath.Path,
    meter: Meter,
) -> None:
    tensors = {}
    for row in table.rows(config.model):
        itemsize = arrays[row.path].dtype.itemsize
        for box in boxes.boxes(row, config.model, itemsize):
            name = row.torch_name.format(layer=box.layer)
            tensors.setdefault(name, []).append(box)
    kind = boxes.BFLOAT16 if dtype == "bfloat16" else boxes.FLOAT32
    for number, shard in enumerate(plan):
        if number % jax.process_count() != jax.process_index():
            continue
        path = folder / shard.file

        def work(write: _Write, shard: Shard = shard) -> Iterator[tuple[Any, int]]:
            for name, start in shard.offsets.items():
                for box in tensors[name]:
                    yield _converter(box, arrays[box.row.path], config, kind, start, write, meter)

        if os.path.exists(folder):
            with open(path, "wb") as file:
                file.write(shard.header)
                file.truncate(shard.size)
                file.flush()
                run_pieces(list(work(_writer_at(file))))
        else:  # a bucket takes bytes in order only
            with path.open("wb") as file:
                file.write(shard.header)
                run_pieces(list(work(lambda _, rows, file=file: _append(file, rows))), workers=1)


def _converter(
    box: Box,
    array: StoredArray,
    config: Config,
    kind: np.dtype,
    start: int,
    write: _Write,
    meter: Meter,
) -> tuple[Callable[[np.ndarray], None], int]:
    """Reads a box, turns it into rows of its tensor, writes them; and the buffer that it needs."""
    axes = boxes.axes_of(box.row, config.model)
    first, last = box.torch_rows(axes)
    shape = (last - first, *axes.torch_shape[1:])
    scalars = int(np.prod(shape))
    stored = scalars * array.dtype.itemsize
    begin = start + first * (scalars // (last - first)) * kind.itemsize

    def convert(buffer: np.ndarray) -> None:
        own = buffer[:stored].view(array.dtype)
        whole = own.reshape([part.stop - part.start for part in box.index])
        try:
            array.read(box.index, whole)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{'/'.join(box.row.path)} of the checkpoint must be whole, but is damaged "
                f"({str(error)[:200]}); export another --step, or import or train again"
            ) from error
        rows = buffer[stored:].view(kind).reshape(shape)
        boxes.to_torch(own.reshape(box.shape), axes, rows)
        write(begin, rows)
        name = box.row.torch_name.format(layer=box.layer)
        meter.add(name, rows.nbytes, boxes.count_not_finite(rows))

    return convert, stored + scalars * kind.itemsize


def _writer_at(file: IO[bytes]) -> _Write:
    def write(begin: int, rows: np.ndarray) -> None:
        left = rows.reshape(-1).view(np.uint8).data
        while left:
            written = os.pwrite(file.fileno(), left, begin)
            left, begin = left[written:], begin + written

    return write


def _append(file: IO[bytes], rows: np.ndarray) -> None:
    file.write(rows.reshape(-1).view(np.uint8).data)


def _write_files(
    workdir: epath.Path, config: Config, dtype: str, plan: list[Shard], folder: epath.Path
) -> None:
    """Everything beside the weights; `config.json` last."""
    beside = source_folder(workdir)
    files = kept_files(beside) if beside.exists() else []
    copy_files([path for path in files if path.name != CONFIG], folder)
    source = None
    if (beside / CONFIG).exists():
        source = published.parse((beside / CONFIG).read_bytes(), str(beside / CONFIG))
    ids = token_ids_of(config, workdir)
    write_tokenizer(config, workdir, ids, folder)
    if len(plan) > 1:
        scalars = table.num_parameters(config.model)
        itemsize = shards.DTYPES[KINDS[dtype]].itemsize
        (folder / INDEX).write_text(shards.index_of(plan, itemsize, scalars))
    settings = published.settings_of(config.model, ids, dtype, source)
    settings.pop(prompting.KEY, None)
    if told := prompting.describe(config):
        settings[prompting.KEY] = told
    (folder / CONFIG).write_text(to_json(settings))


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
