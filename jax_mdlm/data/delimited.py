"""Tables as text (CSV, TSV), cut between their records and read.

A field in quotes may hold line ends, so that only a reader from the top knows where a record ends.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from jax_mdlm.config import ConfigError
from jax_mdlm.data.examples import BadRowError
from jax_mdlm.data.jsonl import MARK, Record

_FIELD = 1 << 26  # characters; a quote that is never closed takes no more of the file


def cut_table(
    file: BinaryIO, name: str, separator: str, size: int
) -> Iterator[tuple[int, bytes, tuple[str, ...]]]:
    """Cuts a table between its records.

    Args:
      file: Its bytes.
      name: Opens the errors' texts.
      separator: Stands between two fields.
      size: About how many bytes a run of records has.

    Yields:
      The number of the first line, the lines, and the columns that the header names.

    Raises:
      ConfigError: the header does not name each column once, or quotes are not closed.
    """
    held: list[bytes] = []
    taken = 0

    def lines() -> Iterator[bytes]:
        nonlocal taken
        for line in file:
            held.append(line)
            taken += len(line)
            yield line if reader.line_num else line.removeprefix(MARK)

    reader = _reader(lines(), separator)
    columns: tuple[str, ...] = ()
    first, begin, count = 1, 1, 0
    try:
        for cells in reader:
            begin = reader.line_num + 1
            if not columns:
                columns = _columns(cells, name) if cells else ()
                first, taken, held[:] = begin, 0, []
                continue
            count += bool(cells)
            if taken >= size and count:
                yield first, b"".join(held), columns
                first, count, taken, held[:] = begin, 0, 0, []
    except csv.Error as error:
        raise ConfigError(
            f"{name}:{begin} is no record of a table ({error}), and where the next one begins is "
            "not known; correct the line"
        ) from error
    if count:
        yield first, b"".join(held), columns


def table_records(
    data: bytes, name: str, first: int, separator: str, columns: tuple[str, ...]
) -> Iterator[Record]:
    """Reads what `cut_table` cut."""
    reader = _reader(io.BytesIO(data), separator)
    number = first
    for cells in reader:
        origin, number = f"{name}:{number}", first + reader.line_num
        if not cells:
            continue
        row: Any = dict(zip(columns, cells, strict=False))
        if len(cells) != len(columns):
            row = BadRowError(
                f"{origin} must have {len(columns)} fields as the first line has, got {len(cells)}",
                "another number of columns",
            )
        elif not _is_text("".join(cells)):
            row = BadRowError(f"{origin} is not UTF-8", "not UTF-8")
        yield Record(origin, row)


def _reader(lines: Iterable[bytes], separator: str) -> Any:
    csv.field_size_limit(_FIELD)
    texts = (line.decode("utf-8", "surrogateescape") for line in lines)
    return csv.reader(texts, delimiter=separator, strict=True)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _columns(cells: list[str], name: str) -> tuple[str, ...]:
    columns = tuple(cell.strip() for cell in cells)
    if not all(columns) or len(set(columns)) < len(columns):
        raise ConfigError(
            f"{name} must name each of its columns once in its first line, got "
            f"{ascii(', '.join(columns))[:80]}; write a name for each"
        )
    return columns
