"""Where files of rows are, and how their bytes are read.

Enters: paths, globs and addresses that a user gave. Leaves: files, each once; of a file a stream of
plain bytes. What is in a dataset of the hub is fetched into its cache first.
"""

import bz2
import contextlib
import glob
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from etils import epath

from jax_mdlm.config import ConfigError, first_line

DATASETS = "hf://datasets/"
_SCHEMES = ("gs://", "s3://")
_SIGNS = frozenset("*?[")  # of a glob


def find_files(files: str, flag: str = "data.files") -> list[epath.Path]:
    """Files of a comma-separated list, each once.

    Args:
      files: Paths and globs, local, `gs://`, `s3://` or
        `hf://datasets/ORG/NAME[@REVISION]/path/*.parquet`.
      flag: What it came from; opens the errors' texts.

    Raises:
      ConfigError: nothing is listed, a file is missing, a glob matches none, or a bucket or the hub
        cannot be reached.
    """
    entries = [entry.strip() for entry in files.split(",") if entry.strip()]
    if not entries:
        raise ConfigError(
            f"{flag} must name files of rows, it is empty; set {_flag(flag)}=train.jsonl"
        )
    found = [path for entry in entries for path in _find(entry, flag)]
    return list(dict.fromkeys(found))


@contextlib.contextmanager
def open_plain(path: epath.PathLike) -> Iterator[BinaryIO]:
    """Opens a file as a stream of its bytes; gzip, bzip2 and zstd are unpacked, by content.

    Raises:
      ConfigError: also within the `with`: the file cannot be read, is damaged or cut off.
    """
    with _reaching(str(path)), contextlib.ExitStack() as stack:
        try:
            file: Any = stack.enter_context(epath.Path(path).open("rb"))
            if "://" in str(path):  # objects of buckets have not all methods of a file
                file = stack.enter_context(io.BufferedReader(file))
            magic = file.read(4)
            file.seek(0)
            if magic.startswith(b"\x1f\x8b"):
                file = stack.enter_context(gzip.GzipFile(fileobj=file))
            elif magic.startswith(b"BZh"):
                file = stack.enter_context(bz2.BZ2File(file))
            elif magic == b"\x28\xb5\x2f\xfd":
                import pyarrow

                packed: Any = pyarrow.CompressedInputStream(pyarrow.PythonFile(file), "zstd")
                file = stack.enter_context(io.BufferedReader(packed))
            yield file
        except (OSError, EOFError, zlib.error) as error:
            if isinstance(error, OSError) and error.strerror:
                raise ConfigError(
                    f"{path} must be a file that can be read, but {error.strerror}"
                ) from error
            raise damaged(path, error) from error


def damaged(path: epath.PathLike, error: Exception) -> ConfigError:
    """What is said of a file whose container cannot be read to its end."""
    return ConfigError(
        f"{path} is damaged or cut off ({first_line(error)[:200]}); copy or download it again"
    )


def _find(entry: str, flag: str) -> list[epath.Path]:
    if entry.startswith(DATASETS):
        return _fetch(entry, flag)
    if "://" in entry and not entry.startswith(_SCHEMES):
        raise ConfigError(
            f"{flag}: {entry} must be a local path, gs://, s3:// or {DATASETS}ORG/NAME/FILE"
        )
    with _reaching(entry):
        if set(entry) & _SIGNS:
            matches = sorted(path for path in _glob(entry, flag) if not path.is_dir())
            if not matches:
                raise ConfigError(f"{flag}: no file matches {entry}; correct the pattern")
            return matches
        path = epath.Path(entry)
        if not path.exists():
            raise ConfigError(f"{flag}: no file {entry}; correct the path")
        if path.is_dir():
            raise ConfigError(f"{flag}: {entry} is a folder; write {entry}/*.jsonl")
        return [path]


def _glob(pattern: str, flag: str) -> list[epath.Path]:
    """All paths that match; "**" on local disks only, in a bucket it would list all of it."""
    if "://" not in pattern:
        return [epath.Path(path) for path in glob.glob(pattern, recursive=True)]
    if "**" in pattern:
        raise ConfigError(f"{flag}: ** needs a local folder, got {pattern}; name the folders")
    parts = epath.Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if set(part) & _SIGNS)
    return list(epath.Path(*parts[:fixed]).glob("/".join(parts[fixed:])))


def _fetch(entry: str, flag: str) -> list[epath.Path]:
    """Local copies of those files of a dataset of the hub that match."""
    from jax_mdlm.storage import fetch_repository  # takes a second to import

    parts = entry.removeprefix(DATASETS).split("/")
    pattern = "/".join(parts[2:])
    if not pattern or not all(parts[:2]):
        raise ConfigError(
            f"{flag}: {entry} must name files of a dataset, as {DATASETS}ORG/NAME/data/*.parquet"
        )
    # Patterns of the hub's client cross folders, those of a shell do not.
    deeper = "" if "**" in pattern else "*/" * len(parts[2:]) + "*"
    folder = fetch_repository("/".join(parts[:2]), [pattern], deeper, "dataset")
    matches = sorted(path for path in _glob(f"{glob.escape(folder)}/{pattern}", flag))
    if not matches:
        raise ConfigError(f"{flag}: no file of the hub matches {entry}; correct the pattern")
    return [path for path in matches if not path.is_dir()]


@contextlib.contextmanager
def _reaching(path: str) -> Iterator[None]:
    """`storage.reaching` for a path in a bucket; local files do not pay for its import."""
    if "://" not in path:
        yield
        return
    from jax_mdlm.storage import reaching

    with reaching(path):
        yield


def _flag(flag: str) -> str:
    return flag if flag.startswith("--") else f"--config.{flag}"
