"""A tiny run that talks: random parameters, a byte-level tokenizer, LLaDA's template."""

import dataclasses
import json
from pathlib import Path

import pytest
from etils import epath

from jax_mdlm.config import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    SampleConfig,
    TokenizerConfig,
)
from jax_mdlm.data.tokenizer import load_tokenizer
from jax_mdlm.mdlm import Mdlm
from tests.models import model_of, save_run, with_vocabulary
from tests.sampling.standin import random_params

TEXTS = ["what is masked is filled in, a few slots at a time", "<SLACK> gives the rest its room"]


def talking_config(**sample: object) -> Config:
    return Config(
        name="tiny",
        model=ModelConfig(
            vocab_size=300,
            embed=16,
            layers=2,
            heads=2,
            kv_heads=2,
            head_dim=8,
            mlp=24,
            max_length=640,
            compute_dtype="float32",
            remat="none",
        ),
        data=DataConfig(
            length=640, max_labels=64, tokenizer=TokenizerConfig("bpe", vocab_size=300)
        ),
        mesh=MeshConfig(fsdp=1),
        sample=SampleConfig(**{"length": 8, "block_length": 4, "steps": 8, **sample}),
    )


@pytest.fixture(scope="session")
def talking(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mdlm, Path]:
    """The run in memory, and the work directory that holds it."""
    config = talking_config()
    folder = epath.Path(tmp_path_factory.mktemp("talking"))
    tokenizer = load_tokenizer(config.data.tokenizer, folder / "tokenizer", lambda: TEXTS)
    params = random_params(config.model)
    save_run(folder, config, params, step=7)
    return model_of(config, tokenizer, params), Path(folder)


@pytest.fixture(scope="session")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work directory of a model that knows letters; its mesh takes all devices there are."""
    config = talking_config(length=8, block_length=8, steps=4, batch_size=4)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, vocab_size=64, max_length=32),
        data=DataConfig(
            template="plain", length=32, max_labels=12, tokenizer=TokenizerConfig("symbols")
        ),
        mesh=MeshConfig(),
    )
    folder = epath.Path(tmp_path_factory.mktemp("letters"))
    config = with_vocabulary(config, folder, ["abcde", "A B C D E"])
    save_run(folder, config, random_params(config.model), step=1)
    return Path(folder)


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven prompts of different kinds and lengths."""
    rows: list[dict] = [{"prompt": "abcdea"[: 1 + number % 6], "id": number} for number in range(8)]
    rows.append({"messages": [{"role": "user", "content": "dea"}]})
    rows.append({"question": "bad", "answer": "D A B"})
    rows.append({"prompt": "cab", "response": "B [MASK*3] C"})
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
