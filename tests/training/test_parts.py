"""Batches and meshes: parts that are filled in, batches that do not divide."""

import dataclasses

import pytest

from jax_mdlm import command
from jax_mdlm.config import Config, ConfigError, DataConfig, MeshConfig, ModelConfig, TrainConfig
from jax_mdlm.sharding import make_layout
from jax_mdlm.training.step import fit_batch


def config(rows: int, parts: int, **data) -> Config:
    return Config(
        model=ModelConfig(max_length=64),
        data=DataConfig(length=64, max_labels=16, **data),
        train=TrainConfig(batch_size=rows, microbatches=parts),
    )


@pytest.mark.parametrize(
    ("mesh", "rows", "parts"),
    [
        (MeshConfig(fsdp=8), 64, 8),
        (MeshConfig(fsdp=4, tensor=2), 64, 16),
        (MeshConfig(fsdp=8), 8, 1),
    ],
)
def test_no_number_is_a_row_a_device(mesh, rows, parts, eight_devices) -> None:
    layout = make_layout(mesh)
    assert fit_batch(config(rows, 0), layout).train.microbatches == parts
    assert fit_batch(config(rows, 1), layout).train.microbatches == 1


def test_the_shipped_batch_is_cut_for_any_slice(eight_devices) -> None:
    shipped = command.parse_config("llada_ctc", [])
    assert shipped.train.microbatches == 0
    assert fit_batch(shipped, make_layout(MeshConfig())).train.microbatches == 256 // 8


def test_a_batch_that_does_not_divide_is_refused(eight_devices) -> None:
    layout = make_layout(MeshConfig(fsdp=8))
    with pytest.raises(ConfigError, match=r"8 batch shards, got 12 \(rows of 64 slots\)"):
        fit_batch(config(24, 2), layout)
    with pytest.raises(ConfigError, match=r"8 batch shards, got 4 \(rows of 64 slots\)"):
        fit_batch(config(4, 0), layout)
    bucketed = dataclasses.replace(config(12, 3), data=DataConfig(length=64, buckets=(32, 64)))
    with pytest.raises(ConfigError, match=r"8 batch shards, got 4 \(rows of 64 slots\)"):
        fit_batch(bucketed, layout)
