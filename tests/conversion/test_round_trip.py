"""Published folder -> work directory -> published folder: every byte comes back."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from transformers import PreTrainedTokenizerFast

from jax_mdlm import convert, sample
from jax_mdlm.config import ConfigError
from jax_mdlm.conversion import Meter, boxes, export_weights, import_weights, inspect, open_source
from jax_mdlm.workdir import load_config
from tests.conversion import folders

GROUPED = {"heads": 4, "kv_heads": 2}


@pytest.fixture(params=["whole", "pieces"])
def limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once with the real limits (a box per tensor), once with such that cut small tensors."""
    if request.param == "pieces":
        monkeypatch.setattr(boxes, "_MOST_BYTES", 1500)
        monkeypatch.setattr(boxes, "_LEAST_CHUNK", 300)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def round_trip(source: Path, place: Path, dtype: str, *more: str) -> Path:
    convert.main(["import", str(source), str(place / "run")])
    convert.main(["export", str(place / "run"), str(place / "out"), "--dtype", dtype, *more])
    return place / "out"


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_byte_comes_back(tmp_path: Path, dtype: str, shards: int) -> None:
    tensors = folders.write_folder(tmp_path / "in", dtype=dtype, shards=shards, **GROUPED)
    before = folders.hashes(tmp_path / "in")
    out = round_trip(tmp_path / "in", tmp_path, dtype, "--shard-bytes", "9000")
    back = folders.read_weights(out)
    assert back.keys() == tensors.keys()
    assert all(same_bits(back[name], tensors[name]) for name in tensors)
    assert len(list(out.glob("*.safetensors"))) > 3
    index = json.loads((out / folders.INDEX).read_text())
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    for name in (*folders.BESIDE, "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (tmp_path / "in" / name).read_bytes(), name
    assert json.loads((out / "config.json").read_text()) == json.loads(
        (tmp_path / "in" / "config.json").read_text()
    )
    assert folders.hashes(tmp_path / "in") == before
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("dtype", ["float16", "mixed"])
def test_other_floats_are_widened_exactly(tmp_path: Path, dtype: str) -> None:
    tensors = folders.write_folder(tmp_path / "in", dtype=dtype)
    out = round_trip(tmp_path / "in", tmp_path, "float32")
    back = folders.read_weights(out)
    for name, tensor in tensors.items():
        assert same_bits(back[name], tensor.astype(np.float32)), name


def test_bfloat16_is_the_default_and_rounds_to_nearest_even(tmp_path: Path) -> None:
    tensors = folders.write_folder(tmp_path / "in")
    convert.main(["import", str(tmp_path / "in"), str(tmp_path / "run")])
    convert.main(["export", str(tmp_path / "run"), str(tmp_path / "out")])
    back = folders.read_weights(tmp_path / "out")
    for name, tensor in tensors.items():
        assert same_bits(back[name], tensor.astype(ml_dtypes.bfloat16)), name
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"


def test_every_pattern_of_bits_survives(tmp_path: Path) -> None:
    """All 65,536 bfloat16 values, NaN payloads and both zeros among them."""
    tensors = folders.write_folder(tmp_path / "in", dtype="bfloat16", vocab=2048)
    name = "model.transformer.wte.weight"
    tensors[name] = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16).reshape(2048, 32)
    tensors["model.transformer.ff_out.weight"] = np.ascontiguousarray(tensors[name][::-1])
    folders.write_weights(tmp_path / "in", tensors)
    back = folders.read_weights(round_trip(tmp_path / "in", tmp_path, "bfloat16"))
    assert all(same_bits(back[name], tensors[name]) for name in tensors)


def test_neither_tokenizer_nor_slack_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders.write_folder(tmp_path / "in")
    for path in (tmp_path / "in").glob("*token*.json"):
        path.unlink()
    round_trip(tmp_path / "in", tmp_path, "float32")
    assert "in holds no tokenizer.json; put one beside the weights" in capsys.readouterr().err
    config = load_config(epath.Path(tmp_path / "run"))
    assert config.data.tokenizer.slack_id == -1
    assert config.objective.slack_max == 0
    assert config.objective.collapse == "slack_only"  # or equal neighbours would be merged
    assert "slack_token_id" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_slack_and_its_map_come_back_and_slack_is_special(tmp_path: Path) -> None:
    slack = 64 - len(folders.SPECIAL) + 2  # the reserved token, which is not marked as special
    folders.write_folder(tmp_path / "in", slack_token_id=slack, slack_collapse="slack_only")
    out = round_trip(tmp_path / "in", tmp_path, "float32")
    config = load_config(epath.Path(tmp_path / "run"))
    assert config.data.tokenizer.slack_id == slack
    assert config.objective.collapse == "slack_only"
    settings = json.loads((out / "config.json").read_text())
    assert settings["slack_token_id"] == slack
    assert settings["slack_collapse"] == "slack_only"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    assert "w3" in tokenizer.decode([3, slack, 4], skip_special_tokens=True)
    assert "reserved" not in tokenizer.decode([3, slack, 4], skip_special_tokens=True)
    assert "reserved" in tokenizer.decode([3, slack, 4])
    original = PreTrainedTokenizerFast.from_pretrained(tmp_path / "in")
    assert original.get_vocab() == tokenizer.get_vocab()
    assert inspect(out)["ids"]["slack"] == slack


def test_an_import_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders.write_folder(tmp_path / "in", vocab=64)
    convert.main(["import", str(tmp_path / "in"), str(tmp_path / "run")])
    capsys.readouterr()
    flags = [
        "--config.sample.length=8",
        "--config.sample.block_length=8",
        "--config.sample.steps=4",
    ]
    sample.main(["--workdir", str(tmp_path / "run"), "--config.mesh.fsdp=8", *flags, "w1 w2"])
    assert capsys.readouterr().out.startswith("w1 w2 -> ")


def test_each_tensor_is_read_once(tmp_path: Path) -> None:
    tensors = folders.write_folder(tmp_path / "in", dtype="bfloat16", shards=2, **GROUPED)
    total = sum(tensor.nbytes for tensor in tensors.values())
    seen: list[int] = []
    meter = Meter(seen.append)
    import_weights(open_source(tmp_path / "in"), epath.Path(tmp_path / "run"), meter)
    assert meter.num_bytes == total == sum(seen)
    meter = Meter()
    done = export_weights(epath.Path(tmp_path / "run"), epath.Path(tmp_path / "out"), meter)
    assert meter.num_bytes == total == done.num_bytes


def test_inspect_says_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders.write_folder(tmp_path / "in", dtype="bfloat16", shards=2)
    convert.main(["import", str(tmp_path / "in"), str(tmp_path / "run")])
    capsys.readouterr()
    convert.main(["inspect", str(tmp_path / "in"), "--json"])
    there = json.loads(capsys.readouterr().out)
    assert there["format"] == "published weights"
    assert there["tensors"] == 21
    assert there["dtypes"] == {"bfloat16": 21}
    assert there["parameters"] * 2 == there["bytes"]
    assert there["ids"]["mask"] == 60
    convert.main(["inspect", str(tmp_path / "run"), "--json"])
    here = json.loads(capsys.readouterr().out)
    assert here["format"] == "work directory, imported"
    assert here["steps"] == [0]
    assert here["tensors"] == 12
    assert (here["parameters"], here["bytes"], here["model"]) == (
        there["parameters"],
        there["bytes"],
        there["model"],
    )
    with pytest.raises(ConfigError, match=r"nothing must be a folder of published weights or a"):
        convert.main(["inspect", "nothing"])


def test_a_step_that_is_not_there(tmp_path: Path) -> None:
    folders.write_folder(tmp_path / "in")
    convert.main(["import", str(tmp_path / "in"), str(tmp_path / "run")])
    with pytest.raises(ConfigError, match=r"step must be one of 0 in .*checkpoints, got 5"):
        convert.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--step", "5"])
    with pytest.raises(ConfigError, match=r"--shard-bytes must be at least 1, got 0"):
        convert.main(["export", str(tmp_path / "run"), "out", "--shard-bytes", "0"])
