"""One writer per folder: a lock that the operating system takes back, however its owner ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator

from etils import epath

from jax_mdlm.config import ConfigError


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
