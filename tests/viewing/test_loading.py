"""What sampling loads: packages, and parameters in the compute dtype, quantised on the host."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from jax_mdlm import conversion, model
from jax_mdlm.config import MeshConfig
from jax_mdlm.mdlm import read
from jax_mdlm.model.quantized import Quantized
from jax_mdlm.setup import open_setup
from jax_mdlm.sharding import make_layout
from jax_mdlm.workdir import load_config

# Packages that train, prepare data or draw, or that other kinds of tokenizers need: each costs a
# call of `sample` a tenth of a second or more. What remains is jax, orbax with tensorstore (the
# checkpoint), tokenizers, fsspec and etils (paths), rich (the bar) and pydantic (the config).
UNUSED = {
    "array_record",
    "grain",
    "gradio",
    "matplotlib",
    "pandas",
    "scipy",
    "sentencepiece",
    "tensorboardX",
    "tensorflow_datasets",
    "transformers",
}


@pytest.mark.parametrize("kind", ["bpe", "symbols"])
def test_sampling_imports_only_what_it_uses(workdir: Path, talking, kind: str) -> None:
    folder, prompt = (workdir, "abc") if kind == "symbols" else (talking[1], "what is")
    code = (
        "import sys\n"
        "from jax_mdlm import sample\n"
        "sample.main(sys.argv[1:])\n"
        f"assert not {UNUSED} & set(sys.modules), {UNUSED} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--workdir", str(folder), "--config.mesh.fsdp=-1", prompt],
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    assert done.stdout.startswith(f"{prompt} -> ")


@pytest.mark.parametrize("weights", ["full", "int8", "int4"])
@pytest.mark.parametrize("place", ["one device", "mesh"])
def test_parameters_are_prepared_and_placed(workdir, eight_devices, weights, place):
    folder = epath.Path(workdir)
    config = load_config(folder)
    config = dataclasses.replace(config, sample=dataclasses.replace(config.sample, weights=weights))
    # Not the first device: what is read must not stay on the first.
    devices = eight_devices[3:4] if place == "one device" else eight_devices
    mesh = MeshConfig() if place == "one device" else MeshConfig(data=1, fsdp=4, tensor=2)
    layout = make_layout(mesh, devices)
    got = read(open_setup(folder, config), layout).params
    params, _ = conversion.load(folder)
    want = model.prepare(params, config.model, weights)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert isinstance(got["head"], Quantized) == (weights != "full")
    for leaf in jax.tree.leaves(got):
        assert set(leaf.devices()) <= set(devices)


def test_parameters_are_read_in_the_compute_dtype(workdir, eight_devices):
    folder = epath.Path(workdir)
    config = load_config(folder)
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, compute_dtype="bfloat16")
    )
    params = read(open_setup(folder, config), make_layout(MeshConfig(), eight_devices)).params
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}
