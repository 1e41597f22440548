"""Files and rows of other forms, recognised by content and by ending, and what to do with them.

They are named, not read: `docs/guides/data.md` has the lines of Python that convert each.
"""

import json
from collections.abc import Mapping
from typing import Any

from jax_mdlm.config import ConfigError

ROWS = (
    'rows must be {"messages": [{"role": ..., "content": ...}, ...]} or {"prompt": ..., '
    '"response": ...}, one object a line'
)
GUIDE = "docs/guides/data.md"
_CONVERT = f"{ROWS}; {GUIDE} shows how to convert it"

# First bytes -> what the file is, and the remedy.
_MAGIC = (
    (b"\x1f\x8b", "compressed (gzip)", "unpack it first, e.g. with gunzip"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)", "unpack it first, e.g. with zstd -d"),
    (b"BZh", "compressed (bzip2)", "unpack it first, e.g. with bunzip2"),
    (b"\xfd7zXZ\x00", "compressed (xz)", "unpack it first, e.g. with unxz"),
    (b"PK\x03\x04", "a ZIP archive or a spreadsheet", "unpack it, or save the sheet as CSV"),
    (b"PAR1", "a Parquet file", _CONVERT),
    (b"ARROW1", "an Arrow file", _CONVERT),
    (b"\xff\xff\xff\xff", "an Arrow stream", _CONVERT),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run git lfs pull"),
    (b"<!DOCTYPE", "a web page, not the file itself", "download the file that the page is about"),
    (b"<html", "a web page, not the file itself", "download the file that the page is about"),
)
_ENDINGS = {
    ".csv": "a table (CSV)",
    ".tsv": "a table (TSV)",
    ".parquet": "a Parquet file",
    ".arrow": "an Arrow file",
}
_COLUMNS = frozenset(
    {"messages", "conversations", "role", "content", "system", "context", "prompt", "response"}
    | {"question", "answer", "instruction", "input", "output", "text", "completion"}
)


class ForeignFormError(ConfigError):
    """A file or row of a form that is not ours: leaving the row out helps nobody."""


def check_form(line: bytes, name: str) -> None:
    """Refuses a file that no reader of lines can read.

    Args:
      line: Its first line that is not blank.
      name: Of the file, with its ending.

    Raises:
      ForeignFormError: it has a form that is known, and another one.
    """
    for magic, form, remedy in _MAGIC:
        if line.startswith(magic):
            raise ForeignFormError(f"{name} is {form}; {remedy}")
    if line.startswith(b"{") and line != b"{":
        return  # what it is said to be by its ending does not matter
    for ending, form in _ENDINGS.items():
        if name.lower().endswith(ending):
            raise ForeignFormError(f"{name} is {form}; {_CONVERT}")
    if _is_header(line):
        raise ForeignFormError(f"{name} is a table (CSV); {_CONVERT}")
    if line == b"{":
        raise ForeignFormError(f"{name} is JSON over several lines; {_CONVERT}")
    if line == b"[" or (line.startswith(b"[") and line[1:].lstrip().startswith(b"{")):
        raise ForeignFormError(f"{name} is one JSON array; {_CONVERT}")


def check_row(row: Mapping[str, Any], origin: str) -> None:
    """Refuses a row by the name of its form, where it has one.

    Raises:
      ForeignFormError: it is a row of ShareGPT, of Alpaca, of a completion or a preference.
    """
    form = ""
    if "conversations" in row:
        form = "a ShareGPT row (conversations of from and value)"
    elif "instruction" in row and "output" in row:
        form = "an Alpaca row (instruction, input, output)"
    elif "chosen" in row and "rejected" in row:
        form = "a row of preferences (chosen, rejected)"
    elif "prompt" in row and "completion" in row:
        form = "a row of prompt and completion"
    if form:
        raise ForeignFormError(f"{origin} is {form}; {_CONVERT}")


def is_object(line: bytes) -> bool:
    """Whether a line is a whole JSON object, so that its file is no list of texts."""
    if not (line.startswith(b"{") and line.endswith(b"}")):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_header(line: bytes) -> bool:
    """Whether a line is the header of a table: two columns that rows have, and no sentence."""
    for separator in (b",", b"\t", b";"):
        cells = [cell.strip(b' "').lower() for cell in line.split(separator)]
        known = _COLUMNS.intersection(cell.decode("ascii", "replace") for cell in cells)
        if len(known) >= 2 and all(len(cell.split()) <= 2 for cell in cells):
            return True
    return False
