"""A tiny network, and a machine whose chips are the CPU devices of the tests."""

import jax
import pytest

from jax_mdlm.config import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    SampleConfig,
    TokenizerConfig,
    TrainConfig,
)
from jax_mdlm.planning.topologies import Machine
from jax_mdlm.training.timing import find_chip


def tiny_config(**network: object) -> Config:
    """A step without CTC: its FLOPs are known by hand."""
    shape = {"vocab_size": 32, "embed": 16, "layers": 2, "heads": 4, "kv_heads": 4, "head_dim": 8}
    return Config(
        name="tiny",
        model=ModelConfig(**{**shape, "mlp": 32, "max_length": 64, "remat": "none", **network}),
        objective=ObjectiveConfig(ctc_weight=0.0, slack_max=0.0),
        data=DataConfig(length=32, max_labels=8, tokenizer=TokenizerConfig(kind="symbols")),
        train=TrainConfig(steps=0, epochs=1.0, batch_size=16, microbatches=2),
        mesh=MeshConfig(),
        sample=SampleConfig(length=16, block_length=8, steps=16, batch_size=8, early_stop=False),
    )


def cpu_machine(chips: int = 8) -> Machine:
    """CPU devices that pass for a row of v5e chips."""
    chip = find_chip("TPU v5e")
    assert chip is not None
    return Machine(f"v5e:1x{chips}", jax.devices()[:chips], chip, (1, chips))


@pytest.fixture
def machine() -> Machine:
    return cpu_machine()
