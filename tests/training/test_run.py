"""A model for which memory is short is refused by whoever reads it, before it is read."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from etils import epath

from jax_mdlm import conversion, workdir
from jax_mdlm.config import ConfigError, MeshConfig
from jax_mdlm.data.tokenizer import load_tokenizer
from jax_mdlm.model import memory, table
from jax_mdlm.model.memory import Free
from jax_mdlm.opening import open_model
from jax_mdlm.sample import main as sample
from jax_mdlm.sharding import make_layout
from jax_mdlm.viewing.dialogue import open_dialogue
from jax_mdlm.workdir import load_config
from tests.conversion.folders import write_folder
from tests.models import save_run
from tests.sampling.standin import random_params
from tests.viewing.conftest import talking_config

SCALARS = table.num_parameters(talking_config().model)
SAMPLERS: dict[str, Callable[[Path, list[str]], object]] = {
    "sample": lambda folder, flags: sample(["--workdir", str(folder), *flags, "hello"]),
    "dialogue": lambda folder, flags: open_dialogue(folder, flags),
    "evaluate": lambda folder, flags: open_model(folder, flags),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A work directory of a small model in float32."""
    config = dataclasses.replace(talking_config(), mesh=MeshConfig())
    work = epath.Path(tmp_path / "work")
    load_tokenizer(config.data.tokenizer, work / "tokenizer", lambda: ["a text"])
    save_run(work, config, random_params(config.model), step=7)
    return Path(work)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how much is free, and lets nobody read an array."""

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("parameters are read")

    def set_free(host: int) -> None:
        monkeypatch.setattr(Free, "now", classmethod(lambda cls: Free(host, None)))
        monkeypatch.setattr("jax_mdlm.mdlm.place_prepared", fail)
        monkeypatch.setattr("jax_mdlm.conversion.loading.place_params", fail)

    return set_free


@pytest.mark.parametrize("door", SAMPLERS)
@pytest.mark.parametrize("weights", ["full", "int8"])
def test_sampling_and_evaluation_say_what_they_need(
    folder: Path, short: Callable[[int], None], door: str, weights: str
) -> None:
    short(SCALARS)
    with pytest.raises(ConfigError) as caught:
        SAMPLERS[door](folder, [f"--config.sample.weights={weights}"])
    text = str(caught.value)
    assert text.startswith(f"{folder} with sample.weights={weights} takes ")
    assert text.endswith("; what fits: a machine with 0.0 GB of host memory free")


@pytest.mark.parametrize("door", SAMPLERS)
def test_what_is_not_there_needs_no_memory(
    folder: Path, short: Callable[[int], None], door: str
) -> None:
    shutil.rmtree(folder / "checkpoints")
    short(SCALARS)
    with pytest.raises(ConfigError, match="must hold a checkpoint"):
        SAMPLERS[door](folder, [])


def test_what_fits_is_offered(folder: Path, short: Callable[[int], None]) -> None:
    config, layout = load_config(epath.Path(folder)), make_layout(MeshConfig())
    needs = {
        weights: memory.to_sample(
            dataclasses.replace(config, sample=dataclasses.replace(config.sample, weights=weights)),
            layout,
            rows=1,
        ).host
        for weights in ("full", "int8")
    }
    assert needs["int8"] < needs["full"]
    short(needs["int8"])
    with pytest.raises(ConfigError, match=r"what fits: --config.sample.weights=int8, or --config"):
        sample(["--workdir", str(folder), "hello"])
    short(needs["full"])
    with pytest.raises(AssertionError, match="parameters are read"):
        sample(["--workdir", str(folder), "hello"])


def test_loading_in_one_line_asks_too(tmp_path: Path, short: Callable[[int], None]) -> None:
    """Published weights and work directories; what is read in bfloat16 takes half."""
    write_folder(tmp_path / "in")
    config = conversion.open_source(tmp_path / "in").config
    work = epath.Path(tmp_path / "run")
    network = dataclasses.replace(config, max_length=640)
    workdir.save_config(work, dataclasses.replace(talking_config(), model=network))
    short(3 * table.num_parameters(config))
    for path in (tmp_path / "in", tmp_path / "run"):
        with pytest.raises(ConfigError) as caught:
            conversion.load(path)
        assert str(caught.value) == (
            f"{path} in float32 takes 0.0 GB of host memory, 0.0 GB are free; what fits: "
            "dtype='bfloat16', or a machine with 0.0 GB of host memory free"
        )
    with pytest.raises(AssertionError, match="parameters are read"):
        conversion.load(tmp_path / "in", dtype="bfloat16")
