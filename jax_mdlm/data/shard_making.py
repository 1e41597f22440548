"""Pieces of the sources made to shards, by as many processes as there are.

Jobs enter, shards leave. A piece becomes a shard wherever a process is free: what a shard holds
depends on its piece alone, so that neither cores nor hosts nor kills can be told from the result.
Shards that are there already are left as they are.
"""

import collections
import concurrent.futures as futures
import contextlib
import dataclasses
import gc
import hashlib
import itertools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from etils import epath

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data.chat import Template, training_template
from jax_mdlm.data.encode import encode_examples
from jax_mdlm.data.examples import BadRowError
from jax_mdlm.data.forms import form_of, parse_row
from jax_mdlm.data.hold_out import content_hash
from jax_mdlm.data.readers import Piece, pieces, records
from jax_mdlm.data.shards import SPLITS, ShardRecord, read_record, write_shard
from jax_mdlm.data.sources import source_files
from jax_mdlm.data.tokenizer import Tokenizer, read_tokenizer

_ERRORS = 3  # malformed rows of a shard whose errors are kept
_SECONDS = 10  # between lines about how far it is


@dataclasses.dataclass(frozen=True)
class Job:
    """A piece that becomes a shard.

    Attributes:
      number: Of the shard.
      source: Number of the source.
      piece: What is read.
      rows: Which of its records: the first, and the one after the last (None = all).
    """

    number: int
    source: int
    piece: Piece
    rows: tuple[int, int | None] = (0, None)

    @property
    def digest(self) -> str:
        """Of what is read; of a file that is not read here its size stands for its content."""
        piece, digest = self.piece, hashlib.blake2b(digest_size=16)
        size = 0 if piece.data else epath.Path(piece.path).stat().length
        about = (piece.path, piece.container, piece.first, piece.columns, piece.groups)
        digest.update(repr((about, size, self.rows)).encode())
        digest.update(piece.data)
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """What all workers do.

    Attributes:
      folder: Where shards are written.
      data: Template, tokenizer, policy of malformed rows, share that is held out.
      tokenizer: Folder of the tokenizer.
      limit: Rows whose hash is below are held out.
    """

    folder: str
    data: DataConfig
    tokenizer: str
    limit: int


def make_jobs(files: str) -> Iterator[Job]:
    """All pieces of all sources of `data.files`, in order; of a slice the rows are counted.

    Raises:
      ConfigError: a file is missing, or cannot be read.
    """
    number = 0
    for at, (source, paths) in enumerate(source_files(files)):
        sliced = source.start > 0 or source.stop is not None
        seen = 0
        for piece in itertools.chain.from_iterable(map(pieces, paths)):
            rows: tuple[int, int | None] = (0, None)
            if sliced:
                count = sum(1 for _ in records(piece))
                stop = count if source.stop is None else min(source.stop - seen, count)
                rows = (max(source.start - seen, 0), stop)
                seen += count
            if rows[1] is None or rows[0] < rows[1]:
                yield Job(number, at, piece, rows)
                number += 1
            if source.stop is not None and seen >= source.stop:
                break


def make_shards(
    jobs: Iterable[Job],
    task: ShardTask,
    workers: int,
    note: Callable[[str], None],
) -> int:
    """Makes the shards of this process's jobs, those that are there already left out.

    Args:
      jobs: All jobs of all processes; every `jax.process_count()`-th is this one's.
      task: What is done.
      workers: Processes; 1 = none but this one.
      note: Takes lines that say how far it is.

    Returns:
      How many shards there are, of all processes.

    Raises:
      ConfigError: a row is malformed, a file cannot be read, or the disk is full.
    """
    index, hosts = jax.process_index(), jax.process_count()
    folder = epath.Path(task.folder)
    progress, last = _Progress(note), -1
    with _pool(task, workers) as submit:
        running: collections.deque[futures.Future[ShardRecord]] = collections.deque()
        for job in jobs:
            last = job.number
            if job.number % hosts != index:
                continue
            record = read_record(folder, job.number)
            if record and record.digest == job.digest:
                progress.found(record)
                continue
            running.append(submit(job))
            while len(running) > 2 * workers or (running and running[0].done()):
                progress.made(running.popleft().result())
        while running:
            progress.made(running.popleft().result())
    progress.end()
    return last + 1


def encode_shard(
    job: Job, task: ShardTask, tokenizer: Tokenizer, template: Template | None
) -> ShardRecord:
    """Makes the shard of a piece.

    Raises:
      ConfigError: a row is malformed, and malformed rows are not skipped.
    """
    rows, origins, skipped, errors, form = [], [], collections.Counter(), [], ""
    for record in itertools.islice(records(job.piece), *job.rows):
        try:
            if isinstance(record.row, BadRowError):
                raise record.row
            rows.append(parse_row(record.row, record.origin, task.data.pretraining))
            origins.append(record.origin)
            form = form or form_of(record.row)
        except BadRowError as error:
            _refuse(error, task.data)
            skipped[error.kind] += 1
            errors.append(str(error))
    hashes = np.array([content_hash(row) for row in rows], np.uint64)
    held = hashes < np.uint64(task.limit)
    encoded, not_encoded, texts = {}, {}, []
    for split in SPLITS:
        own = np.flatnonzero(held == (split == "validation"))
        found, bad = encode_examples([rows[at] for at in own], tokenizer, template)
        for at, reason in bad:
            error = BadRowError(f"{origins[own[at]]}: {reason}", reason.kind)
            _refuse(error, task.data)
            skipped[error.kind] += 1
            errors.append(str(error))
        encoded[split], not_encoded[split] = found, len(bad)
        if split == "validation":
            texts = [(origins[own[at]], rows[own[at]]) for at in np.unique(found.row)]
    about = ShardRecord(
        job.number,
        job.source,
        job.digest,
        f"{job.piece.container}, {form}" if form else job.piece.container,
        skipped=dict(sorted(skipped.items())),
        not_encoded=not_encoded,
        errors=tuple(errors[:_ERRORS]),
    )
    return write_shard(epath.Path(task.folder), about, encoded, texts, hashes)


def _refuse(error: BadRowError, data: DataConfig) -> None:
    if data.on_bad_row == "error":
        raise ConfigError(f"{error}; correct the row or set data.on_bad_row=skip") from error


# --- worker processes ---

_STATE: list = []  # of a worker: task, tokenizer, template


@contextlib.contextmanager
def _pool(
    task: ShardTask, workers: int
) -> Iterator[Callable[[Job], "futures.Future[ShardRecord]"]]:
    """A function that takes a job to a free process."""
    if workers <= 1:
        _begin_worker(task, None)
        yield _here
        return
    context = multiprocessing.get_context("spawn")  # JAX has threads: a fork could hang
    pool = futures.ProcessPoolExecutor(
        workers, context, initializer=_begin_worker, initargs=(task, os.getpid())
    )
    try:
        yield lambda job: pool.submit(_work, job)
    except futures.process.BrokenProcessPool as error:
        raise ConfigError(
            "a process that prepares rows was killed, perhaps for want of memory; run the same "
            "command again, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker(task: ShardTask, parent: int | None) -> None:
    if parent is not None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for every core
        gc.disable()  # millions of ids in lists, and no circle among them
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    data, folder = task.data, epath.Path(task.tokenizer)
    tokenizer = read_tokenizer(data.tokenizer, folder, data.special_in_text)
    _STATE[:] = [task, tokenizer, training_template(data, tokenizer)]


def _end_with(parent: int) -> None:
    """Ends this process when its parent was killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _work(job: Job) -> ShardRecord:
    return encode_shard(job, *_STATE)


def _here(job: Job) -> "futures.Future[ShardRecord]":
    done: futures.Future[ShardRecord] = futures.Future()
    done.set_result(_work(job))
    return done


class _Progress:
    """Lines that say how many rows there are, and how fast they come."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note, self._begin = note, time.monotonic()
        self._last, self._kept, self._rows, self._shards = self._begin, 0, 0, 0

    def found(self, record: ShardRecord) -> None:
        self._kept += 1

    def made(self, record: ShardRecord) -> None:
        self._rows += sum(record.rows.values())
        self._shards += 1
        if time.monotonic() - self._last > _SECONDS:
            self._last = time.monotonic()
            self._note(self._line())

    def end(self) -> None:
        if self._shards or self._kept:
            self._note(f"{self._line()}; all there")

    def _line(self) -> str:
        rate = self._rows / max(time.monotonic() - self._begin, 1e-3)
        kept = f", {self._kept:,} shards were there" if self._kept else ""
        return f"prepared {self._rows:,} rows in {self._shards:,} shards, {rate:,.0f} rows/s{kept}"
