"""Who may write into a work directory, and what its readers are told."""

from pathlib import Path

import pytest
from etils import epath

from jax_mdlm import workdir
from jax_mdlm.config import Config, ConfigError


def test_an_import_claims_clears_and_releases(tmp_path: Path) -> None:
    folder = epath.Path(tmp_path / "run")
    workdir.begin_import(folder)
    (folder / "checkpoints" / "0").mkdir(parents=True)
    for read in (workdir.load_config, workdir.open_existing, workdir.check_finished):
        with pytest.raises(ConfigError, match=r"run holds an import that was not finished; run "):
            read(folder)
    workdir.begin_import(folder)  # a second try begins from nothing
    assert not (folder / "checkpoints").exists()
    workdir.end_import(folder, Config(name="x"))
    assert workdir.load_config(folder) == Config(name="x")
    with pytest.raises(ConfigError, match=r"run must be new or empty for an import, it holds con"):
        workdir.begin_import(folder)


def test_what_others_put_there_is_not_cleared(tmp_path: Path) -> None:
    folder = epath.Path(tmp_path)
    workdir.begin_import(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"must be new or empty for an import, it holds notes.t"):
        workdir.begin_import(folder)
    assert (folder / "notes.txt").read_text() == "mine"


def test_checkpoints_cannot_be_written_to_s3() -> None:
    with pytest.raises(ConfigError, match=r"s3://bucket/run must be local or gs://, where check"):
        workdir.begin_import(epath.Path("s3://bucket/run"))


def test_a_directory_without_a_config_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must hold config.json, it does not; train one with"):
        workdir.load_config(epath.Path(tmp_path))
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"config.json is not a config: "):
        workdir.load_config(epath.Path(tmp_path))
