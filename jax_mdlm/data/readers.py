"""Records of a file of rows, whatever container it is in: JSON, tables, Parquet, plain text.

A file is known by its content first, by its ending second. It is cut into `Piece`s, which is cheap
and needs one reader; each is parsed without the rest of the file, by any process. Enters: a path.
Leaves: pieces, and of a piece `Record`s: the fields of a row, or why it is none. What is wrong with
a row is a record, so that a reader who skips rows can go on; what is wrong with a file is raised.
"""

import dataclasses
import io
import json
from collections.abc import Iterator
from typing import BinaryIO, Literal

from etils import epath

from jax_mdlm.config import ConfigError
from jax_mdlm.data import delimited, parquet_rows
from jax_mdlm.data.examples import BadRowError
from jax_mdlm.data.files import open_plain
from jax_mdlm.data.json_array import cut_array
from jax_mdlm.data.jsonl import MARK, Line, Record, decode_text, number_lines, parse_object
from jax_mdlm.foreign import check_form

Container = Literal["JSONL", "JSON array", "CSV", "CSV (semicolons)", "TSV", "parquet", "text"]
_SEPARATORS: dict[Container, str] = {"CSV": ",", "CSV (semicolons)": ";", "TSV": "\t"}
_ENDINGS: dict[str, Container] = {".csv": "CSV", ".tsv": "TSV", ".txt": "text"}
_JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
_PACKED_ENDINGS = (".gz", ".bz2", ".zst")
# Columns that rows have: two of them in a first line make it the header of a table.
_COLUMNS = frozenset(
    {"messages", "conversations", "role", "content", "system", "context", "prompt", "response"}
    | {"question", "answer", "instruction", "input", "output", "text", "completion"}
)
_TEXT = 8 << 20  # bytes; a longer text is cut, which its rows depend on: no setting
_FIRST = 16 << 20  # bytes of a first line that are looked at


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a file that can be parsed alone.

    Attributes:
      path: Of the file.
      container: What the file is.
      first: Number of its first line (JSONL, tables, text), element or row, from 1.
      data: Its lines; of an array one element a line; of Parquet nothing.
      columns: Of a table.
      groups: Of Parquet: the first row group and the one behind the last.
    """

    path: str
    container: Container
    first: int
    data: bytes = dataclasses.field(repr=False, default=b"")
    columns: tuple[str, ...] = ()
    groups: tuple[int, int] = (0, 0)

    @property
    def unit(self) -> str:
        """What `first` counts, as an error's text calls it."""
        return "row" if self.container in ("JSON array", "parquet") else "line"


def container_of(path: epath.PathLike) -> Container | Literal["lines"]:
    """What a file is; "lines" where neither content nor ending says it: prompts, or JSONL.

    Raises:
      ConfigError: it cannot be read, is empty, or of a form that is not read.
    """
    with open_plain(path) as file:
        line = b""
        while not line:
            if not (found := file.readline(_FIRST)):
                raise _empty(str(path), "a file with one JSON object a line")
            line = found.removeprefix(MARK).strip()
    return container_of_line(line, str(path))


def container_of_line(line: bytes, name: str) -> Container | Literal["lines"]:
    """What a file is by its first line that is not blank, and by its name.

    Raises:
      ForeignFormError: a form that is not read.
    """
    if line.startswith(b"PAR1"):
        return "parquet"
    check_form(line, name)
    ending = name.lower()
    for packed in _PACKED_ENDINGS:
        ending = ending.removesuffix(packed)
    named = ending.endswith((*_JSON_ENDINGS, ".csv", ".tsv"))  # a text may begin with {
    if line.startswith(b"{") and (named or _is_object(line)):
        return "JSONL"
    if line.startswith(b"["):
        inner = line[1:].lstrip()  # a text may begin with [MASK]
        if not inner or inner.startswith(b"{") or ending.endswith(".json"):
            return "JSON array"
    for container, separator in _SEPARATORS.items():
        if _is_header(line, separator.encode()):
            return container
    for end, container in _ENDINGS.items():
        if ending.endswith(end):
            return container
    return "JSONL" if ending.endswith(_JSON_ENDINGS) else "lines"


def pieces(path: epath.PathLike, size: int = 8 << 20) -> Iterator[Piece]:
    """Cuts a file; the same pieces whoever asks, and the same records whatever the size.

    Args:
      path: The file.
      size: About how many bytes a piece has, unpacked.

    Raises:
      ConfigError: the file cannot be read, is damaged, empty or of a form that is not read.
    """
    container, name = container_of(path), str(path)
    container = "JSONL" if container == "lines" else container
    found = False
    for piece in _cut(name, container, size):
        found = True
        yield piece
    if not found:
        raise _empty(name, "a file with rows")


def _cut(name: str, container: Container, size: int) -> Iterator[Piece]:
    if container == "parquet":
        for first, groups in parquet_rows.cut_groups(name, size):
            yield Piece(name, container, first, groups=groups)
        return
    with open_plain(name) as file:
        if container == "JSON array":
            for first, data in cut_array(file, name, size):
                yield Piece(name, container, first, data)
        elif separator := _SEPARATORS.get(container):
            for first, data, columns in delimited.cut_table(file, name, separator, size):
                yield Piece(name, container, first, data, columns)
        else:
            yield from _cut_lines(file, name, container, size)


def records(piece: Piece) -> Iterator[Record]:
    """Parses a piece.

    Raises:
      ConfigError: the file of a piece of Parquet cannot be read any more.
    """
    if piece.container == "parquet":
        yield from parquet_rows.group_records(piece.path, piece.first, piece.groups)
    elif separator := _SEPARATORS.get(piece.container):
        yield from delimited.table_records(
            piece.data, piece.path, piece.first, separator, piece.columns
        )
    elif piece.container == "text":
        line = Line(f"{piece.path}:{piece.first}", piece.data.removeprefix(MARK))
        try:
            yield Record(line.origin, {"text": decode_text(line).replace("\r\n", "\n").strip("\n")})
        except BadRowError as error:
            yield Record(line.origin, error)
    else:
        for line in number_lines(io.BytesIO(piece.data), piece.path, piece.first):
            try:
                yield Record(line.origin, parse_object(line))
            except BadRowError as error:
                yield Record(line.origin, error)


def read_records(path: epath.PathLike) -> Iterator[Record]:
    """All records of a file, in order.

    Raises:
      ConfigError: as `pieces`.
    """
    for piece in pieces(path):
        yield from records(piece)


def _empty(name: str, wanted: str) -> ConfigError:
    return ConfigError(f"{name} is empty; give {wanted}")


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_header(line: bytes, separator: bytes) -> bool:
    """Whether a line names two columns that rows have, and is no sentence."""
    cells = [cell.strip(b' "').lower() for cell in line.split(separator)]
    known = _COLUMNS.intersection(cell.decode("ascii", "replace") for cell in cells)
    return len(known) >= 2 and all(len(cell.split()) <= 2 for cell in cells)


def _cut_lines(file: BinaryIO, name: str, container: Container, size: int) -> Iterator[Piece]:
    """Cuts behind line ends, a text behind its last empty line where it has one."""
    first, kept = 1, b""
    is_text = container == "text"
    size = _TEXT if is_text else size
    while block := file.read(max(size - len(kept), 1)):
        block = kept + block
        if not block.endswith(b"\n"):
            block += file.readline()
        end = len(block)
        if is_text and end >= size:
            end = max(block.rfind(b"\n\n") + 2, block.rfind(b"\n\r\n") + 3)
            end = end if end > 2 else len(block)
        if block[:end].strip():
            yield Piece(name, container, first, block[:end])
        first += block.count(b"\n", 0, end)
        kept = block[end:]
    if kept.strip():
        yield Piece(name, container, first, kept)
