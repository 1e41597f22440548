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
from jax_mdlm.data.hold_out import hash_limit, settle_limit
from jax_mdlm.data.prepared import (
    MANIFEST,
    SCHEMA,
    Manifest,
    check_prepared,
    make_spans,
    read_manifest,
    settings_of,
    together,
    tokenizer_digest,
)
from jax_mdlm.data.shard_making import ShardTask, encode_shard, make_jobs, make_shards
from jax_mdlm.data.shards import (
    SPLITS,
    ShardRecord,
    is_partial,
    read_hashes,
    read_record,
    remove_partial,
    work_folder,
    write_file,
)
from jax_mdlm.data.sources import RowSource, source_sizes
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.storage import alone_in

_PLAN = "plan.json"
_MADE = ("spans", "train", "validation")
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
    kept = folder / "tokenizer"
    digest = tokenizer_digest(own or kept, tokenizer.ids)
    first = jax.process_index() == 0
    if (manifest := read_manifest(folder)) is not None:
        check_prepared(folder, manifest, config.data, digest)
        if first and work_folder(folder).exists():  # of a command that was killed at its very end
            with contextlib.suppress(OSError):  # the folder may be read-only by now
                work_folder(folder).rmtree()
        return manifest
    plan = {
        "schema": SCHEMA,
        "version": __version__,
        "made_from": settings_of(config.data),
        "tokenizer": digest,
        "tokenizer_path": config.data.tokenizer.path,
    }
    limit = hash_limit(config.data.validation_percent)
    task = ShardTask(os.fspath(folder), config.data, os.fspath(kept), limit)
    count = 0
    with contextlib.ExitStack() as stack:
        with together(folder):
            if first:
                stack.enter_context(alone_in(folder))
                check_new(folder)
                if tokenizer_digest(kept, tokenizer.ids) != digest:
                    raise ConfigError(
                        f"{kept} must be the tokenizer of the run, it is another; choose another "
                        "folder"
                    )
                _begin(folder, plan)
        with together(folder):
            jobs = make_jobs(config.data.files)
            count = make_shards(jobs, task, workers or os.cpu_count() or 1, note)
        with together(folder):
            if first:
                _finish(folder, plan, count, task, config, tokenizer)
    manifest = read_manifest(folder)
    if manifest is None:
        raise ConfigError(
            f"{folder} must be seen by all processes; put it on a shared disk or on gs://"
        )
    return manifest


def check_new(folder: epath.Path) -> None:
    """Refuses a folder that is not new, nor one in which `prepare_rows` has begun.

    Only where its plan is, what is called `train` is ours, and may be removed.

    Raises:
      ConfigError: it holds something else.
    """
    if not folder.exists():
        return
    work = work_folder(folder)
    ours = {"tokenizer"}
    if (work / _PLAN).exists():
        ours |= {*_MADE, work.name}
    elif work.exists() and all(is_partial(path) for path in work.iterdir()):
        ours |= {work.name}  # killed while the plan was written
    names = (path.name for path in folder.iterdir() if not is_partial(path))
    if strangers := sorted(name for name in names if name not in ours):
        raise ConfigError(
            f"{folder} must be a new folder, or one of prepared rows, it holds {strangers[0]}; "
            "choose another"
        )


def recorded_path(folder: epath.Path) -> str | None:
    """The `data.tokenizer.path` of prepared rows, whole or begun; None where there are none."""
    if (manifest := read_manifest(folder)) is not None:
        return manifest.tokenizer_path
    plan = work_folder(folder) / _PLAN
    return json.loads(plan.read_text())["tokenizer_path"] if plan.exists() else None


def _begin(folder: epath.Path, plan: dict) -> None:
    """Goes on where an earlier command with the same plan stopped; otherwise begins anew."""
    path = work_folder(folder) / _PLAN
    text = json.dumps(plan, indent=1)
    remove_partial(folder)
    if path.exists() and path.read_text() != text:
        for name in _MADE:
            if (folder / name).exists():
                (folder / name).rmtree()
        for old in work_folder(folder).iterdir():
            if old.name != _PLAN:  # it goes last: it says that the folder is ours
                old.unlink(missing_ok=True)
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
    hashes = [read_hashes(folder, number) for number in range(count)]
    every = np.sort(np.concatenate([*hashes, np.empty(0, np.uint64)]))
    duplicates = int((every[1:] == every[:-1]).sum())
    records = _records(folder, count)
    limit = settle_limit(task.limit, int(every[0]), int(every[-1])) if len(every) else task.limit
    if limit != task.limit:  # few shards change
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
        "not_encoded": {s: sum(record.not_encoded[s] for record in records) for s in SPLITS},
    }
    manifest = Manifest(
        **plan,
        sources=[
            _source(source, size, [record for record in records if record.source == at], hashes)
            for at, (source, size) in enumerate(source_sizes(config.data.files))
        ],
        counts=counts,
        errors=[error for record in records for error in record.errors][:_ERRORS],
        shards=[
            {"source": r.source, "pairs": dict(r.pairs), "tokens": dict(r.tokens)} for r in records
        ],
    )
    if (folder / "spans").exists():  # of a command that was killed
        (folder / "spans").rmtree()
    make_spans(folder, manifest, config, tokenizer)
    for name in ("tokenizer", *SPLITS):
        remove_partial(folder / name)
    write_file(folder / MANIFEST, (json.dumps(vars(manifest), indent=1) + "\n").encode())
    work_folder(folder).rmtree()


def _records(folder: epath.Path, count: int) -> list[ShardRecord]:
    found = [read_record(folder, number) for number in range(count)]
    assert all(record is not None for record in found), "a shard is missing"
    return [record for record in found if record is not None]


def _source(
    source: RowSource, size: int, records: Sequence[ShardRecord], hashes: Sequence[np.ndarray]
) -> dict:
    """What the manifest says of a source."""
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        digest.update(hashes[record.number].tobytes())
    return {
        "name": source.name,
        "weight": source.weight,
        "bytes": size,
        "forms": sorted({record.form for record in records}),
        "rows": sum(sum(record.rows.values()) for record in records),
        "digest": digest.hexdigest(),
    }
