"""Work directories and targets that are in use or damaged: refused, and nothing is written."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from etils import epath

from jax_mdlm import conversion
from jax_mdlm.config import ConfigError
from jax_mdlm.convert import main
from jax_mdlm.storage import alone_in
from tests.conversion.folders import hashes
from tests.conversion.refusals import command, content, the_error_of

# --- directories in use ---


def test_an_import_takes_new_and_empty_directories_only(source: Path, tmp_path: Path) -> None:
    run, before = tmp_path / "run", hashes(source)
    run.mkdir()
    main(["import", str(source), str(run)])
    imported = hashes(run)
    for used in (run, source, tmp_path):  # an import, the source itself, something else
        with pytest.raises(ConfigError, match="must be new or empty for an import, it holds"):
            main(["import", str(source), str(used)])
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match=f"{place} must be a folder, but .*choose another"):
            main(["import", str(source), str(place)])
    assert hashes(run) == imported
    assert hashes(source) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_a_second_import_never_clears_what_is_not_its_own(source: Path, tmp_path: Path) -> None:
    """After a kill, someone puts the weights into the very directory that is cleared."""
    inside = tmp_path / "run" / "weights"
    shutil.copytree(source, inside)
    (tmp_path / "run" / "import_unfinished").touch()
    with pytest.raises(ConfigError, match="must be new or empty for an import, it holds weights"):
        main(["import", str(inside), str(tmp_path / "run")])
    assert hashes(inside) == hashes(source)


def test_an_export_takes_new_and_empty_targets_only(imported: Path, tmp_path: Path) -> None:
    before, used = hashes(imported), tmp_path / "used"
    used.mkdir()
    main(["export", str(imported), str(used)])
    written = hashes(used)
    (tmp_path / "file").write_text("mine")
    for target in (used, tmp_path, tmp_path / "file", imported):
        with pytest.raises(ConfigError, match=f"{target} must be a new or empty folder"):
            main(["export", str(imported), str(target)])
    with pytest.raises(ConfigError, match="must be a folder, but .*choose another"):
        main(["export", str(imported), str(tmp_path / "file" / "hf")])
    assert hashes(used) == written
    assert hashes(imported) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "used"]


@pytest.mark.parametrize("inside", ["hf", "checkpoints/7", "source/hf"])
def test_a_target_inside_the_work_directory_is_refused(
    imported: Path, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`checkpoints/7` would be taken for a newer checkpoint."""
    before = hashes(imported)
    monkeypatch.chdir(imported)
    for target in (imported / inside, inside):
        with pytest.raises(ConfigError, match="must lie outside of the work directory"):
            main(["export", str(imported), str(target)])
    assert hashes(imported) == before


def test_two_at_once_do_not_meet(source: Path, imported: Path, tmp_path: Path) -> None:
    run, target = tmp_path / "run", tmp_path / "hf"
    with alone_in(epath.Path(run)), pytest.raises(ConfigError, match="run is being written by an"):
        main(["import", str(source), str(run)])
    aside = tmp_path / "hf.export.partial"
    with alone_in(epath.Path(aside)), pytest.raises(ConfigError, match="is being written by an"):
        main(["export", str(imported), str(target)])
    aside.rmdir()
    main(["import", str(source), str(run)])  # no lock is left
    main(["export", str(run), str(target)])
    assert content(run) == content(imported)
    assert not aside.exists()


# --- damaged checkpoints ---


def damages(workdir: Path) -> list[tuple[str, Callable[[Path], object]]]:
    """Every file of one array and those that describe all, lost, cut, emptied, scribbled over."""
    tree = Path("checkpoints/0/tree")
    names = [tree / "_METADATA", tree / "params.wte", tree / "params.blocks.q_proj"]
    files = [name for name in names if (workdir / name).is_file()]
    for name in set(names) - set(files):
        files += [path.relative_to(workdir) for path in (workdir / name).iterdir()]
    cases: list[tuple[str, Callable[[Path], object]]] = []
    for name in sorted(files):
        size = (workdir / name).stat().st_size
        cases += [
            (f"{name} lost", lambda run, name=name: (run / name).unlink()),
            (f"{name} empty", lambda run, name=name: (run / name).write_bytes(b"")),
            (f"{name} cut", lambda run, name=name, size=size: os.truncate(run / name, size // 2)),
            (f"{name} garbage", lambda run, name=name: (run / name).write_bytes(b"\xff{x" * 9)),
        ]
    cases.append(("an array lost", lambda run: shutil.rmtree(run / tree / "params.wte")))
    cases.append(("the tree lost", lambda run: shutil.rmtree(run / tree)))
    return cases


def test_a_damaged_checkpoint_is_never_exported(
    imported: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cases = damages(imported)
    assert len(cases) == 4 * (1 + 2 + 3) + 2
    for case, damage in cases:
        run = tmp_path / "run"
        shutil.copytree(imported, run)
        damage(run)
        for use in (
            lambda: main(["export", str(run), str(tmp_path / "hf")]),
            lambda: conversion.load(run),
        ):
            with pytest.raises(ConfigError, match="must be whole, but is damaged") as caught:
                use()
            assert "\n" not in str(caught.value), case
            if "params." in case:  # which file it is
                assert str(run / case.split()[0]) in str(caught.value)
        assert [path.name for path in tmp_path.iterdir()] == ["run"], case
        shutil.rmtree(run)
    assert "Traceback" not in capfd.readouterr().err  # of threads that were left running


def test_a_damaged_checkpoint_is_one_line_for_users(imported: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(imported, run)
    chunk = run / "checkpoints" / "0" / "tree" / "params.wte" / "0.0"
    os.truncate(chunk, 100)
    text = the_error_of(command("export", run, tmp_path / "hf"))
    assert f"{chunk} must have 8,192 bytes, it has 100" in text
    assert not (tmp_path / "hf").exists()


def test_other_damages_of_a_work_directory_are_refused(imported: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(imported, run)
    for name in ("config.json", "source/config.json"):
        whole = (run / name).read_bytes()
        for part in (b"", whole[:200], b"\xff\xfe"):
            (run / name).write_bytes(part)
            with pytest.raises(ConfigError, match=f"{run / name} (is not a config|must be JSON)"):
                main(["export", str(run), str(tmp_path / "hf")])
        (run / name).write_bytes(whole)
    assert not (tmp_path / "hf").exists()
    main(["export", str(run), str(tmp_path / "hf")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import", "http://a/b", "run"], r"http://a/b must be a local path, gs:// or s3://$"),
        (["export", "run", "ftp://a/b"], r"ftp://a/b must be a local path, gs:// or s3://$"),
        (["export", "run", "hf://a/b"], r"hf://a/b must be a local path, gs:// or s3://$"),
        (
            ["inspect", "https://huggingface.co/GSAI-ML/LLaDA-8B-Base"],
            r"the hub's repositories are written hf://GSAI-ML/LLaDA-8B-Base, as a source",
        ),
        (["inspect", ""], r"a path must be given, got an empty one"),
    ],
)
def test_places_that_cannot_be_used(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main(words)


def test_published_weights_are_no_work_directory(source: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"must be a work directory, it holds published weights; "
    ):
        main(["export", str(source), str(tmp_path / "out")])


def test_what_the_system_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "in" / "config.json").mkdir(parents=True)
    with pytest.raises(
        ConfigError, match=r"config.json cannot be used \(Is a directory\); correct"
    ):
        main(["import", str(tmp_path / "in"), str(tmp_path / "run")])


def test_home_is_expanded(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    main(["import", str(source), "~/run"])
    main(["export", "~/run", "~/out"])
    assert (tmp_path / "out" / "config.json").exists()
