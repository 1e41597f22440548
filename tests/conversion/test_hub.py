"""The hub: its own client against a stub server, no network."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from jax_mdlm import conversion
from jax_mdlm.config import ConfigError
from jax_mdlm.convert import main as convert
from tests.conversion.stubs import FOLDER, KEPT, Hub, Server, assert_golden, serving

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    others = {
        "README.md": b"not needed",
        "pytorch_model.bin": b"a pickle",
        "original/model.safetensors": b"the same again",
        "original/params.json": b"{}",
    }
    with serving(Hub("org/llada", {"main", "v2"}, FOLDER | others)) as server:
        point_at_hub(server.url, tmp_path, monkeypatch)
        yield server


def point_at_hub(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings are read from the environment when it is imported, too early for a test."""
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def downloaded(server: Server) -> list[str]:
    return sorted(
        seen.path.partition("/resolve/")[2].partition("/")[2]
        for seen in server.log
        if seen.method == "GET" and "/resolve/" in seen.path
    )


def test_a_hub_repository_is_imported(hub: Hub, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    convert(["import", "hf://org/llada", str(workdir)])
    assert downloaded(hub) == sorted(FOLDER)  # no pickle, no README, no second copy of the weights
    assert_golden(str(workdir))
    kept = {path.name: path.read_bytes() for path in (workdir / "source").iterdir()}
    assert kept == KEPT


def test_a_revision_is_loaded_and_not_fetched_twice(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_golden("hf://org/llada@v2")
    assert {seen.path for seen in hub.log if "/revision/" in seen.path} == {
        "/api/models/org/llada/revision/v2"
    }
    assert len(downloaded(hub)) == len(FOLDER)
    convert(["inspect", "hf://org/llada@v2", "--json"])
    assert json.loads(capsys.readouterr().out)["parameters"] == 90432
    assert len(downloaded(hub)) == len(FOLDER)


def test_another_model_is_refused_before_its_weights_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = ROOT / "tests" / "data" / "families" / "llada_moe" / "config.json"
    files = FOLDER | {"config.json": described.read_bytes()}
    with serving(Hub("org/moe", {"main"}, files)) as server:
        point_at_hub(server.url, tmp_path, monkeypatch)
        with pytest.raises(ConfigError, match=r"^hf://org/moe holds LLaDA-MoE \(architectures: "):
            convert(["import", "hf://org/moe", str(tmp_path / "run")])
        assert downloaded(server) == ["config.json"]


def test_a_repository_of_adapters_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": b""}
    with serving(Hub("org/lora", {"main"}, files)) as server:
        point_at_hub(server.url, tmp_path, monkeypatch)
        with pytest.raises(ConfigError, match=r"^hf://org/lora holds a PEFT adapter \(LORA, for a"):
            conversion.load("hf://org/lora")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("org/nobody", "no such repository, or a private one"),
        ("org/llada@v3", "no such revision"),
        ("org/llada/extra", "Repo id must be"),
    ],
)
def test_what_the_hub_does_not_have(hub: Hub, tmp_path: Path, name: str, reason: str) -> None:
    line = rf"^the hub does not give {name} \({reason}.*\); correct the name, log in with [^\n]*$"
    with pytest.raises(ConfigError, match=line):
        convert(["import", f"hf://{name}", str(tmp_path / "run")])
    with pytest.raises(ConfigError, match=line):
        conversion.load(f"hf://{name}")
    assert not (tmp_path / "run").exists()
    assert len(hub.log) <= 2  # what is not there is not asked for again and again


def test_without_the_hub_the_cache_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Hub("org/llada", {"main"}, FOLDER)) as server:
        point_at_hub(server.url, tmp_path, monkeypatch)
        assert_golden("hf://org/llada")
    assert_golden("hf://org/llada")
    with pytest.raises(ConfigError, match=r"give org/other \(it cannot be reached, and the cache"):
        conversion.load("hf://org/other")


def test_a_hub_out_of_reach_is_one_line_of_the_command(tmp_path: Path) -> None:
    closed = "http://127.0.0.1:1"  # nobody listens there
    environment = os.environ | {"HF_ENDPOINT": closed, "HF_HOME": str(tmp_path / "home")}
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "jax_mdlm.convert", "import", "hf://org/llada", str(workdir)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: the hub does not give org/llada (it cannot be reached, and the cache holds no "
        "copy); correct the name, log in with `hf auth login`, or name a local folder"
    ]
    assert not workdir.exists()
