"""Everything a run reads, opened once: tokenizer, training rows, validation rows."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable

import jax
from etils import epath

from jax_mdlm.config import Config, ConfigError, DataConfig
from jax_mdlm.data.batches import TrainBatches
from jax_mdlm.data.examples import SplitRows
from jax_mdlm.data.order import Order, make_order
from jax_mdlm.data.prepared import MANIFEST, held_out_rows, open_table, read_manifest, settings_of
from jax_mdlm.data.preparing import prepare_rows, recorded_path
from jax_mdlm.data.rows import Split, file_texts, open_rows, pronunciation_references
from jax_mdlm.data.sources import source_sizes
from jax_mdlm.data.table import Table, make_table
from jax_mdlm.data.tokenizer import (
    Tokenizer,
    is_kept,
    keep_tokenizer,
    load_tokenizer,
    read_tokenizer,
)
from jax_mdlm.processes import barrier
from jax_mdlm.sharding import Share

IN_MEMORY = 2**26  # bytes of files; larger ones are prepared on disk
_TEXTS = 4096  # held-out conversations that evaluations of a run may ask, at most
# Sources that this package prepares with TFDS.
_TITLES = {"pronunciations": "CMUdict", "dialogues": "the dialogues of chitchat-dataset"}


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What `train` works with.

    Attributes:
      tokenizer: The run's tokenizer, kept in its work directory.
      train: Token rows that are learned.
      validation: Token rows that are held out.
      held_out: The conversations of `validation`, as they read; None with pre-training, whose rows
        ask nothing.
      note: What was done with the rows that nobody asked for; "" = nothing.
      read: What each file held, and which rows were left out: lines for the log.
    """

    tokenizer: Tokenizer
    train: Table
    validation: Table
    held_out: SplitRows | None = None
    note: str = ""
    read: tuple[str, ...] = ()

    def batches(self, config: Config, start_step: int, share: Share) -> TrainBatches:
        """This process's share of the training batches, from a step on."""
        return TrainBatches(
            self.train,
            config.data,
            batch_size=config.train.batch_size,
            objective=config.objective,
            share=share,
            start_step=start_step,
        )

    def order(self, config: Config) -> Order:
        """Which training rows each step owns."""
        return make_order(self.train, config.data, config.objective, config.train.batch_size)


def load_corpus(
    config: Config, workdir: epath.Path, note: Callable[[str], None] = lambda _: None
) -> Corpus:
    """Opens the source, trains or loads the tokenizer, encodes both splits.

    Files of more than 64 MB are prepared on disk once (`preparing`), so that the next start, and
    one after a preemption, opens them in no time and holds none of their rows in memory. What a
    step trains on is the same.

    Raises:
      ConfigError: whatever in files, rows, tokenizer or their settings cannot be used.
    """
    if (folder := prepared_folder(config.data, workdir)) is not None:
        return _open_prepared(config, workdir, folder, note)
    train_rows = open_split(config.data, workdir, "train")
    validation_rows = open_split(config.data, workdir, "validation")
    tokenizer = open_tokenizer(config.data, workdir, train_rows.texts)
    train, validation = (
        make_table(rows, config.data, tokenizer, slack_max=config.objective.slack_max)
        for rows in (train_rows, validation_rows)
    )
    return Corpus(
        tokenizer=tokenizer,
        train=train,
        validation=validation,
        held_out=None if config.data.pretraining else validation_rows,
        note=train_rows.note,
        read=tuple(train_rows.lines()),
    )


def _open_prepared(
    config: Config, workdir: epath.Path, folder: epath.Path, note: Callable[[str], None]
) -> Corpus:
    kept = tokenizer_folder(folder)
    first = jax.process_index() == 0
    path = config.data.tokenizer.path
    new = first and is_kept(kept) and not is_kept(tokenizer_folder(workdir))
    if new and path in ("", recorded_path(folder)):  # else it is opened, and compared
        keep_tokenizer(kept, tokenizer_folder(workdir))
    barrier("prepared tokenizer")
    tokenizer = open_tokenizer(config.data, workdir, lambda: file_texts(config.data))
    if first and not is_kept(kept):
        keep_tokenizer(tokenizer_folder(workdir), kept)
    if read_manifest(folder) is None and config.data.prepared and not config.data.files:
        raise ConfigError(
            f"data.prepared={folder} must hold prepared rows, it has no {MANIFEST}; run python -m "
            "jax_mdlm.prepare with this --output, or name data.files"
        )
    manifest = prepare_rows(config, tokenizer, folder, own=tokenizer_folder(workdir), note=note)
    train, validation = (
        open_table(folder, manifest, split, config, tokenizer) for split in ("train", "validation")
    )
    held_out = None if config.data.pretraining else held_out_rows(folder, manifest, _TEXTS)
    return Corpus(tokenizer, train, validation, held_out, read=tuple(manifest.lines()))


def reading(config: DataConfig, workdir: epath.Path) -> str:
    """What `load_corpus` is about to do, for the console: it may take half a minute."""
    if config.prepared:
        return f"opening {config.prepared}"
    if config.source == "chat_jsonl":
        return f"reading {config.files or 'rows'}"
    title = _TITLES.get(config.source, config.source)
    if config.source in _TITLES and not (data_folder(config, workdir) / config.source).exists():
        return f"reading {title}, once: it is kept in {data_folder(config, workdir)}"
    return f"reading {title}"


def data_folder(config: DataConfig, workdir: epath.Path) -> epath.Path:
    """Where prepared datasets live."""
    return epath.Path(config.data_dir) if config.data_dir else workdir / "data"


def tokenizer_folder(workdir: epath.Path) -> epath.Path:
    """Where a run keeps its tokenizer."""
    return workdir / "tokenizer"


def prepared_folder(config: DataConfig, workdir: epath.Path) -> epath.Path | None:
    """Where the rows of a run are prepared, or will be; None where they are read into memory."""
    if config.prepared:
        return epath.Path(config.prepared)
    if config.source != "chat_jsonl":
        return None
    text = json.dumps([settings_of(config), dataclasses.asdict(config.tokenizer)])
    name = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    folder = data_folder(config, workdir) / f"prepared-{name}"
    if read_manifest(folder) is not None:
        return folder
    size = sum(size for _, size in source_sizes(config.files))
    return folder if size > IN_MEMORY else None


def open_split(config: DataConfig, workdir: epath.Path, split: Split) -> SplitRows:
    """The rows of a split, prepared by the first process where that is needed."""
    folder = prepared_folder(config, workdir) if split == "validation" else None
    if folder is not None and (manifest := read_manifest(folder)) is not None:
        return held_out_rows(folder, manifest)
    return open_rows(config, data_folder(config, workdir), split)


def open_references(
    config: DataConfig, workdir: epath.Path, split: Split
) -> list[tuple[str, tuple[str, ...]]]:
    """Each word of a split of `pronunciations` with all that count as right."""
    return pronunciation_references(data_folder(config, workdir), split)


def open_tokenizer(
    config: DataConfig,
    workdir: epath.Path,
    texts: Callable[[], Iterable[str]] | None = None,
) -> Tokenizer:
    """The tokenizer of a work directory; trained from `texts` where it is new and they are given.

    Without texts nothing is written: where the directory keeps none, that of `tokenizer.path` is
    read.

    Raises:
      ConfigError: there is none, or it cannot be used.
    """
    if texts is None and not is_kept(tokenizer_folder(workdir)):
        if config.tokenizer.path:
            return read_tokenizer(config.tokenizer, special_in_text=config.special_in_text)
        if config.tokenizer.kind != "huggingface":
            raise ConfigError(
                f"work directory {workdir} has no tokenizer, and its {config.tokenizer.kind} is "
                "trained with the model; bring its folder tokenizer/ back, or train again"
            )
        raise ConfigError(
            f"work directory {workdir} has no tokenizer; name its model's with "
            "--config.data.tokenizer.path=FOLDER (or a hub id), or import the model again with "
            "tokenizer.json beside its weights"
        )
    folder = tokenizer_folder(workdir)
    return load_tokenizer(config.tokenizer, folder, texts, config.special_in_text)


def unfixed(kept: bool, read: Callable[[], Tokenizer]) -> tuple[str, ...]:
    """The beginnings of those settings that a model leaves to whoever opens it.

    All of the tokenizer where it has none; the special ids where its own does not have them.

    Args:
      kept: Whether a tokenizer is kept with it.
      read: Opens that one.
    """
    if not kept:
        return ("data.tokenizer.",)
    try:
        read()
    except ConfigError:
        roles = ("mask", "slack", "pad", "eos", "terminator")
        return tuple(f"data.tokenizer.{role}_id" for role in roles)
    return ()
