"""Opens a source: `DataConfig` and a split enter, examples with their origins leave."""

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from etils import epath

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data.examples import Example, SplitRows, pair
from jax_mdlm.data.jsonl import read_jsonl
from jax_mdlm.data.numbers import load_numbers

Split = Literal["train", "validation", "test"]


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
        return _part(config, read_jsonl(config), split)
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


def held_out(examples: Sequence[Example], percent: float) -> np.ndarray:
    """Which rows belong to the validation split, by a hash of their content.

    A row keeps its side when rows are added, moved or read from other files, and equal rows are on
    one side. Where the hash holds out none, the rows with the smallest hash are taken, so that a
    small file can be evaluated too; where it holds out all, those with the largest are left to
    train on. Rows that are all equal have one hash: none of them is held out.

    Args:
      examples: The rows of the source.
      percent: Expected share, in percent; 0 = none.

    Returns:
      bool [rows].
    """
    hashes = np.array([_content_hash(example) for example in examples], dtype=np.uint64)
    if percent <= 0 or len(np.unique(hashes)) < 2:
        return np.zeros(len(examples), bool)
    chosen = hashes < np.uint64(min(percent / 100, 1 - 2**-52) * 2.0**64)
    if not chosen.any():
        return hashes == hashes.min()
    if chosen.all():
        return hashes != hashes.max()
    return chosen


def _content_hash(example: Example) -> int:
    text = "\x1e".join(f"{message.role}\x1f{message.content}" for message in example)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


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
    return dataclasses.replace(
        rows,
        name=f"{rows.name} ({split})",
        examples=list(itertools.compress(rows.examples, keep)),
        origins=list(itertools.compress(rows.origins, keep)),
    )


def _number(name: str, examples: Sequence[Example]) -> SplitRows:
    return SplitRows(name, examples, [f"{name}:{i}" for i in range(len(examples))])
