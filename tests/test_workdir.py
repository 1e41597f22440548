"""Who may write into a work directory, and what its readers are told."""

from pathlib import Path

import pytest
from etils import epath

from jax_mdlm import workdir
from jax_mdlm.config import Config, ConfigError

ROOT = Path(__file__).parent.parent


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
    folder = tmp_path / "none"  # folders of other tests beside it would be suggested
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"must hold config.json, it does not; train one with"):
        workdir.load_config(epath.Path(folder))
    (folder / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"config.json is not a config: "):
        workdir.load_config(epath.Path(folder))


def test_the_next_step_without_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a checkout the quickstart's own script; elsewhere the command that it runs."""
    script = (ROOT / "launch" / "quickstart.sh").read_text()
    quickstart = epath.Path(script.split("workdir=")[1].split()[0])
    command = "python -m jax_mdlm.train --config pronounce --workdir"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"; train one with {command} {quickstart}$"):
        workdir.load_config(quickstart)
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "quickstart.sh").write_text(script)
    for same in (quickstart, epath.Path(f"./{quickstart}/")):
        with pytest.raises(
            ConfigError, match=r"it does not; train one with sh launch/quickstart.s"
        ):
            workdir.load_config(same)
    with pytest.raises(ConfigError, match=rf"; train one with {command} runs/mine$"):
        workdir.load_config(epath.Path("runs/mine"))


def test_the_next_step_before_the_first_checkpoint(tmp_path: Path) -> None:
    folder = epath.Path(tmp_path / "run")
    workdir.save_config(folder, Config(name="x"))
    with pytest.raises(
        ConfigError,
        match=r"none is there; wait for its training's first one, or begin the training again with "
        rf"python -m jax_mdlm.train --config FILE --workdir {folder}$",
    ):
        workdir.open_existing(folder)


def test_a_folder_with_nearly_the_same_name_is_asked_for(tmp_path: Path) -> None:
    for name in ("quickstart", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(ConfigError) as raised:
        workdir.load_config(epath.Path(tmp_path / "quikstart"))
    meant = (
        f"; did you mean {tmp_path / 'quickstart'}? Else train one with python -m jax_mdlm.train "
    )
    assert meant in str(raised.value)
    with pytest.raises(ConfigError, match="it does not; train one with"):
        workdir.load_config(epath.Path(tmp_path / "llada"))
