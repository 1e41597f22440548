"""The 8B training step as the TPU compiler makes it: what the project promises of its memory.

No TPU is needed, only libtpu. Figures are the compiler's, per chip, in 10^9 bytes. A compile takes
a minute.
"""

import functools
import importlib.util

import pytest

from jax_mdlm import command
from jax_mdlm.planning.plan import Plan, make_plan
from jax_mdlm.planning.topologies import machine_named
from tests.planning.conftest import tiny_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu"),
]


@functools.cache
def plan(
    topology: str, preset: str = "", batch: int = 0, parts: int = 0, run: str = "llada_ctc"
) -> Plan:
    """The shipped run, its batch and microbatches perhaps replaced."""
    overrides = [
        f"--config.train.{name}={value}"
        for name, value in (("microbatches", parts), ("batch_size", batch))
        if value
    ]
    config = command.parse_config(f"{run}{':' * bool(preset)}{preset}", overrides)
    made = make_plan(config, machine_named(topology), "train")
    bound = made.roofline.bound if made.roofline else "?"
    print(
        f"\n{config.name}, {topology}, batch {config.train.batch_size} in "
        f"{config.train.microbatches}: peak {made.memory.peak / 1e9:.2f} GB, "
        f"FLOPs outside attention {made.flops_ratio or 0:.3f} x 6 P T, bound {bound}, "
        f"{made.tokens_per_second or 0:,.0f} tokens/s, MFU {made.mfu or 0:.1%}"
    )
    return made


def test_one_row_a_chip() -> None:
    assert plan("v5e:4x4", "", 16, 1).memory.peak <= 10.0e9


def test_slack_and_ctc_cost_no_memory() -> None:
    both, alone = plan("v5e:4x4", "", 16, 1), plan("v5e:4x4", "ce", 16, 1)
    print(f"CTC: {both.memory.peak / alone.memory.peak - 1:+.2%} of CE alone")
    assert both.memory.peak <= 1.01 * alone.memory.peak


def test_two_rows_a_chip() -> None:
    assert plan("v5e:4x4", "", 32, 1).memory.peak <= 12.0e9


def test_the_shipped_run_fits() -> None:
    assert plan("v5e:4x4").fits


@pytest.mark.parametrize("parts", [0, 16], ids=["as shipped", "a row at a time"])
def test_lora_of_8b_fits_one_chip_of_16_gb(parts: int) -> None:
    """Its base in int8: no layer is widened before the loop, on no pass of it."""
    made = plan("v5e:1x1", "one_chip", parts=parts, run="llada_lora")
    assert made.config.data.length == 1024
    assert made.part_bytes("frozen") <= 8.6e9
    assert made.memory.peak <= (13.0e9 if parts else 14.5e9)
    assert made.fits


def test_int8_layers_are_read_a_byte_a_value() -> None:
    """Forward, forward again and backward; the rest is activations, adapters and the head."""
    made = plan("v5e:1x1", "one_chip", parts=16, run="llada_lora")
    assert made.cost is not None
    assert not made.cost.doubts
    assert made.cost.hbm_bytes / 16 <= 120e9


def test_little_is_computed_beside_the_matrices() -> None:
    """1.25 = forward, backward and forward again of all parameters but the embedding."""
    made = plan("v5e:4x4", "", 16, 1)
    assert made.flops_ratio is not None
    assert made.flops_ratio <= 1.30
    assert made.cost is not None
    assert not made.cost.doubts


@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_a_tiny_layer_is_counted_exactly(topology: str) -> None:
    """As on a CPU: products are convolutions here, loops unrolled, collectives in fusions."""
    shape = {"embed": 256, "heads": 4, "kv_heads": 4, "head_dim": 128, "mlp": 512}
    sizes = {"remat": "full", "vocab_size": 512, **shape}
    few, many = (
        make_plan(tiny_config(layers=layers, **sizes), machine_named(topology), "train").cost
        for layers in (3, 5)
    )
    assert few is not None
    assert many is not None
    slots = 16 * 32 // 4  # of a chip
    matrices = 4 * 256 * 512 + 3 * 256 * 512
    again = matrices - 256 * 512  # all but the down projection
    attention = 16 * 32 * 512 * slots
    # For v6e, XLA computes the scores anew in each of the three fusions that want them.
    scores = 4 * 32 * 512 * slots if topology.startswith("v6e") else 0
    assert many.attention_flops - few.attention_flops == 2 * (attention + scores)
    of_matrices = (many.flops - many.attention_flops) - (few.flops - few.attention_flops)
    assert of_matrices == 2 * (6 * matrices + 2 * again) * slots


def test_two_slices_exchange_gradients_over_the_network() -> None:
    config = command.parse_config(
        "llada_ctc",
        ["--config.model.layers=2", "--config.mesh.data=2", "--config.train.microbatches=2"],
    )
    made = make_plan(config, machine_named("v5e:4x4", 2), "train")
    assert made.roofline is not None
    print(f"\n2 slices, 2 layers: {made.roofline.dcn_bytes / 1e6:.1f} MB over the network a chip")
    assert made.mesh == {"data": 2, "fsdp": 16, "tensor": 1, "context": 1}
    gradients = made.part_bytes("parameters")
    assert 0 < made.roofline.dcn_bytes <= 4 * gradients
