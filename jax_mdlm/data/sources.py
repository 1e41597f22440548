"""Several sources in one run: which files, which of their rows, how often each.

`data.files` enters as text, `RowSource`s leave: `a.jsonl[:10000]*2,b/*.parquet*0.5` is the first
10,000 rows of `a.jsonl`, each twice in an epoch, and half of the rows of `b/`, in every epoch other
ones.
"""

import re
from typing import NamedTuple

from etils import epath

from jax_mdlm.config import ConfigError
from jax_mdlm.data.files import find_files

_SLICE = r"(\[(?P<start>\d*):(?P<stop>\d*)\])?"
_ENTRY = re.compile(rf"(?P<files>.+?){_SLICE}(\*(?P<weight>\d+(\.\d+)?))?")


class RowSource(NamedTuple):
    """Files of rows.

    Attributes:
      files: A path, a glob or an address of the hub.
      start: The first of their rows, counted through all files.
      stop: The row after the last; None = all.
      weight: How often a row is in an epoch of training.
    """

    files: str
    start: int = 0
    stop: int | None = None
    weight: float = 1.0

    @property
    def name(self) -> str:
        """What it is called in the log: files and slice."""
        if self.start == 0 and self.stop is None:
            return self.files
        return f"{self.files}[{self.start or ''}:{'' if self.stop is None else self.stop}]"


def source_files(files: str, flag: str = "data.files") -> list[tuple[RowSource, list[epath.Path]]]:
    """The sources of a list and their files; a file that was there in whole is not read again.

    Raises:
      ConfigError: nothing is listed, a file is missing or cannot be reached, or as `parse_sources`.
    """
    whole: set[epath.Path] = set()
    found = []
    for source in parse_sources(files):
        paths = find_files(source.files, flag)
        if source.start == 0 and source.stop is None and source.weight == 1:
            paths = [path for path in paths if path not in whole]
            whole.update(paths)
        found.append((source, paths))
    if not found:
        find_files(files, flag)  # raises
    return found


def source_sizes(files: str) -> list[tuple[RowSource, int]]:
    """The sources of a list, and how many bytes their files have; raises as `source_files`."""
    return [
        (source, sum(path.stat().length for path in paths)) for source, paths in source_files(files)
    ]


def parse_sources(files: str) -> tuple[RowSource, ...]:
    """Reads `data.files`, a source for each entry.

    Raises:
      ConfigError: an entry is empty, a slice holds no row, or a weight is 0.
    """
    found = []
    for entry in files.split(","):
        if not entry.strip():
            continue
        match = _ENTRY.fullmatch(entry.strip())
        assert match is not None
        start = int(match["start"] or 0)
        stop = int(match["stop"]) if match["stop"] else None
        weight = float(match["weight"] or 1)
        if stop is not None and stop <= start:
            raise ConfigError(
                f"data.files: {entry.strip()} takes no row; a slice is [first:after the last]"
            )
        if weight == 0:
            raise ConfigError(f"data.files: {entry.strip()} has weight 0; leave it out")
        found.append(RowSource(match["files"], start, stop, weight))
    return tuple(found)
