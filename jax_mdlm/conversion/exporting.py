"""A work directory -> a folder of published weights, tensor by tensor.

The folder is written under a temporary name and renamed: a killed export leaves nothing that looks
whole. Buckets have no rename; there `config.json`, without which nothing loads, comes last.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import jax
import numpy as np
from etils import epath

from jax_mdlm.config import Config
from jax_mdlm.conversion import boxes, prompting, published, shards
from jax_mdlm.conversion.boxes import Box
from jax_mdlm.conversion.merging import stored_params
from jax_mdlm.conversion.reading import Meter
from jax_mdlm.conversion.shards import Shard
from jax_mdlm.conversion.source import CONFIG, INDEX, copy_files, kept_files, to_json
from jax_mdlm.conversion.target import new_folder
from jax_mdlm.conversion.tokens import token_ids_of, write_tokenizer
from jax_mdlm.model import table
from jax_mdlm.sharding import barrier
from jax_mdlm.storage import CheckpointError, StoredArray, reaching, run_pieces
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
        arrays = _arrays(stored_params(workdir, checkpoints, step), config)
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
    found = {row.path: stored.get("params/" + "/".join(row.path)) for row in table.ROWS}
    wrong = [
        f"{'/'.join(row.path)} is {array.shape if array else 'missing'}"
        for row in table.ROWS
        for array in [found[row.path]]
        if array is None or array.shape != table.shape(row, config.model)
    ]
    if wrong:
        raise CheckpointError(f"the checkpoint does not fit its config.json: {'; '.join(wrong)}")
    return {path: array for path, array in found.items() if array is not None}


def _plan(config: Config, dtype: str, shard_bytes: int) -> list[Shard]:
    """Files and the order of tensors in them: embedding, layer by layer, norm, head."""
    names = {row: boxes.torch_names(row, config.model) for row in table.ROWS}
    shapes = {row: boxes.axes_of(row, config.model).torch_shape for row in table.ROWS}
    stacked = [row for row in table.ROWS if boxes.is_stacked(row)]
    top = [row for row in table.ROWS if not boxes.is_stacked(row)]
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
    for row in table.ROWS:
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
