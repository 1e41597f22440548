"""Paths that users give, local and in buckets: what goes wrong there, and who may write."""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence

import fsspec.core
from etils import epath

from jax_mdlm.config import ConfigError
from jax_mdlm.extras import how_to_install
from jax_mdlm.storage.checkpoints import CheckpointError

_SCHEMES = ("gs", "s3")


def given_path(path: epath.PathLike) -> epath.Path:
    """Takes a path that a user gave: `~` is expanded, and only what can be used goes through.

    Raises:
      ConfigError: a URL that is neither gs:// nor s3://, or nothing.
    """
    text = os.fspath(path)
    if not text:
        raise ConfigError("a path must be given, got an empty one")
    scheme, found, rest = text.partition("://")
    if found and scheme not in _SCHEMES:
        hint = ""
        if scheme in ("http", "https") and rest.startswith("huggingface.co/"):
            hint = f"; the hub's repositories are written hf://{rest.split('/', 1)[1]}, as a source"
        raise ConfigError(f"{text} must be a local path, gs:// or s3://{hint}")
    return epath.Path(text).expanduser()


def read_range(path: epath.Path, begin: int, end: int) -> bytes:
    """Reads bytes `begin` to `end` of a file or an object, and no more.

    An object that is opened as a file is read ahead, up to 50 MB beyond what was asked for.

    Raises:
      OSError: the local file cannot be read.
      ConfigError: the object cannot.
    """
    if begin == end:
        return b""
    if "://" not in os.fspath(path):
        with open(path, "rb") as file:
            file.seek(begin)
            return file.read(end - begin)
    with reaching(path):
        store, key = fsspec.core.url_to_fs(os.fspath(path))
        return store.cat_file(key, start=begin, end=end)


def read_ranges(ranges: Sequence[tuple[epath.Path, int, int]]) -> list[bytes]:
    """Reads `(file, begin, end)` of objects of one bucket, all at the same time.

    Raises:
      ConfigError: an object cannot be read.
    """
    if not ranges:
        return []
    paths, begins, ends = zip(*ranges, strict=True)
    with reaching(paths[0]):
        store, _ = fsspec.core.url_to_fs(os.fspath(paths[0]))
        keys = [store._strip_protocol(os.fspath(path)) for path in paths]
        return store.cat_ranges(keys, list(begins), list(ends), on_error="raise")


@contextlib.contextmanager
def reaching(*paths: epath.PathLike) -> Iterator[None]:
    """Makes what fails while paths are used a ConfigError that names them.

    The clients of buckets raise all kinds of errors where the network, the credentials, the bucket
    or the client itself is missing. Where no path is in a bucket, only what the operating system
    refuses is meant; other errors pass as they are.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        remote = " and ".join(os.fspath(path) for path in paths if "://" in os.fspath(path))
        if not remote:
            if not isinstance(error, OSError):
                raise
            where = error.filename or " and ".join(str(path) for path in paths)
            reason = error.strerror or _in_one_line(error)
            raise ConfigError(
                f"{where} cannot be used ({reason}); correct the path or its permissions"
            ) from error
        if isinstance(error, ImportError):
            raise ConfigError(
                f"{remote} needs packages that are not installed ({_in_one_line(error)}); "
                f"{how_to_install('cloud')}"
            ) from error
        raise ConfigError(
            f"{remote} cannot be used ({_in_one_line(error)}); correct the path, check your "
            "access and the network"
        ) from error


def _in_one_line(error: Exception) -> str:
    """Quotes an exception for a sentence of ours; its type where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def replace_text(path: epath.PathLike, text: str) -> None:
    """Writes a file whole or not at all: who reads it, or a kill, meets the old one or the new one.

    Half a surrogate pair, which JSON of others may hold, becomes its escape.
    """
    path = epath.Path(path)
    aside = path.parent / f"{path.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        aside.write_bytes(text.encode("utf-8", "backslashreplace"))
        aside.replace(path)
    except OSError:  # a full disk
        aside.unlink(missing_ok=True)
        raise


def check_room(folder: epath.Path, what: str, size: int, remedy: str) -> None:
    """Raises ConfigError where the disk of `folder` has not `size` bytes; buckets have."""
    if os.path.exists(folder) and (free := shutil.disk_usage(folder).free) < size:
        raise ConfigError(
            f"{what} must have room for {size:,} bytes, its disk has {free:,} free; {remedy}"
        )


@contextlib.contextmanager
def taking(what: str, size: int, remedy: str) -> Iterator[None]:
    """Makes what a disk, a bucket or TensorStore answers to `size` bytes a CheckpointError."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{what} must take {size:,} bytes, but writing failed ({_in_one_line(error)}); {remedy}"
        ) from error


@contextlib.contextmanager
def alone_in(folder: epath.Path) -> Iterator[None]:
    """Makes a folder and keeps other processes that ask for it out, as long as this one lives.

    Nothing is written: a killed owner leaves no lock behind. Buckets, and file systems that know
    no locks, are not locked.

    Raises:
      ConfigError: another process is in there, or the folder cannot be made.
    """
    if "://" in os.fspath(folder):
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"{folder} must be a folder, but {error}; choose another") from error
    try:
        if not _lock(handle, folder):
            raise ConfigError(
                f"{folder} is being written by another process; wait for it, or choose another"
            )
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: epath.Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    # Its owner may have renamed it between our two calls: then we hold what is no longer here.
    return os.path.exists(folder) and os.path.samestat(os.fstat(handle), os.stat(folder))
