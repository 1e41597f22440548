"""`benchmarks.convert` on a tiny model: real commands, all figures there; and its wrong sizes."""

import json
from pathlib import Path

import pytest

from benchmarks import convert
from benchmarks.published_folder import write_random_weights
from jax_mdlm.config import ModelConfig
from jax_mdlm.conversion import open_source
from tests.conversion import folders

TINY = "--layers 2 --embed 128 --mlp 64 --vocab 40 --repeats 1 --settle 0"


def test_its_weights_are_a_published_folder(tmp_path: Path) -> None:
    config = ModelConfig(
        vocab_size=40,
        embed=128,
        layers=2,
        heads=1,
        kv_heads=1,
        mlp=64,
        param_dtype="bfloat16",
    )
    size = write_random_weights(tmp_path / "in", config, shard_bytes=100_000)
    source = open_source(tmp_path / "in")
    assert (
        source.num_bytes
        == size
        == sum(t.nbytes for t in folders.read_weights(tmp_path / "in").values())
    )
    wte = folders.read_weights(tmp_path / "in")["model.transformer.wte.weight"].astype("float32")
    assert 0.015 < wte.std() < 0.025


def test_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert.main(["--folder", str(tmp_path), *TINY.split()])
    found = json.loads(capsys.readouterr().out)
    assert found["layers"] == 2
    for name in ("cp", "import", "export"):
        assert 0 < found[name]["to_cache"] <= found[name]["to_disk"]
    for name in ("import", "export"):
        assert 10 < found[name]["peak_anonymous_mb"] < 1500
        assert found[name]["speed_to_cp_to_disk"] > 0
        assert found[name]["whole_process"] > found[name]["to_cache"]
    assert not list(tmp_path.iterdir())  # it cleans up behind itself


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--layers 0", "--layers must be at least 1, got 0"),
        ("--embed 100", "--embed must be a multiple of 128, got 100"),
    ],
)
def test_sizes_that_cannot_be(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        convert.main(arguments.split())
    assert raised.value.code == 2
    assert message in capsys.readouterr().err
