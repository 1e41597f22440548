"""Opens a source: `DataConfig` and a split enter, examples with their origins leave."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from etils import epath

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data.examples import Example, held_out, pair
from jax_mdlm.data.numbers import load_numbers

Split = Literal["train", "validation", "test"]


@dataclasses.dataclass(frozen=True)
class Rows:
    """The examples of a split, in memory.

    Attributes:
      name: For messages, e.g. "pronunciations/train".
      examples: Conversations.
      origins: Where each comes from, e.g. "train.jsonl:17".
      skipped: Malformed rows that were left out.
      note: What was done that nobody asked for; "" = nothing.
    """

    name: str
    examples: Sequence[Example]
    origins: Sequence[str]
    skipped: int = 0
    note: str = ""

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def origin(self, index: int) -> str:
        """Where row `index` comes from."""
        return self.origins[index]

    def texts(self) -> Iterator[str]:
        """All contents, for the training of a tokenizer."""
        return (message.content for example in self.examples for message in example)


def open_rows(
    config: DataConfig,
    data_dir: epath.Path,
    split: Split,
    *,
    process_index: int = 0,
    barrier: Callable[[str], None] = lambda name: None,
) -> Rows:
    """Reads the rows of a split; prepares them on disk first where that is needed.

    Every process reads the whole split (token rows are small; see `table`). Where the source has
    no validation split, `validation_percent` of the training rows are held out by hash.

    Args:
      config: Source and fields.
      data_dir: Folder of prepared datasets.
      split: What the rows are for; `config.split` and `config.validation_split` name the TFDS
        splits of the first two.
      process_index: Only process 0 prepares a dataset.
      barrier: Waits for all processes.

    Raises:
      ConfigError: the source, a file, a split or a row cannot be used.
    """
    data_dir = epath.Path(data_dir)
    if config.source == "chat_jsonl":
        return _open_jsonl(config, split)
    names = {"train": config.split, "validation": config.validation_split, "test": "test"}
    flags = {"train": "data.split", "validation": "data.validation_split", "test": "the split"}
    name, flag = names[split], flags[split]
    if config.source == "numbers":
        numbers = load_numbers(name, flag)
        origins = [f"numbers/{name}:{row.prompt}" for row in numbers]
        return Rows(f"numbers/{name}", [pair(row.prompt, row.response) for row in numbers], origins)
    from jax_mdlm.data import catalogue  # TFDS: half a second, only where it is read

    match config.source:
        case "pronunciations":
            from jax_mdlm.data.pronunciations import Pronunciations, load_entries

            builder = catalogue.prepare(Pronunciations, data_dir, process_index, barrier)
            catalogue.check_split(builder, name, flag)
            entries = load_entries(builder, name, keep_stress=config.keep_stress)
            examples = [pair(word, phonemes) for word, variants in entries for phonemes in variants]
            origins = [
                f"{config.source}/{name}:{word}" for word, variants in entries for _ in variants
            ]
            return Rows(f"{config.source}/{name}", examples, origins)
        case "dialogues":
            from jax_mdlm.data.dialogues import Dialogues, dialogue_examples

            builder = catalogue.prepare(Dialogues, data_dir, process_index, barrier)
            catalogue.check_split(builder, name, flag)
            return _number(f"{config.source}/{name}", dialogue_examples(builder, name))
    builder = catalogue.open_catalogue(config, data_dir)
    holds_out = split != "test" and config.validation_split not in builder.info.splits
    if split == "test" and "test" not in builder.info.splits:
        raise _no_test_split(config)
    name = config.split if holds_out else name
    catalogue.check_split(builder, name, flag)
    rows = _number(f"{config.source}/{name}", catalogue.catalogue_examples(config, builder, name))
    return _part(config, rows, split) if holds_out else rows


def pronunciation_references(
    config: DataConfig,
    data_dir: epath.Path,
    split: Split,
    *,
    process_index: int = 0,
    barrier: Callable[[str], None] = lambda name: None,
) -> list[tuple[str, tuple[str, ...]]]:
    """Every word of a split once, with all its pronunciations: the nearest one counts.

    Args:
      config: `keep_stress` decides about the stress digits.
      data_dir: Folder of prepared datasets.
      split: Usually "validation" or "test".
      process_index: Only process 0 prepares the dataset.
      barrier: Waits for all processes.

    Returns:
      [(word, ("AH L AY N", ...)), ...]
    """
    from jax_mdlm.data import catalogue
    from jax_mdlm.data.pronunciations import Pronunciations, load_entries

    builder = catalogue.prepare(Pronunciations, epath.Path(data_dir), process_index, barrier)
    return load_entries(builder, split, keep_stress=config.keep_stress)


def _open_jsonl(config: DataConfig, split: Split) -> Rows:
    from jax_mdlm.data.jsonl import read_jsonl

    if split == "test":
        raise _no_test_split(config)
    read = read_jsonl(config)
    return _part(config, Rows("chat_jsonl", read.examples, read.origins, read.skipped), split)


def _no_test_split(config: DataConfig) -> ConfigError:
    return ConfigError(
        f"data.source={config.source} has no test split; score what was held out with "
        "--split validation"
    )


def _part(config: DataConfig, rows: Rows, split: Split) -> Rows:
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


def _number(name: str, examples: Sequence[Example]) -> Rows:
    return Rows(name, examples, [f"{name}:{i}" for i in range(len(examples))])
