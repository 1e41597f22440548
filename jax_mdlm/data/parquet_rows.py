"""Rows of a Parquet file, by its row groups: whoever parses one opens the file for it."""

from collections.abc import Iterator
from typing import Any

from jax_mdlm.config import ConfigError
from jax_mdlm.data.examples import BadRowError
from jax_mdlm.data.files import damaged, open_plain
from jax_mdlm.data.jsonl import Record

_BATCH = 1024  # rows that are objects at a time


def cut_groups(name: str, size: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Cuts a file between row groups; a large one stays whole, and is read in batches.

    Args:
      name: Its path.
      size: About how many bytes of values a run of groups has.

    Yields:
      The number of the first row, from 1, and the groups: the first and the one behind the last.

    Raises:
      ConfigError: the file is damaged, or two of its columns have one name.
    """
    import pyarrow
    from pyarrow import parquet

    with open_plain(name) as file:
        try:
            metadata = parquet.ParquetFile(file).metadata
            columns = metadata.schema.to_arrow_schema().names
        except (pyarrow.ArrowException, ValueError) as error:
            raise damaged(name, error) from error
    if len(set(columns)) < len(columns):
        raise ConfigError(f"{name} must name each of its columns once; rename one of them")
    begin, first, rows, held = 0, 1, 0, 0
    for at in range(metadata.num_row_groups):
        group = metadata.row_group(at)
        rows, held = rows + group.num_rows, held + group.total_byte_size
        last = at == metadata.num_row_groups - 1
        if rows and (held >= size or last):
            yield first, (begin, at + 1)
            begin, first, rows, held = at + 1, first + rows, 0, 0


def group_records(name: str, first: int, groups: tuple[int, int]) -> Iterator[Record]:
    """Reads what `cut_groups` cut.

    Raises:
      ConfigError: the file is damaged.
    """
    import pyarrow
    from pyarrow import parquet

    number = first
    with open_plain(name) as file:
        try:
            batches = parquet.ParquetFile(file).iter_batches(
                _BATCH,
                list(range(*groups)),
                use_threads=False,  # those who read pieces are processes
            )
            for batch in batches:
                for row in _rows(batch):
                    origin = f"{name}:{number}"
                    number += 1
                    if row is None:
                        row = BadRowError(f"{origin} is not UTF-8", "not UTF-8")
                    yield Record(origin, row)
        except (pyarrow.ArrowException, ValueError) as error:
            raise damaged(name, error) from error


def _rows(batch: Any) -> Iterator[dict[str, Any] | None]:
    """The rows of a batch; None for one that is not UTF-8."""
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        if len(batch) == 1:
            yield None
            return
    for at in range(len(batch)):
        yield from _rows(batch.slice(at, 1))
