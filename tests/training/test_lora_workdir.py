"""Work directories of LoRA runs: the base once, a restart bit by bit, what is refused."""

import dataclasses
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from jax_mdlm import conversion, train
from jax_mdlm.config import ConfigError, LoraConfig, config_to_json
from jax_mdlm.storage import CheckpointError
from jax_mdlm.workdir import load_config
from tests.training.conftest import tiny_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["full", "int8"])
def config_file(
    rows_file: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    config = dataclasses.replace(
        tiny_config(str(rows_file), steps=6, save_every=2, keep_checkpoints=9),
        lora=LoraConfig(rank=2, alpha=4.0, base=request.param),
    )
    file = tmp_path_factory.mktemp("config") / "tiny.py"
    file.write_text(
        "from jax_mdlm.config import from_json\n"
        f"def get_config(preset=''):\n    return from_json({config_to_json(config)!r}, 'tiny')\n"
    )
    return file


def start(config_file: Path, workdir: Path, *more: str) -> None:
    flags = ["--config", str(config_file), "--workdir", str(workdir), "--config.mesh.fsdp=8"]
    train.main([*flags, *more])


def stored(folder: Path) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(ocp.PyTreeCheckpointer().restore(folder))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module")
def whole_run(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    start(config_file, workdir)
    return workdir


def test_the_base_is_on_disk_once_and_checkpoints_hold_adapters(whole_run: Path) -> None:
    assert {path.name for path in (whole_run / "base").iterdir()} == {"0"}
    base = stored(whole_run / "base" / "0" / "tree")
    assert sum(x.size for x in base.values()) > 5000
    names = stored(whole_run / "checkpoints" / "6" / "tree")
    assert any(name.startswith("['adapters']['blocks']['q_proj']['down']") for name in names)
    assert not any(name.startswith("['params']") for name in names)
    assert sum(x.size for x in names.values()) < 4000


@pytest.mark.parametrize(
    "lost", [("6",), ("2", "4", "6")], ids=["resumed", "killed before its first checkpoint"]
)
def test_a_restart_is_bitwise_the_whole_run(
    config_file: Path,
    whole_run: Path,
    tmp_path: Path,
    lost: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(whole_run, workdir)
    for step in lost:
        shutil.rmtree(workdir / "checkpoints" / step)
    start(config_file, workdir)
    assert re.search(
        r"^[\d,]+ parameters, frozen; [\d,]+ of adapters are trained \(LoRA, rank 2\), 8 cpu",
        capsys.readouterr().err,
        re.M,
    )
    for folder in ("checkpoints/6/tree", "base/0/tree"):
        left, right = stored(whole_run / folder), stored(workdir / folder)
        assert left.keys() == right.keys()
        for name, values in left.items():
            np.testing.assert_array_equal(values, right[name], err_msg=name)


def test_other_adapters_are_another_run(config_file: Path, whole_run: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora\.rank=2 there, 3 here"):
        start(config_file, whole_run, "--config.lora.rank=3")
    none = ["--config.lora.rank=0", "--config.lora.base=full"]
    with pytest.raises(ConfigError, match=r"lora\.rank=2 there, 0 here"):
        start(config_file, whole_run, *none)
    kept = load_config(epath.Path(whole_run)).lora.base
    other = {"full": "int8", "int8": "full"}[kept]
    with pytest.raises(ConfigError, match=rf"lora\.base={kept} there, {other} here"):
        start(config_file, whole_run, f"--config.lora.base={other}")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("lora.targets=blocks/q", r"lora\.targets must be paths of blocks/q_proj, .* got blocks/q"),
        ("lora.rank=-1", r"lora\.rank must be 0 \(off\) or more, got -1"),
        ("lora.alpha=0", r"lora\.alpha must be above 0, got 0"),
        ("lora.base=int4", r"lora\.base.*int8.*int4"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_before_anything_is_made(
    config_file: Path, tmp_path: Path, flag: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        start(config_file, tmp_path / "run", f"--config.{flag}")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_quantised_base_without_adapters_is_refused(config_file: Path, tmp_path: Path) -> None:
    message = (
        r"lora\.base=int8 quantises what is frozen, and without adapters nothing is; set "
        r"lora\.rank above 0 or lora\.base=full"
    )
    with pytest.raises(ConfigError, match=message):
        start(config_file, tmp_path / "run", "--config.lora.rank=0", "--config.lora.base=int8")


def test_adapters_without_their_base_are_refused(whole_run: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "copy"
    shutil.copytree(whole_run, workdir)
    shutil.rmtree(workdir / "base")
    with pytest.raises(CheckpointError, match=r"must hold their frozen parameters in base/0, but"):
        conversion.load(workdir)


def test_without_lora_there_is_no_base(config_file: Path, tmp_path: Path) -> None:
    none = ["--config.lora.rank=0", "--config.lora.base=full", "--config.train.steps=1"]
    start(config_file, tmp_path / "run", *none)
    assert not (tmp_path / "run" / "base").exists()
    assert load_config(epath.Path(tmp_path / "run")).lora.rank == 0
    names = stored(tmp_path / "run" / "checkpoints" / "1" / "tree")
    assert "['params']['wte']" in names
    assert not any("adapters" in name for name in names)
