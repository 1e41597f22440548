"""Opens a source: `DataConfig` and a split enter, examples with their origins leave."""

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from etils import epath

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data.examples import BadRowError, BadRows, Example, Part, SplitRows, pair
from jax_mdlm.data.files import find_files
from jax_mdlm.data.forms import form_of, parse_row
from jax_mdlm.data.hold_out import content_hash, hash_limit, held_out, settle_limit
from jax_mdlm.data.numbers import load_numbers
from jax_mdlm.data.readers import Piece, Record, pieces, records
from jax_mdlm.data.sources import parse_sources, source_files

Split = Literal["train", "validation", "test"]
_Parsed = TypeVar("_Parsed")


def open_rows(config: DataConfig, data_dir: epath.Path, split: Split) -> SplitRows:
    """Reads the rows of a split; prepares them on disk first where that is needed.

    Every process reads the whole split (token rows are small; see `table`). Where the source has
    no validation split, `validation_percent` of the training rows are held out by hash.

    Args:
      config: Source and fields.
      data_dir: Folder of prepared datasets.
      split: What the rows are for; `config.split` and `config.validation_split` name the TFDS
        splits of the first two.

    Raises:
      ConfigError: the source, a file, a split or a row cannot be used.
    """
    data_dir = epath.Path(data_dir)
    if config.source == "chat_jsonl":
        if split == "test":
            raise _no_test_split(config)
        return _part(config, read_files(config), split)
    # --- sources of the package ---
    names = {"train": config.split, "validation": config.validation_split, "test": "test"}
    flags = {"train": "data.split", "validation": "data.validation_split", "test": "the split"}
    name, flag = names[split], flags[split]
    if config.source == "numbers":
        numbers = load_numbers(name, flag)
        origins = [f"numbers/{name}:{row.prompt}" for row in numbers]
        return SplitRows(
            f"numbers/{name}", [pair(row.prompt, row.response) for row in numbers], origins
        )
    from jax_mdlm.data import catalogue, demo  # TFDS: half a second, only where it is read

    full_name = f"{config.source}/{name}"
    match config.source:
        case "pronunciations":
            builder = catalogue.prepare_builder(demo.Pronunciations, data_dir)
            catalogue.check_split(builder, name, flag)
            words = [
                (word, phonemes)
                for word, variants in demo.load_entries(builder, name)
                for phonemes in variants
            ]
            origins = [f"{full_name}:{word}" for word, _ in words]
            return SplitRows(full_name, [pair(*entry) for entry in words], origins)
        case "dialogues":
            builder = catalogue.prepare_builder(demo.Dialogues, data_dir)
            catalogue.check_split(builder, name, flag)
            return _number(full_name, demo.dialogue_examples(builder, name))
    # --- a TFDS dataset ---
    builder = catalogue.open_catalogue(config, data_dir)
    holds_out = split != "test" and config.validation_split not in builder.info.splits
    if split == "test" and "test" not in builder.info.splits:
        raise _no_test_split(config)
    name = config.split if holds_out else name
    catalogue.check_split(builder, name, flag)
    rows = _number(f"{config.source}/{name}", catalogue.catalogue_examples(config, builder, name))
    return _part(config, rows, split) if holds_out else rows


def read_files(config: DataConfig) -> SplitRows:
    """Reads all files of `data.files`, in the order given, globs in alphabetical order.

    Raises:
      ConfigError: a file cannot be read, or a row is malformed (file and row are named).
    """
    examples, origins, bad, forms = [], [], BadRows(), []
    found = _of_sources(config.files)
    rows = Counter[int]()
    for (number, path), group in itertools.groupby(found, lambda one: (one[0], one[1].path)):
        known, container = Counter[str](), ""
        for _, piece, record in group:
            container = piece.container
            try:
                example = _parsed(record, parse_row, config.pretraining)
            except BadRowError as error:
                if config.on_bad_row == "error":
                    rest = (record for _, _, record in found)
                    raise _with_remedy(error, piece, bool(examples), rest, config) from error
                bad.add(error)
                continue
            examples.append(example)
            origins.append(record.origin)
            known[form_of(record.row)] += 1  # pyright: ignore
        held = ", ".join([container, *known]) if known else container
        forms.append(f"{path}: {held}, {known.total():,} row{'s' * (known.total() != 1)}")
        rows[number] += known.total()
    if bad.total and not examples:
        raise ConfigError(
            f"all {bad.total} rows of data.files={config.files} are malformed; the first: "
            f"{bad.first[0]}"
        )
    parts = tuple(
        Part(source.name, rows[number], source.weight)
        for number, source in enumerate(parse_sources(config.files))
    )
    return SplitRows("chat_jsonl", examples, origins, bad, tuple(forms), parts=parts)


def file_texts(config: DataConfig) -> Iterator[str]:
    """All contents of the training rows of `data.files`, for the training of a tokenizer.

    Rows are read as they come and none is kept; malformed ones are left out.
    """
    limit = _limit(config)
    for example in _good_examples(config):
        if content_hash(example) >= limit:
            yield from (message.content for message in example)


def read_rows(files: str, flag: str, pretraining: bool = False) -> SplitRows:
    """Reads the rows of a command's own flag, e.g. "--file"; none of them can be skipped.

    Raises:
      ConfigError: as `read_files`.
    """
    found = list(
        parse_files(
            find_files(files, flag),
            lambda row, origin: (parse_row(row, origin, pretraining), origin),
        )
    )
    return SplitRows(flag, [example for example, _ in found], [origin for _, origin in found])


def parse_files(
    paths: Iterable[epath.Path], parse: Callable[[dict[str, Any], str], _Parsed]
) -> Iterator[_Parsed]:
    """What `parse` makes of the fields and the origin of each row.

    Raises:
      ConfigError: a file cannot be read, a row is none, or `parse` refuses it.
    """
    for piece, record in _found(paths):
        try:
            parsed = _parsed(record, parse)
        except ConfigError as error:
            raise ConfigError(f"{error}; correct the {piece.unit}") from error
        yield parsed


def pronunciation_references(
    data_dir: epath.Path, split: Split
) -> list[tuple[str, tuple[str, ...]]]:
    """Every word of a split once, with all its pronunciations: the nearest one counts.

    Args:
      data_dir: Folder of prepared datasets.
      split: Usually "validation" or "test".

    Returns:
      [(word, ("AH L AY N", ...)), ...]
    """
    from jax_mdlm.data import catalogue, demo

    builder = catalogue.prepare_builder(demo.Pronunciations, epath.Path(data_dir))
    return demo.load_entries(builder, split)


def _limit(config: DataConfig) -> int:
    """Below which hash rows are held out; read is only until both splits have a row."""
    limit, least, most = hash_limit(config.validation_percent), 2**64, 0
    for example in _good_examples(config) if limit else ():
        least, most = min(least, hashed := content_hash(example)), max(most, hashed)
        if least < limit <= most:
            return limit
    return settle_limit(limit, least, most)


def _good_examples(config: DataConfig) -> Iterator[Example]:
    for _, _, record in _of_sources(config.files):
        with contextlib.suppress(BadRowError):
            yield _parsed(record, parse_row, config.pretraining)


def _of_sources(files: str) -> Iterator[tuple[int, Piece, Record]]:
    """The records of all sources, each with the number of its source and its piece."""
    for number, (source, paths) in enumerate(source_files(files)):
        for piece, record in itertools.islice(_found(paths), source.start, source.stop):
            yield number, piece, record


def _found(paths: Iterable[epath.Path]) -> Iterator[tuple[Piece, Record]]:
    """The records of all files, each with the piece that it is from."""
    return ((piece, one) for path in paths for piece in pieces(path) for one in records(piece))


def _parsed(record: Record, parse: Callable[..., _Parsed], *more: Any) -> _Parsed:
    """What `parse` makes of a record; raises the error that a record is in the place of a row."""
    if isinstance(record.row, BadRowError):
        raise record.row
    return parse(record.row, record.origin, *more)


def _with_remedy(
    error: BadRowError,
    piece: Piece,
    some: bool,
    rest: Iterator[Record],
    config: DataConfig,
) -> BadRowError:
    """The error with what may be done; to skip all rows is no remedy."""
    while not some:
        try:
            _parsed(next(rest), parse_row, config.pretraining)
            some = True
        except BadRowError:
            continue
        except (StopIteration, ConfigError):
            break
    more = " or set data.on_bad_row=skip" if some else ""
    return BadRowError(f"{error}; correct the {piece.unit}{more}", error.kind)


def _no_test_split(config: DataConfig) -> ConfigError:
    return ConfigError(
        f"data.source={config.source} has no test split; score what was held out with "
        "--split validation"
    )


def _part(config: DataConfig, rows: SplitRows, split: Split) -> SplitRows:
    """The training or the held-out rows of a source that has no validation split.

    Rows that are all equal have no side of their own: they are on both.
    """
    chosen = held_out(rows.examples, config.validation_percent)
    if config.validation_percent > 0 and not chosen.any():
        alike = f"the {len(rows):,} rows of {rows.name} are all equal"
        alike = alike if len(rows) > 1 else f"{rows.name} has one row"
        note = f"{alike}: none is held out, validation measures what was trained on"
        return dataclasses.replace(rows, name=f"{rows.name} ({split})", note=note)
    keep = chosen if split == "validation" else np.logical_not(chosen)
    parts, end = [], 0
    for part in rows.parts:
        begin, end = end, end + part.rows
        weight = 1.0 if split == "validation" else part.weight
        parts.append(Part(part.name, int(keep[begin:end].sum()), weight))
    return dataclasses.replace(
        rows,
        parts=tuple(parts),
        name=f"{rows.name} ({split})",
        examples=list(itertools.compress(rows.examples, keep)),
        origins=list(itertools.compress(rows.origins, keep)),
    )


def _number(name: str, examples: Sequence[Example]) -> SplitRows:
    return SplitRows(name, examples, [f"{name}:{i}" for i in range(len(examples))])
