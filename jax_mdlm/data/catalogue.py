"""Datasets prepared with TFDS, without TensorFlow: array_record files read by index.

Only `as_data_source` is used: `tfds.load`, `as_dataset`, `as_numpy` and the tfrecord format need
TensorFlow. Not parquet: TFDS 4.9.10 silently drops rows there.
"""

import contextlib
import importlib.util
import io
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import tensorflow_datasets as tfds
from etils import epath

from jax_mdlm.config import ConfigError, DataConfig, first_line
from jax_mdlm.data.examples import Example, Message, pair
from jax_mdlm.extras import how_to_install
from jax_mdlm.processes import barrier

FILE_FORMAT = "array_record"


def prepare_builder(
    make: Callable[..., tfds.core.DatasetBuilder], data_dir: epath.Path
) -> tfds.core.DatasetBuilder:
    """Returns a builder of this package, made by its class, with its files on disk.

    Process 0 writes while the others wait; a process that does not see these files (a disk of its
    own) writes its copy afterwards. `data_dir` must be local.
    """
    check_local(data_dir)
    if jax.process_index() == 0:
        _write(make, data_dir)
    barrier("data")
    return _write(make, data_dir)


def _write(
    make: Callable[..., tfds.core.DatasetBuilder], data_dir: epath.Path
) -> tfds.core.DatasetBuilder:
    with _quiet():
        builder = make(data_dir=str(data_dir), file_format=FILE_FORMAT)
        if not builder.is_prepared():
            try:
                builder.download_and_prepare()
            except FileExistsError:  # another run on this folder was quicker
                builder = make(data_dir=str(data_dir), file_format=FILE_FORMAT)
                if not builder.is_prepared():
                    raise
    return builder


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS prints banners, warnings and several progress bars for a few seconds of work."""
    logger = logging.getLogger("absl")
    level = logger.level
    tfds.disable_progress_bar()
    try:
        logger.setLevel(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        tfds.enable_progress_bar()


def check_local(data_dir: epath.Path) -> None:
    """array_record reads files by offset, which gs:// paths do not offer.

    Raises:
      ConfigError: `data_dir` is a remote folder.
    """
    if "://" in str(data_dir):
        raise ConfigError(
            f"data.data_dir must be a local folder for prepared datasets, got {data_dir}; set "
            "--config.data.data_dir=/some/local/folder"
        )


def open_catalogue(config: DataConfig, data_dir: epath.Path) -> tfds.core.DatasetBuilder:
    """A dataset that the user has prepared in `data_dir`.

    Raises:
      ConfigError: there is none of that name, or its files are of another format.
    """
    check_local(data_dir)
    remedy = (
        f"prepare it with tfds.builder({config.source!r}, data_dir=..., "
        f"file_format='{FILE_FORMAT}').download_and_prepare()"
    )
    try:
        if ":" in config.source:  # tfds would ask the network for minutes
            raise ValueError("namespaces are not looked up")
        with _quiet():
            builder = tfds.builder(config.source, data_dir=str(data_dir))
            prepared = builder.is_prepared()
    except Exception as error:  # not found, bad name, missing packages of the dataset's code
        raise ConfigError(
            f"data.source={config.source} is not pronunciations, dialogues, chat_jsonl or a "
            f"dataset in {data_dir} ({first_line(error)}); set data.data_dir or {remedy}"
        ) from error
    if not prepared:
        raise ConfigError(f"data.source={config.source} is not prepared in {data_dir}; {remedy}")
    found = builder.info.file_format
    if found is None or found.value != FILE_FORMAT:
        shown = "unknown" if found is None else found.value
        raise ConfigError(
            f"data.source={config.source} must be stored as {FILE_FORMAT}, got {shown}; {remedy}"
        )
    return builder


def check_split(builder: tfds.core.DatasetBuilder, split: str, flag: str) -> None:
    """Raises ConfigError if the dataset lacks `split`; slices ("train[:100]") are allowed."""
    known = list(builder.info.splits)
    if split.split("[")[0] not in known:
        raise ConfigError(
            f"{flag} must be a split of {builder.name}, one of {', '.join(known)}, got {split}"
        )


def read_all(builder: tfds.core.DatasetBuilder, split: str, **options: Any) -> Sequence[Any]:
    """All rows of `split`, in the order of the files.

    Args:
      builder: A prepared dataset.
      split: Name, or a slice such as "train[:100]".
      **options: Of `as_data_source`.

    Raises:
      ConfigError: rows are missing, or a file is damaged.
    """
    expected = builder.info.splits[split].num_examples
    try:
        source: Any = builder.as_data_source(split, **options)  # pyright: ignore[reportCallIssue]
        rows = source.__getitems__(range(expected))
        assert len(source) == len(rows) == expected
    except Exception as error:  # the packages raise nothing narrower
        raise ConfigError(
            f"{builder.name} must hold {expected} rows in {split}, they cannot be read "
            f"({first_line(error)}); delete {builder.data_dir} to write it again"
        ) from error
    return rows


def catalogue_examples(
    config: DataConfig, builder: tfds.core.DatasetBuilder, split: str
) -> list[Example]:
    """Rows of a prepared dataset as one question and one answer each.

    Pre-training with an empty `data.prompt_field` reads texts from `data.response_field`.

    Raises:
      ConfigError: the fields of the config are not features of the dataset, or hold no text.
    """
    known: Any = builder.info.features
    features = list(known or ())
    flags = ["prompt_field", "response_field"]
    if config.pretraining and not config.prompt_field:
        flags = ["response_field"]
    for flag in flags:
        field = getattr(config, flag)
        if field not in features:
            raise ConfigError(
                f"data.{flag} must be a feature of {builder.name}, one of {', '.join(features)}, "
                f"got {field}"
            )

    def text(row: Mapping[str, Any], number: int, flag: str) -> str:
        field = getattr(config, flag)
        return _decode_feature(row[field], f"{builder.name}/{split}:{number} {field}")

    rows = enumerate(read_all(builder, split))
    if len(flags) == 1:
        return [(Message("text", text(row, i, "response_field")),) for i, row in rows]
    return [pair(*(text(row, i, flag) for flag in flags)) for i, row in rows]


def _decode_feature(value: Any, subject: str) -> str:
    """Text features come back as bytes.

    Raises:
      ConfigError: `value` is no text.
    """
    if not isinstance(value, bytes):
        raise ConfigError(f"{subject} must be a text feature, got {type(value).__name__}")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{subject} must be UTF-8, it is not ({error.reason})") from error


def read_package_file(package: str, file: str, source: str, distribution: str) -> str:
    """The text of a data file of an installed package, whose code is not executed.

    Raises:
      ConfigError: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"data.source={source} needs the package {distribution}; {how_to_install('demo')}"
        )
    # Not importlib.resources.files: it imports the package.
    return pathlib.Path(spec.submodule_search_locations[0], file).read_text(encoding="utf-8")
