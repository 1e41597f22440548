"""Length buckets as settings: what is refused, and what the shipped config says of them."""

import dataclasses
from pathlib import Path

import pytest

from jax_mdlm import command
from jax_mdlm.config import (
    Config,
    ConfigError,
    DataConfig,
    ModelConfig,
    TrainConfig,
    validate,
)
from jax_mdlm.data.order import length_buckets


def bucket_config(**data) -> Config:
    values = {"length": 4096, "buckets": (512, 1024, 4096), **data}
    return Config(
        model=ModelConfig(), data=DataConfig(**values), train=TrainConfig(microbatches=16)
    )


def test_buckets_that_work() -> None:
    for found in ((512, 1024, 4096), (4096,), ()):
        assert validate(bucket_config(buckets=found)).data.buckets == found
    # 256 rows of 4,096 slots are 1,024 of 1,024 slots, 341.33 of 3,072
    assert validate(bucket_config(buckets=(2048, 4096), length=4096))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buckets": (512, 1024)}, r"must ascend to data.length=4096, got 512,1024; e\.g\. 1024,"),
        ({"buckets": (1024, 512, 4096)}, "must ascend to data.length=4096, got 1024,512,4096"),
        ({"buckets": (512, 512, 4096)}, "must ascend to data.length=4096, got 512,512,4096"),
        (
            {"buckets": (64, 4096)},
            r"must be longer than data.prompt_slots \+ data.end_padding=64, which a bucket holds "
            "whole, got 64; leave out short buckets",
        ),
        ({"buckets": (-5, 4096), "end_padding": 0}, "must be longer than .*=0, .* got -5"),
        (
            {"buckets": (3072, 4096)},
            r"a batch of data.buckets=3072 must have train.batch_size \* data.length / 3072 rows, "
            "a multiple of train.microbatches=16, got 341.333; take buckets that divide 4096",
        ),
    ],
)
def test_buckets_that_do_not(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(bucket_config(**changes))


def test_the_flags_that_llada_ctc_names() -> None:
    """At most LLaDA's 256 rows an update; every part divides over 16 chips."""
    flags = [
        "--config.data.buckets=512,1024,2048,4096",
        "--config.train.batch_size=32",
    ]
    text = (Path(__file__).parents[2] / "configs" / "llada_ctc.py").read_text()
    assert all(flag in text for flag in flags)
    config = command.parse_config("llada_ctc", flags)
    shapes = length_buckets(config.data, config.objective, config.train.batch_size)
    assert [dataclasses.astuple(canvas) for canvas in shapes] == [
        (256, 512, 341),
        (128, 1024, 682),
        (64, 2048, 1365),
        (32, 4096, 2048),
    ]
    parts = config.train.batch_size // 16  # as `microbatches=0` is filled in
    assert config.train.microbatches == 0
    assert all(canvas.rows // parts % 16 == 0 for canvas in shapes)
    assert command.parse_config("llada_ctc", ["--config.data.buckets="]).data.buckets == ()
    with pytest.raises(ConfigError, match=r"--config.data.buckets must be of type .*, got '8,x'"):
        command.parse_config("llada_ctc", ["--config.data.buckets=8,x"])
