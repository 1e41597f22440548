"""Prepared rows: a folder of shards that is opened in no time, whatever its size.

A folder enters, `Table`s leave whose arrays are mapped. Its manifest, written last, says what the
rows were made from: sources, tokenizer, template. Of these nothing may differ from the run's. What
only says how rows are cut to a canvas (`data.length`, `data.max_labels`, ...) may: spans are kept
for each such set of settings, and made anew in a second or two for another one. Nothing in the
folder says when or by whom it was made: the same sources give the same bytes.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from jax_mdlm.config import Config, ConfigError, DataConfig, first_line
from jax_mdlm.containers import SpecialIds
from jax_mdlm.data.counts import Extent, RowCounts
from jax_mdlm.data.cut import Cut, Margins, Tally, cut_chat, pack_texts
from jax_mdlm.data.examples import Example, Part, SplitRows
from jax_mdlm.data.shards import (
    SPLITS,
    npy_header,
    read_pairs,
    read_texts,
    shard_file,
    texts_file,
    write_file,
)
from jax_mdlm.data.sources import parse_sources, source_sizes
from jax_mdlm.data.table import Table, too_long
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.data.tokens import HEADER, Tokens, map_array, open_shards
from jax_mdlm.processes import anywhere
from jax_mdlm.storage import reaching

MANIFEST = "manifest.json"
SCHEMA = 1
_ARRAYS = ("history", "response", "terminated", "repeats", "first")
_COUNTS = "counts.json"
_REMOVE = "remove this folder: it is made anew"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder of prepared rows holds.

    Attributes:
      schema: Of the files.
      version: Of the package that wrote them.
      made_from: Setting -> value, of all settings that decide which tokens a row has.
      tokenizer: Digest of its files and special ids.
      tokenizer_path: `data.tokenizer.path` that it came from.
      sources: Of each source its name, weight where the run names no files, bytes and forms of its
        files, rows, digest.
      counts: Rows, responses, tokens, held out, duplicates, skipped by kind, and of
        these the rows of each split that could not be encoded.
      errors: What was wrong with the first skipped rows.
      shards: Of each shard its source, and per split its pairs and tokens.
    """

    schema: int
    version: str
    made_from: Mapping[str, Any]
    tokenizer: str
    tokenizer_path: str
    sources: Sequence[Mapping[str, Any]]
    counts: Mapping[str, Any]
    errors: Sequence[str]
    shards: Sequence[Mapping[str, Any]]

    def lines(self) -> list[str]:
        """For the log: every source, then what became of all rows."""
        lines = [
            f"{source['name']}: {', '.join(source['forms'])}, {source['rows']:,} rows"
            for source in self.sources
        ]
        skipped = self.counts["skipped"]
        if total := sum(skipped.values()):
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in skipped.items())
            lines += [f"{total:,} rows skipped: {kinds}", *self.errors]
        return lines


def settings_of(data: DataConfig) -> dict[str, Any]:
    """The settings that decide which tokens a row has, for `Manifest.made_from`."""
    files = ",".join(source.name for source in parse_sources(data.files))
    found: dict[str, Any] = {"source": data.source}
    if data.source == "chat_jsonl":
        found |= {"files": files, "validation_percent": data.validation_percent}
    else:
        found |= {"split": data.split, "validation_split": data.validation_split}
        found |= {"prompt_field": data.prompt_field, "response_field": data.response_field}
    found |= {"pretraining": data.pretraining, "on_bad_row": data.on_bad_row}
    found |= {"special_in_text": data.special_in_text}
    return found if data.pretraining else found | {"template": data.template}


def tokenizer_digest(folder: epath.Path, ids: SpecialIds) -> str:
    """Of a kept tokenizer: what it does with a text, and which ids are special."""
    digest = hashlib.blake2b(repr(ids).encode(), digest_size=16)
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).exists():
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def read_manifest(folder: epath.Path) -> Manifest | None:
    """What a folder holds; None where it is not there, or not whole yet.

    Raises:
      ConfigError: it was written by another version of this format, or cannot be read.
    """
    path = folder / MANIFEST
    with reading_prepared(path):
        if not path.exists():
            return None
        fields = json.loads(path.read_text())
        if fields.get("schema") != SCHEMA:
            raise ConfigError(
                f"{path} must have schema {SCHEMA}, got {fields.get('schema')}; prepare the rows "
                "again into another folder"
            )
        return Manifest(**fields)


@contextlib.contextmanager
def reading_prepared(path: epath.Path) -> Iterator[None]:
    """Makes what is wrong with a file of prepared rows a ConfigError."""
    remote = "://" in os.fspath(path)
    with reaching(path) if remote else contextlib.nullcontext():
        try:
            yield
        except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ConfigError) or (remote and isinstance(error, OSError)):
                raise
            reason = getattr(error, "strerror", None) or first_line(error)
            raise ConfigError(
                f"{path} must be a whole file of prepared rows, but cannot be read ({reason}); "
                "copy the folder again, or prepare the rows into another one"
            ) from error


@contextlib.contextmanager
def together(folder: epath.Path) -> Iterator[None]:
    """What processes do with a folder, each its part: where one fails, all end, each with a line.

    Raises:
      ConfigError: the disk is full, e.g., or another process has failed.
    """
    error = None
    try:
        with reaching(folder) if "://" in os.fspath(folder) else contextlib.nullcontext():
            yield
    except ConfigError as raised:
        error = raised
    except OSError as raised:
        error = ConfigError(
            f"{folder} must take the prepared rows, but writing failed "
            f"({raised.strerror or raised}); make room or choose another folder, and run the same "
            "command again: what is there is kept"
        )
        error.__cause__ = raised
    if anywhere(error is not None):
        raise error or ConfigError(
            f"another process could not do its part of {folder}; see its last line"
        )


def check_prepared(
    folder: epath.Path, manifest: Manifest, data: DataConfig, tokenizer: str
) -> None:
    """Refuses prepared rows that are not those of a run.

    Where `data.files` is empty the sources are not compared: a pod need not have them. Files that
    are there must have the size that they had.

    Raises:
      ConfigError: settings or the tokenizer differ; all that differs is named.
    """
    asked, made = settings_of(data), manifest.made_from
    if data.source == "chat_jsonl" and not data.files:
        asked["files"] = made.get("files")
    wrong = [
        f"data.{name} was {made.get(name)}, is {asked.get(name)}"
        for name in sorted(asked.keys() | made.keys())
        if made.get(name) != asked.get(name)
    ]
    wrong += _other_files(manifest, data.files)
    if manifest.tokenizer != tokenizer:
        wrong.append("the tokenizer or its special ids are others")
    if wrong:
        raise ConfigError(
            f"{folder} was prepared with other settings: {'; '.join(wrong)}; use the same, or "
            "prepare the rows again into another folder"
        )


def _other_files(manifest: Manifest, files: str) -> list[str]:
    """What is known of files that changed since: their sizes. They need not be there any more."""
    if "hf://" in files:  # a revision of the hub is fetched once
        return []
    with contextlib.suppress(ConfigError):
        return [
            f"the files of {source.name} had {made['bytes']:,} bytes, have {size:,}"
            for (source, size), made in zip(source_sizes(files), manifest.sources, strict=False)
            if size != made["bytes"]
        ]
    return []


def open_table(
    folder: epath.Path, manifest: Manifest, split: str, config: Config, tokenizer: Tokenizer
) -> Table:
    """The rows of a split.

    Raises:
      ConfigError: files are damaged or missing, or no row is left.
    """
    spans = _spans_folder(folder, config)
    with together(folder):
        if jax.process_index() == 0 and not (spans / _COUNTS).exists():
            make_spans(folder, manifest, config, tokenizer)
    with reading_prepared(spans / _COUNTS):
        about = json.loads((spans / _COUNTS).read_text())[split]
    arrays = {name: _map(spans / f"{split}.{name}.npy") for name in _ARRAYS}
    sizes = {len(arrays[name]) for name in _ARRAYS if name != "first"}
    if sizes != {int(arrays["first"][-1])}:
        raise ConfigError(f"the files of {spans} must belong together, they do not; {_REMOVE}")
    counts: dict[str, Any] = {
        name: Extent(*value) if isinstance(value, list) else value
        for name, value in about["counts"].items()
    }
    of_others = sum(n for name, n in manifest.counts["not_encoded"].items() if name != split)
    counts["skipped"] = sum(manifest.counts["skipped"].values()) - of_others
    if not len(arrays["response"]):
        raise ConfigError(
            f"{folder} has no row of {split} that fits data.length={config.data.length} and "
            f"data.max_labels={config.data.max_labels}; raise them, set data.too_long=truncate, or "
            "prepare more rows"
        )
    weights = [source.weight for source in parse_sources(config.data.files)]
    weights = weights or [source["weight"] for source in manifest.sources]
    if split != "train":
        weights = [1.0] * len(weights)
    names = [source["name"] for source in manifest.sources]
    return Table(
        tokens=_tokens(folder, manifest, split),
        margins=Margins.of(config.data, tokenizer),
        history=arrays["history"],
        response=arrays["response"],
        terminated=arrays["terminated"],
        repeats=arrays["repeats"],
        first_pair=arrays["first"],
        counts=RowCounts(**counts),
        parts=tuple(map(Part, names, about["rows"], weights)),
    )


def held_out_rows(folder: epath.Path, manifest: Manifest, limit: int | None = None) -> SplitRows:
    """The conversations of the split "validation", as they read; `limit` at most."""
    texts = (row for at in range(len(manifest.shards)) for row in _texts(folder, at))
    rows = list(itertools.islice(texts, limit))
    return SplitRows(
        f"{manifest.made_from['source']} (validation)",
        [example for _, example in rows],
        [origin for origin, _ in rows],
    )


def make_spans(
    folder: epath.Path, manifest: Manifest, config: Config, tokenizer: Tokenizer
) -> None:
    """Cuts all rows to the canvas of a run, shard by shard, and keeps where they stand.

    Raises:
      ConfigError: a row does not fit, and `data.too_long` is error.
    """
    spans, about = _spans_folder(folder, config), {}
    for split in SPLITS:
        tally, rows = Tally(), [0] * len(manifest.sources)
        with tempfile.TemporaryDirectory() as place:
            files = {name: _Growing(f"{place}/{name}") for name in _ARRAYS}
            offset = pairs = 0
            for cut, tokens, source in _cuts(folder, manifest, split, config, tokenizer, tally):
                files["history"].add(cut.history + offset)
                files["response"].add(cut.response + offset)
                files["terminated"].add(cut.terminated)
                files["repeats"].add(cut.repeats)
                files["first"].add(cut.first + pairs)
                offset, pairs = offset + tokens, pairs + len(cut.response)
                rows[source] += len(cut.first)
            files["first"].add(np.array([pairs], np.int64))
            for name, file in files.items():
                file.close()
                write_file(spans / f"{split}.{name}.npy", epath.Path(file.path).read_bytes())
        about[split] = {"counts": dataclasses.asdict(tally.counts(0)), "rows": rows}
    write_file(spans / _COUNTS, (json.dumps(about, indent=1) + "\n").encode())


def _cuts(
    folder: epath.Path,
    manifest: Manifest,
    split: str,
    config: Config,
    tokenizer: Tokenizer,
    tally: Tally,
) -> Iterator[tuple[Cut, int, int]]:
    """Of each shard, or of all texts of a source, the cut, its tokens and the source's number."""
    data, margins = config.data, Margins.of(config.data, tokenizer)
    if data.pretraining:
        tokens, begin = _tokens(folder, manifest, split), 0
        for number in range(len(manifest.sources)):
            own = [shard for shard in manifest.shards if shard["source"] == number]
            size = sum(shard["tokens"][split] for shard in own)
            slack_max = config.objective.slack_max
            yield pack_texts(tokens, begin, size, data, slack_max, tally), size, number
            begin += size
        return
    for number, shard in enumerate(manifest.shards):
        path = shard_file(folder, split, number, "pairs")
        with reading_prepared(path):
            rows = read_pairs(folder, split, number)
        if len(rows.row) != shard["pairs"][split]:
            raise ConfigError(
                f"{path} must hold {shard['pairs'][split]:,} pairs, it has {len(rows.row):,}; copy "
                "the folder again, or prepare the rows into another one"
            )
        if not len(rows.row):
            yield Cut.none(), shard["tokens"][split], shard["source"]
            continue
        cut = cut_chat(rows.history, rows.response, rows.repeats, rows.row, data, margins, tally)
        if cut.misfit and data.too_long == "error":
            row = f"row {int(rows.row[cut.misfit[0]])} of shard {number}"
            raise ConfigError(too_long(row, cut, data))
        yield cut, shard["tokens"][split], shard["source"]


def _texts(folder: epath.Path, number: int) -> list[tuple[str, Example]]:
    with reading_prepared(texts_file(folder, number)):
        return read_texts(folder, number)


def _tokens(folder: epath.Path, manifest: Manifest, split: str) -> Tokens:
    files = [shard_file(folder, split, at, "tokens") for at in range(len(manifest.shards))]
    return open_shards(files, [shard["tokens"][split] for shard in manifest.shards])


def _spans_folder(folder: epath.Path, config: Config) -> epath.Path:
    """Where the spans for these settings are."""
    data = config.data
    names = ("length", "max_labels", "too_long", "prompt_slots")
    settings: dict[str, Any] = {name: getattr(data, name) for name in names}
    if data.pretraining:
        settings |= {"slack_max": config.objective.slack_max, "buckets": bool(data.buckets)}
    text = json.dumps(settings, sort_keys=True)
    return folder / "spans" / hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


class _Growing:
    """A file of NumPy's format whose rows come part by part."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = open(path, "wb")  # noqa: SIM115
        self._file.write(bytes(HEADER))
        self._rows, self._dtype, self._shape = 0, np.dtype(np.int64), ()

    def add(self, rows: np.ndarray) -> None:
        self._rows += len(rows)
        self._dtype, self._shape = rows.dtype, rows.shape[1:]
        self._file.write(np.ascontiguousarray(rows).data)

    def close(self) -> None:
        self._file.seek(0)
        self._file.write(npy_header(self._dtype, (self._rows, *self._shape)))
        self._file.close()


def _map(path: epath.Path) -> np.ndarray:
    """An array of spans, mapped; one in a bucket is copied to the local disk, unlinked there."""
    remedy = f"remove {path.parent}: it is made anew"
    if "://" not in os.fspath(path):
        return map_array(path, remedy)
    with reading_prepared(path), tempfile.NamedTemporaryFile(suffix=".npy") as local:
        local.write(path.read_bytes())
        local.flush()
        return map_array(epath.Path(local.name), remedy)
