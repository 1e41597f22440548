"""Datasets that the user has prepared, and how processes share the preparation."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data import catalogue
from jax_mdlm.data.examples import pair
from jax_mdlm.data.rows import open_rows


# Not registered: the files alone must be enough, as for a dataset prepared elsewhere.
class ToyQuestions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """100 rows and no validation split."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "question": tfds.features.Text(),
            "answer": tfds.features.Text(),
            "level": tfds.features.Scalar(np.int32),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {"train": self._generate_examples(100), "dev": self._generate_examples(10)}

    def _generate_examples(self, count: int) -> Any:
        for i in range(count):
            yield i, {"question": f"{i} ü?", "answer": f"{i + 1}", "level": i}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> epath.Path:
    folder = epath.Path(tmp_path_factory.mktemp("catalogue"))
    catalogue.prepare_builder(ToyQuestions, folder)
    return folder


def config(**changes: Any) -> DataConfig:
    values: dict[str, Any] = {
        "source": "toy_questions",
        "prompt_field": "question",
        "response_field": "answer",
    }
    return DataConfig(**(values | changes))


def test_rows_of_a_prepared_dataset(data_dir: epath.Path) -> None:
    rows = open_rows(config(validation_split="dev"), data_dir, "train")
    assert set(rows.examples) == {pair(f"{i} ü?", f"{i + 1}") for i in range(100)}
    assert rows.origin(3) == "toy_questions/train:3"
    assert len(open_rows(config(validation_split="dev"), data_dir, "validation")) == 10
    assert len(open_rows(config(validation_split="dev", split="train[:7]"), data_dir, "train")) == 7


def test_pretraining_reads_texts_where_no_field_holds_a_prompt(data_dir: epath.Path) -> None:
    texts = config(
        prompt_field="", response_field="question", pretraining=True, validation_split="dev"
    )
    rows = open_rows(texts, data_dir, "train")
    assert {message.content for row in rows.examples for message in row} == {
        f"{i} ü?" for i in range(100)
    }
    assert all(len(row) == 1 for row in rows.examples)
    with pytest.raises(ConfigError, match=r"data\.prompt_field must be a feature of toy_"):
        open_rows(config(prompt_field=""), data_dir, "train")


def test_validation_is_held_out_where_there_is_no_such_split(data_dir: epath.Path) -> None:
    settings = config(validation_percent=20.0)
    train, validation = (open_rows(settings, data_dir, s) for s in ("train", "validation"))
    assert len(train) + len(validation) == 100
    assert 8 < len(validation) < 35
    assert not set(train.examples) & set(validation.examples)


def test_errors(data_dir: epath.Path) -> None:
    def load(split: Any = "train", **changes: Any) -> None:
        open_rows(config(**changes), data_dir, split)

    message = (
        r"data\.source=nothing_known is not pronunciations, dialogues, chat_jsonl or a dataset in "
        r".*; set data\.data_dir or prepare it with tfds\.builder\('nothing_known', "
        r"data_dir=\.\.\., file_format='array_record'\)\.download_and_prepare\(\)"
    )
    with pytest.raises(ConfigError, match=message):
        load(source="nothing_known")
    message = (
        r"data\.prompt_field must be a feature of toy_questions, one of .*question.*, got text"
    )
    with pytest.raises(ConfigError, match=message):
        load(prompt_field="text")
    with pytest.raises(
        ConfigError, match=r"data\.response_field must be a feature of toy_question"
    ):
        load(response_field="response")
    message = r"toy_questions/train:0 level must be a text feature, got int"
    with pytest.raises(ConfigError, match=message):
        load(response_field="level")
    with pytest.raises(ConfigError, match=r"^x must be UTF-8, it is not \(invalid start byte\)$"):
        catalogue._decode_feature(b"\xff", "x")
    message = r"data\.split must be a split of toy_questions, one of .*, got training"
    with pytest.raises(ConfigError, match=message):
        open_rows(config(split="training", validation_split="dev"), data_dir, "train")
    message = r"source=toy_questions has no test split; score .* with --split validation$"
    with pytest.raises(ConfigError, match=message):
        load("test")


def test_another_file_format_is_refused(data_dir: epath.Path, tmp_path: Path) -> None:
    source = data_dir / "toy_questions" / "1.0.0"
    copy = epath.Path(tmp_path) / "toy_questions" / "1.0.0"
    copy.mkdir(parents=True)
    for path in source.iterdir():
        path.copy(copy / path.name)
    info = json.loads((copy / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (copy / "dataset_info.json").write_text(json.dumps(info))
    message = r"toy_questions must be stored as array_record, got tfrecord; prepare it with"
    with pytest.raises(ConfigError, match=message):
        open_rows(config(), epath.Path(tmp_path), "train")


def test_missing_rows_are_noticed(data_dir: epath.Path, tmp_path: Path) -> None:
    """Sources have returned fewer rows than were written; nothing may be lost in silence."""
    source = data_dir / "toy_questions" / "1.0.0"
    copy = epath.Path(tmp_path) / "toy_questions" / "1.0.0"
    copy.mkdir(parents=True)
    for path in source.iterdir():
        path.copy(copy / path.name)
    message = r"toy_questions must hold 100 rows in train, they cannot be read \(.+\); delete "
    dev, train = (
        next(path for path in copy.iterdir() if f"-{name}." in path.name)
        for name in ("dev", "train")
    )
    dev.copy(train, overwrite=True)
    with pytest.raises(ConfigError, match=message):
        open_rows(config(), epath.Path(tmp_path), "train")
    train.write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=message):
        open_rows(config(), epath.Path(tmp_path), "train")


def test_the_first_process_prepares_and_the_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = epath.Path(tmp_path)
    written: list[bool] = []

    def barrier(name: str) -> None:
        assert name == "data"
        written.append((folder / "toy_questions" / "1.0.0").exists())
        monkeypatch.undo()
        catalogue.prepare_builder(ToyQuestions, folder)  # what process 0 does

    monkeypatch.setattr(catalogue, "barrier", barrier)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    builder = catalogue.prepare_builder(ToyQuestions, folder)
    assert written == [False]  # nothing was written before the barrier
    assert len(catalogue.read_all(builder, "train")) == 100


def test_a_process_with_its_own_disk_writes_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    builder = catalogue.prepare_builder(ToyQuestions, epath.Path(tmp_path))
    assert len(catalogue.read_all(builder, "train")) == 100


def test_two_runs_prepare_one_folder_at_the_same_time(tmp_path: Path) -> None:
    """The slower one finds the files of the other where its own should go, and takes them."""
    folder = epath.Path(tmp_path)

    class Overtaken(ToyQuestions, skip_registration=True):
        """While its rows are made, somebody else writes the whole dataset."""

        name = "toy_questions"

        def _generate_examples(self, count: int) -> Any:
            if not (folder / "toy_questions" / "1.0.0").exists():
                catalogue.prepare_builder(ToyQuestions, folder)
            return super()._generate_examples(count)

    builder = catalogue.prepare_builder(Overtaken, folder)
    assert len(catalogue.read_all(builder, "train")) == 100
