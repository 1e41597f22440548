"""Damaged checkpoints: one line, set aside, the newest whole one is used."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from jax_mdlm.config import Config
from jax_mdlm.containers import TrainState
from jax_mdlm.data.corpus import load_corpus
from jax_mdlm.sharding import make_layout
from jax_mdlm.storage import CheckpointError, Checkpoints, open_checkpoints
from jax_mdlm.training import begin
from jax_mdlm.training.begin import resume
from jax_mdlm.training.optimizer import make_optimizer
from jax_mdlm.training.state import abstract_state, create_state
from tests.training.forks import Forks
from tests.training.runs import (
    SAVE_EVERY,
    STEPS,
    losses,
    same_run,
    start,
    start_group,
    steps_saved,
)


@pytest.fixture
def saved(tiny: Config, tmp_path: Path) -> tuple[Checkpoints, TrainState]:
    """Checkpoints of steps 1, 2 and 3, and what they restore into."""
    corpus = load_corpus(tiny, epath.Path(tmp_path))
    size = corpus.tokenizer.vocab_size
    config = Config(
        **vars(tiny) | {"model": type(tiny.model)(**vars(tiny.model) | {"vocab_size": size})}
    )
    layout = make_layout(config.mesh, jax.devices()[:1])
    optimizer = make_optimizer(config, corpus.tokenizer.ids)
    state = create_state(config, optimizer, layout)
    checkpoints = open_checkpoints(epath.Path(tmp_path / "checkpoints"), keep=10)
    for step in (1, 2, 3):
        begin.save_state(checkpoints, state.replace(step=jax.numpy.int32(step)), "{}")
    checkpoints.wait()
    return checkpoints, abstract_state(config, optimizer, layout)


def _cut_values(folder: Path) -> None:
    files = [file for file in folder.glob("tree/**/d/*") if file.is_file()]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _lose_values(folder: Path) -> None:
    for part in folder.glob("tree/ocdbt.process_*"):
        shutil.rmtree(part)


def _lose_largest_file(folder: Path) -> None:
    files = [file for file in folder.glob("tree/**/d/*") if file.is_file()]
    max(files, key=lambda file: file.stat().st_size).unlink()


def _empty_description(folder: Path) -> None:
    (folder / "tree" / "_METADATA").write_text("")


def _lose_description(folder: Path) -> None:
    (folder / "tree" / "_METADATA").unlink()


def _lose_tree(folder: Path) -> None:
    shutil.rmtree(folder / "tree")


def _lose_record(folder: Path) -> None:
    shutil.rmtree(folder / "record")


def _garble_record(folder: Path) -> None:
    (folder / "record" / "metadata").write_text("{")


def _lose_manifest(folder: Path) -> None:
    (folder / "tree" / "manifest.ocdbt").unlink()


DAMAGES = (
    _cut_values,
    _lose_values,
    _lose_largest_file,
    _empty_description,
    _lose_description,
    _lose_tree,
    _lose_record,
    _garble_record,
    _lose_manifest,
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_whole_one_is_used(
    saved: tuple[Checkpoints, TrainState],
    damage: Callable[[Path], None],
    capfd: pytest.CaptureFixture,
) -> None:
    checkpoints, abstract = saved
    damage(Path(checkpoints.folder / "3"))
    capfd.readouterr()
    state = resume(checkpoints, abstract)
    assert state is not None
    assert int(state.step) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"warning: checkpoint {checkpoints.folder}/3 must be whole, but is dam")
    assert line.endswith(f"; set aside as {checkpoints.folder}.damaged/3")
    assert checkpoints.steps() == [1, 2]
    # The run comes by that step again.
    begin.save_state(checkpoints, state.replace(step=state.step + 1), "{}")
    checkpoints.wait()
    again = resume(checkpoints, abstract)
    assert again is not None
    assert int(again.step) == 3
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params)


def test_several_and_the_same_step_twice(saved: tuple[Checkpoints, TrainState]) -> None:
    checkpoints, abstract = saved
    for step in (2, 3):
        _lose_values(Path(checkpoints.folder / str(step)))
    state = resume(checkpoints, abstract)
    assert state is not None
    assert int(state.step) == 1
    begin.save_state(checkpoints, state.replace(step=jax.numpy.int32(3)), "{}")
    checkpoints.wait()
    _lose_record(Path(checkpoints.folder / "3"))
    assert int(resume(checkpoints, abstract).step) == 1  # pyright: ignore
    aside = epath.Path(f"{checkpoints.folder}.damaged")
    assert sorted(path.name for path in aside.iterdir()) == ["2", "3", "3.1"]


def test_a_run_does_not_begin_anew_behind_its_users_back(
    saved: tuple[Checkpoints, TrainState],
) -> None:
    checkpoints, abstract = saved
    for step in (1, 2, 3):
        _lose_tree(Path(checkpoints.folder / str(step)))
    with pytest.raises(
        CheckpointError,
        match=r"a checkpoint in .* must be whole, all were damaged and set aside; bring one back, ",
    ):
        resume(checkpoints, abstract)


def test_no_checkpoint_is_no_error(tmp_path: Path, saved: tuple[Checkpoints, TrainState]) -> None:
    empty = open_checkpoints(epath.Path(tmp_path / "empty"), keep=1)
    assert resume(empty, saved[1]) is None


def test_another_model_is_an_error_and_nothing_moves(
    saved: tuple[Checkpoints, TrainState],
) -> None:
    checkpoints, abstract = saved
    wider = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*x.shape, 2), x.dtype, sharding=x.sharding), abstract.params
    )
    with pytest.raises(CheckpointError, match="of another model or optimizer"):
        resume(checkpoints, abstract.replace(params=wider))
    assert checkpoints.steps() == [1, 2, 3]


def test_a_full_device_is_not_damage(
    saved: tuple[Checkpoints, TrainState], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, abstract = saved

    def full(*_: object, **__: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr("orbax.checkpoint.PyTreeCheckpointHandler.restore", full)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        resume(checkpoints, abstract)
    assert checkpoints.steps() == [1, 2, 3]


def test_the_command_goes_on_bitwise(
    forks: Forks, config_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """The finished run loses its last checkpoint: its last steps are made again."""
    workdir = tmp_path / "copy"
    shutil.copytree(undisturbed, workdir)
    _cut_values(workdir / "checkpoints" / str(STEPS))
    text = start(forks, config_file, workdir).finish()
    warnings = [line for line in text.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1
    assert f"checkpoints/{STEPS} must be whole, but is damaged (" in warnings[0]
    assert "Traceback" not in text
    assert f", {SAVE_EVERY} steps made again)" in text
    assert (workdir / "checkpoints.damaged" / str(STEPS)).is_dir()
    assert steps_saved(workdir)[-1] == STEPS
    same_run(undisturbed, workdir)


@pytest.mark.slow
def test_two_processes_agree_where_one_finds_it_damaged(
    forks: Forks, config_file: Path, tmp_path: Path
) -> None:
    """Only the second process's slices are cut short."""
    words = (
        "--config.model.mlp=512",  # smaller values are stored beside their keys
        "--config.train.steps=6",
        "--config.train.save_every=3",
        "--config.train.evaluate_every=0",
    )
    for child in start_group(forks, config_file, tmp_path / "a", *words, processes=2, devices=2):
        child.finish()
    before = losses(tmp_path / "a")
    own = tmp_path / "a" / "checkpoints" / "6" / "tree" / "ocdbt.process_1"
    for file in own.glob("d/*"):
        file.write_bytes(b"")
    group = start_group(forks, config_file, tmp_path / "a", *words, processes=2, devices=2)
    first, second = (child.finish() for child in group)
    assert "warning: checkpoint" in first
    assert "warning: checkpoint" not in second
    assert steps_saved(tmp_path / "a") == [3, 6]
    after = losses(tmp_path / "a")
    assert after[6] == pytest.approx(before[6], rel=1e-6)
