"""Rows prepared once: text enters, a folder leaves that `prepared` opens in no time.

All hosts work, each with all its cores, and each on its share of the shards; process 0 begins and
ends. The same command goes on after a kill with the shards that are missing. The manifest comes
last: a folder without it is unfinished, and nobody reads it.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence

import jax
import numpy as np
from etils import epath

from jax_mdlm import __version__
from jax_mdlm.config import Config, ConfigError
from jax_mdlm.data.chat import training_template
from jax_mdlm.data.hold_out import hash_limit
from jax_mdlm.data.prepared import (
    MANIFEST,
    SCHEMA,
    Manifest,
    check_prepared,
    make_spans,
    read_manifest,
    settings_of,
    tokenizer_digest,
)
from jax_mdlm.data.shard_making import ShardTask, encode_shard, make_jobs, make_shards
from jax_mdlm.data.shards import (
    SPLITS,
    ShardRecord,
    read_hashes,
    read_record,
    remove_partial,
    work_folder,
    write_file,
)
from jax_mdlm.data.sources import parse_sources
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.processes import anywhere, barrier
from jax_mdlm.storage import alone_in

_PLAN = "plan.json"
_ERRORS = 3  # malformed rows that the manifest tells of


def prepare_rows(
    config: Config,
    tokenizer: Tokenizer,
    folder: epath.Path,
    *,
    own: epath.Path | None = None,
    workers: int = 0,
    note: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Prepares the rows of `data.files`, or finds them prepared.

    Args:
      config: Of a run.
      tokenizer: Kept in `folder / "tokenizer"`.
      folder: Where the result goes, local or in a bucket; all processes see it.
      own: Where a run keeps its tokenizer, which must be that of the folder.
      workers: Processes of each host; 0 = as many as it has cores.
      note: Takes lines that say how far it is.

    Raises:
      ConfigError: a file or a row cannot be used, the folder holds something else, or it cannot be
        written.
    """
    digest = tokenizer_digest(own or folder / "tokenizer", tokenizer.ids)
    first = jax.process_index() == 0
    if (manifest := read_manifest(folder)) is not None:
        check_prepared(folder, manifest, config.data, digest)
        if first and work_folder(folder).exists():  # of a command that was killed at its very end
            work_folder(folder).rmtree()
        return manifest
    plan = {
        "schema": SCHEMA,
        "version": __version__,
        "made_from": settings_of(config.data),
        "tokenizer": digest,
    }
    limit = int(hash_limit(config.data.validation_percent))
    limit = limit if config.data.validation_percent > 0 else 0
    task = ShardTask(os.fspath(folder), config.data, os.fspath(folder / "tokenizer"), limit)
    with alone_in(folder) if first else contextlib.nullcontext():
        error = None
        try:
            if first:
                _begin(folder, plan)
            barrier("prepare")
            jobs = make_jobs(config.data.files)
            count = make_shards(jobs, task, workers or os.cpu_count() or 1, note)
        except (ConfigError, OSError) as raised:
            error = _told(raised, folder)
        if anywhere(error is not None):
            raise error or ConfigError(
                f"another process could not prepare its share of {folder}; see its last line"
            )
        if first:
            try:
                _finish(folder, plan, count, task, config, tokenizer)
            except OSError as raised:
                raise _told(raised, folder) from raised
        barrier("prepared")
    manifest = read_manifest(folder)
    if manifest is None:
        raise ConfigError(
            f"{folder} must be seen by all processes; put it on a shared disk or on gs://"
        )
    return manifest


def _told(error: Exception, folder: epath.Path) -> ConfigError:
    if isinstance(error, ConfigError):
        return error
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return ConfigError(
        f"{folder} must take the prepared rows, but writing failed ({reason}); make room or choose "
        "another folder, and run the same command again: what is there is kept"
    )


def _begin(folder: epath.Path, plan: dict) -> None:
    """Goes on where an earlier command with the same plan stopped; otherwise begins anew."""
    path = work_folder(folder) / _PLAN
    ours = {"tokenizer", "train", "validation", "spans", "work"}
    if strangers := sorted(path.name for path in folder.iterdir() if path.name not in ours):
        raise ConfigError(
            f"{folder} must be a new folder, or one of prepared rows, it holds {strangers[0]}; "
            "choose another"
        )
    text = json.dumps(plan, indent=1)
    if not path.exists() or path.read_text() != text:
        for name in sorted(ours - {"tokenizer"}):
            if (folder / name).exists():
                (folder / name).rmtree()
        write_file(path, text.encode())


def _finish(
    folder: epath.Path,
    plan: dict,
    count: int,
    task: ShardTask,
    config: Config,
    tokenizer: Tokenizer,
) -> None:
    """Counts everything, cuts the rows for this run's canvas, and writes the manifest."""
    sources = parse_sources(config.data.files)
    hashes = [read_hashes(folder, number) for number in range(count)]
    every = np.sort(np.concatenate([*hashes, np.empty(0, np.uint64)]))
    duplicates = int((every[1:] == every[:-1]).sum())
    records = _records(folder, count)
    if (limit := _other_limit(records, every, task.limit)) is not None:
        # As in memory: a small file is held out by its smallest hash. Few shards change.
        other = dataclasses.replace(task, limit=limit)
        template = training_template(config.data, tokenizer)
        for job in make_jobs(config.data.files):
            below = hashes[job.number] < np.uint64(limit)
            if (below != (hashes[job.number] < np.uint64(task.limit))).any():
                encode_shard(job, other, tokenizer, template)
        records = _records(folder, count)
    for split in SPLITS:
        if not sum(record.rows[split] for record in records):
            raise ConfigError(
                f"{config.data.files} gives no row for {split} ({len(every):,} rows were read, "
                f"{duplicates:,} of them twice); give more data or change data.validation_percent"
            )
    skipped = sum((Counter(record.skipped) for record in records), Counter())
    counts = {
        "rows": sum(sum(record.rows.values()) for record in records),
        "held_out": sum(record.rows["validation"] for record in records),
        "responses": sum(sum(record.pairs.values()) for record in records),
        "tokens": sum(sum(record.tokens.values()) for record in records),
        "duplicates": duplicates,
        "skipped": dict(sorted(skipped.items())),
    }
    manifest = Manifest(
        **plan,
        sources=[
            _source(source.name, [record for record in records if record.source == at], hashes)
            for at, source in enumerate(sources)
        ],
        counts=counts,
        errors=[error for record in records for error in record.errors][:_ERRORS],
        shards=[
            {"source": r.source, "pairs": dict(r.pairs), "tokens": dict(r.tokens)} for r in records
        ],
    )
    make_spans(folder, manifest, config, tokenizer)
    for split in SPLITS:
        remove_partial(folder / split)
    write_file(folder / MANIFEST, (json.dumps(vars(manifest), indent=1) + "\n").encode())
    work_folder(folder).rmtree()


def _records(folder: epath.Path, count: int) -> list[ShardRecord]:
    found = [read_record(folder, number) for number in range(count)]
    assert all(record is not None for record in found), "a shard is missing"
    return [record for record in found if record is not None]


def _other_limit(records: Sequence[ShardRecord], every: np.ndarray, limit: int) -> int | None:
    """Below which hash rows are held out, where the share of the settings gives none or all."""
    if limit == 0 or not len(every) or every[0] == every[-1]:
        return None
    if every[0] >= limit:
        return int(every[0]) + 1
    return int(every[-1]) if every[-1] < limit else None


def _source(name: str, records: Sequence[ShardRecord], hashes: Sequence[np.ndarray]) -> dict:
    """What the manifest says of a source."""
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        digest.update(hashes[record.number].tobytes())
    return {
        "name": name,
        "forms": sorted({record.form for record in records}),
        "rows": sum(sum(record.rows.values()) for record in records),
        "digest": digest.hexdigest(),
    }
