"""Prepared rows that are not those of a run, that are damaged, or that belong to others."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from jax_mdlm import prepare
from jax_mdlm.config import Config, ConfigError, TokenizerConfig
from jax_mdlm.data.corpus import load_corpus
from tests.data.prepared_rows import (
    config_file,
    contents,
    run_config,
    save,
    with_data,
    write_rows,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """Settings, and the folder that was prepared with them."""
    folder = tmp_path_factory.mktemp("made")
    files = write_rows(folder / "rows.jsonl", 60, weighted=False)
    config = config_file(folder / "config.py", files)
    prepare.main(["--config", str(config), "--output", str(folder / "rows"), "--workers", "1"])
    return run_config(files), folder / "rows"


def refusal(config: Config, prepared: Path, run: Path, **data: Any) -> str:
    """The one line with which a run refuses the folder."""
    with pytest.raises(ConfigError) as caught:
        load_corpus(with_data(config, prepared=str(prepared), **data), epath.Path(run))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"template": "llada"}, "data.template was plain, is llada"),
        ({"validation_percent": 5.0}, "data.validation_percent was 10.0, is 5.0"),
        ({"on_bad_row": "skip"}, "data.on_bad_row was error, is skip"),
        (
            {"pretraining": True},
            "data.pretraining was False, is True; data.template was plain, is None",
        ),
    ],
)
def test_other_settings_are_refused(
    made: tuple[Config, Path], tmp_path: Path, data: dict[str, Any], text: str
) -> None:
    config, folder = made
    assert refusal(config, folder, tmp_path / "run", **data) == (
        f"{folder} was prepared with other settings: {text}; use the same, or prepare the rows "
        "again into another folder"
    )


def test_other_files_are_refused_and_none_are_not(
    made: tuple[Config, Path], tmp_path: Path
) -> None:
    config, folder = made
    other = write_rows(tmp_path / "other.jsonl", 30)
    text = refusal(config, folder, tmp_path / "run", files=other)
    assert f"data.files was {config.data.files}, is {other}" in text
    load_corpus(with_data(config, prepared=str(folder), files=""), epath.Path(tmp_path / "run"))


def test_files_that_changed_are_refused(made: tuple[Config, Path], tmp_path: Path) -> None:
    config, folder = made
    path = Path(config.data.files)
    before = path.read_bytes()
    try:
        path.write_bytes(before + before.splitlines(keepends=True)[0])
        text = refusal(config, folder, tmp_path / "run")
        size = path.stat().st_size
        assert f"the files of {path} had {len(before):,} bytes, have {size:,}; use" in text
        path.unlink()  # they need not be there
        load_corpus(with_data(config, prepared=str(folder)), epath.Path(tmp_path / "run"))
    finally:
        path.write_bytes(before)


def test_another_tokenizer_is_refused(made: tuple[Config, Path], tmp_path: Path) -> None:
    """That of a run that has begun, one that a path names, and one of an unfinished folder."""
    config, folder = made
    rows = [{"prompt": "éüa" * n, "response": "ü é"} for n in range(1, 9)]
    other = with_data(config, files=save(tmp_path / "other.jsonl", rows), validation_percent=50.0)
    load_corpus(other, epath.Path(tmp_path / "run"))  # keeps a tokenizer of other symbols
    text = refusal(config, folder, tmp_path / "run")
    assert "the tokenizer or its special ids are others; use the same" in text
    tokenizer = TokenizerConfig(kind="bpe", vocab_size=280)
    text = refusal(config, folder, tmp_path / "new", tokenizer=tokenizer)
    assert "holds a tokenizer of kind symbols, data.tokenizer.kind is bpe" in text
    unfinished = tmp_path / "unfinished"
    shutil.copytree(folder / "tokenizer", unfinished / "tokenizer")
    assert refusal(config, unfinished, tmp_path / "run") == (
        f"{unfinished}/tokenizer must be the tokenizer of the run, it is another; choose another "
        "folder"
    )


def test_a_path_of_a_tokenizer_is_not_passed_over(llada_folder: Path, tmp_path: Path) -> None:
    from tests.data.conftest import LLADA_TOKENS, save_llada

    other = save_llada(tmp_path / "other", ("<|more|>", *LLADA_TOKENS))
    settings = {"template": "llada", "length": 128}
    config = run_config(
        write_rows(tmp_path / "rows.jsonl", 30),
        tokenizer=TokenizerConfig(kind="huggingface", path=str(llada_folder)),
        **settings,
    )
    folder = tmp_path / "rows"
    load_corpus(with_data(config, prepared=str(folder)), epath.Path(tmp_path / "run"))
    named = TokenizerConfig(kind="huggingface", path=str(other))
    text = refusal(config, folder, tmp_path / "second", tokenizer=named)
    assert "the tokenizer or its special ids are others" in text
    moved = shutil.copytree(llada_folder, tmp_path / "moved")
    same = TokenizerConfig(kind="huggingface", path=str(moved))
    load_corpus(
        with_data(config, prepared=str(folder), tokenizer=same), epath.Path(tmp_path / "third")
    )


@pytest.mark.parametrize("name", ["train/mine.txt", "work/mine.txt", "notes.md", "spans/mine.txt"])
def test_a_folder_of_others_keeps_every_byte(
    made: tuple[Config, Path], tmp_path: Path, name: str
) -> None:
    config, _ = made
    mine = tmp_path / "mine" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    file = config_file(tmp_path / "config.py", config.data.files)
    with pytest.raises(ConfigError) as caught:
        prepare.main(["--config", str(file), "--output", str(tmp_path / "mine")])
    assert str(caught.value) == (
        f"{tmp_path / 'mine'} must be a new folder, or one of prepared rows, it holds "
        f"{Path(name).parts[0]}; choose another"
    )
    assert contents(tmp_path / "mine").keys() == {name}


def test_an_unfinished_folder_is_refused_without_its_files(
    made: tuple[Config, Path], tmp_path: Path
) -> None:
    config, folder = made
    shutil.copytree(folder, tmp_path / "rows")
    (tmp_path / "rows" / "manifest.json").unlink()
    text = refusal(config, tmp_path / "rows", tmp_path / "run", files="")
    assert text.startswith(f"data.prepared={tmp_path / 'rows'} must hold prepared rows, it has no")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def scribble(path: Path) -> None:
    path.write_bytes(b"\x00" * path.stat().st_size)


def shorten(path: Path) -> None:
    array = np.load(path)
    np.save(path, array[:-1])


def schema(path: Path) -> None:
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 99'))


@pytest.mark.parametrize(
    ("file", "damage", "text", "length"),
    [
        ("manifest.json", schema, "must have schema 1, got 99; prepare the rows again", 64),
        ("manifest.json", cut, "must be a whole file of prepared rows", 64),
        ("manifest.json", scribble, "must be a whole file of prepared rows", 64),
        ("train/00000.tokens.npy", cut, "must be a whole NumPy file, but cannot be read", 64),
        ("train/00000.tokens.npy", scribble, "must be a whole NumPy file", 64),
        ("train/00000.tokens.npy", shorten, r"must hold [\d,]+ tokens, it has", 64),
        ("train/00000.tokens.npy", Path.unlink, "No such file", 64),
        ("train/00000.pairs.npy", cut, "must be a whole file of prepared rows", 40),
        ("train/00000.pairs.npy", shorten, r"must hold \d+ pairs, it has \d+; copy", 40),
        ("train/00000.pairs.npy", Path.unlink, "No such file", 40),
        ("validation/00000.jsonl", cut, "must be a whole file of prepared rows", 64),
        ("validation/00000.jsonl", Path.unlink, "No such file", 64),
        ("spans/*/train.response.npy", cut, "remove .*/spans/[0-9a-f]+: it is made anew", 64),
        ("spans/*/train.response.npy", shorten, "must belong together, they do not; remove", 64),
        ("spans/*/train.first.npy", Path.unlink, "remove .*/spans/[0-9a-f]+: it is made anew", 64),
        ("spans/*/counts.json", cut, "must be a whole file of prepared rows", 64),
        ("spans/*/counts.json", scribble, "must be a whole file of prepared rows", 64),
    ],
)
def test_damage_is_one_line(
    made: tuple[Config, Path],
    tmp_path: Path,
    file: str,
    damage: Callable[[Path], None],
    text: str,
    length: int,
) -> None:
    config, folder = made
    shutil.copytree(folder, tmp_path / "rows")
    (path,) = (tmp_path / "rows").glob(file)
    damage(path)
    found = refusal(config, tmp_path / "rows", tmp_path / "run", length=length)
    assert re.search(text, found), found
    assert str(tmp_path / "rows") in found
