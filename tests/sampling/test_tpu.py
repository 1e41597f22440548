"""The generation as the TPU compiler makes it: memory of the whole 8B program, for real chips.

No TPU is needed, only libtpu. Figures are the compiler's, per chip, in 10^9 bytes.
"""

import importlib.util
import os

import pytest

from jax_mdlm.config import MeshConfig, ModelConfig
from jax_mdlm.containers import SpecialIds
from jax_mdlm.model import Form
from jax_mdlm.sampling import lower
from jax_mdlm.sharding import make_layout
from tests.sampling.making import make_options

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu"),
]

LLADA_8B = ModelConfig(remat="none")
IDS = SpecialIds(mask=126336, slack=126084, pad=126081, eos=126081, terminator=126348)
# A canvas of 1024: 512 columns of prompt and 512 new slots.
OPTIONS = make_options(length=512, block_length=32, steps=512, ids=IDS, early_stop=True)


def compile_for(topology: str, mesh: MeshConfig, options=OPTIONS, weights="full", rows=1):
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    one_chip = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith("1x1") else {}
    chips = topologies.get_topology_desc(platform="tpu", topology_name=topology, **one_chip)
    layout = make_layout(mesh, chips.devices)
    form = Form(weights)
    return lower(LLADA_8B, options, layout, form=form, prompt_slots=512, rows=rows).compile()


def peak(program) -> float:
    return program.memory_analysis().peak_memory_in_bytes / 1e9


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_int8_on_one_v5e_chip(cache, record_property):
    options = OPTIONS.with_settings(cache=cache)
    program = compile_for("v5e:1x1", MeshConfig(), options, weights="int8")
    used = peak(program)
    print(f"int8, one v5e chip, canvas 1024, cache {cache}: {used:.2f} GB")
    assert used <= (9.0 if cache == "none" else 10.5)
    text = program.as_text()
    for leak in ("outfeed", "infeed", "callback", " send(", " recv("):
        assert leak not in text, leak


def test_int4_on_one_v5e_chip():
    used = peak(compile_for("v5e:1x1", MeshConfig(), weights="int4"))
    print(f"int4, one v5e chip, canvas 1024: {used:.2f} GB")
    assert used <= 5.5


def test_bfloat16_on_one_v6e_chip():
    used = peak(compile_for("v6e:1x1", MeshConfig()))
    print(f"bfloat16, one v6e chip, canvas 1024: {used:.2f} GB")
    assert used <= 17.0


def test_tensor_parallel_on_eight_v5e_chips():
    mesh = MeshConfig(fsdp=1, tensor=8)
    used = peak(compile_for("v5e:2x4", mesh, rows=8))
    print(f"bfloat16, v5e 2x4 (tensor 8), batch 8, canvas 1024: {used:.2f} GB a chip")
    assert used <= 4.0
