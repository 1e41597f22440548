"""A tiny run that knows letters, as a `Responder` and as a work directory; no network."""

import socket
from pathlib import Path

import pytest
from etils import epath

from jax_mdlm.config import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    SampleConfig,
    TokenizerConfig,
)
from jax_mdlm.containers import Params
from jax_mdlm.data.tokenizer import load_tokenizer
from jax_mdlm.evaluation.harness.responder import Responder
from jax_mdlm.workdir import load_config
from tests.models import model_of, save_run, with_vocabulary
from tests.sampling.standin import random_params

TASKS = Path(__file__).parent / "tasks"
SAMPLE = SampleConfig(length=6, block_length=3, steps=6, batch_size=4)


def talkative_params(config: ModelConfig) -> Params:
    """Weights so large that answers differ from prompt to prompt."""
    params = random_params(config, seed=1)
    large = {
        name: value if "norm" in name else 6 * value for name, value in params["blocks"].items()
    }
    return {**params, "blocks": large}


@pytest.fixture(scope="session")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random parameters that know letters and the words A to H; the mesh takes all devices."""
    folder = epath.Path(tmp_path_factory.mktemp("letters"))
    config = Config(
        name="letters",
        model=ModelConfig(
            vocab_size=0,
            embed=16,
            layers=1,
            heads=2,
            kv_heads=2,
            head_dim=8,
            mlp=24,
            max_length=96,
            compute_dtype="float32",
            remat="none",
        ),
        objective=ObjectiveConfig(collapse="slack_only"),
        data=DataConfig(length=96, max_labels=12, tokenizer=TokenizerConfig("symbols")),
        mesh=MeshConfig(),
        sample=SAMPLE,
    )
    config = with_vocabulary(config, folder, ["A B C D E F G H"])
    save_run(folder, config, talkative_params(config.model), step=3)
    return Path(folder)


@pytest.fixture(scope="session")
def responder(workdir: Path) -> Responder:
    """What the work directory holds."""
    config = load_config(epath.Path(workdir))
    tokenizer = load_tokenizer(config.data.tokenizer, epath.Path(workdir) / "tokenizer")
    return Responder(model_of(config, tokenizer, talkative_params(config.model)), samples=4)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Notes who looks a host up or connects, and refuses; caches of datasets go to `tmp_path`.

    As with HF_HUB_OFFLINE=1; without it datasets also counts its uses, at Amazon, and of local
    files too.
    """
    datasets = pytest.importorskip("datasets", reason="lm-eval brings datasets")
    tried: list[str] = []

    def refuse(*args: object, **_: object) -> None:
        tried.append(str(args))
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tried


@pytest.fixture
def local_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves lm-eval's own 14,000 tasks out, which take ten seconds to read."""
    tasks = pytest.importorskip("lm_eval.tasks", reason="needs the extra `eval`")
    manager = tasks.TaskManager
    monkeypatch.setattr(
        tasks,
        "TaskManager",
        lambda include_path, include_defaults=True: manager(
            include_path=include_path, include_defaults=False
        ),
    )
