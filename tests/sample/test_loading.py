"""Parameters as sampling holds them: in the compute dtype, quantised before they are placed."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath

from jax_mdlm import model
from jax_mdlm.config import MeshConfig
from jax_mdlm.model.int8 import Int8
from jax_mdlm.sharding import make_layout
from jax_mdlm.training.run import load_for_sampling, load_run
from jax_mdlm.workdir import load_config


@pytest.mark.parametrize("weights", ["full", "int8"])
@pytest.mark.parametrize("place", ["one device", "mesh"])
def test_parameters_are_prepared_and_placed(workdir, eight_devices, weights, place):
    folder = epath.Path(workdir)
    config = load_config(folder)
    config = dataclasses.replace(config, sample=dataclasses.replace(config.sample, weights=weights))
    # Not the first device: what is quantised on the host must have been moved.
    devices = eight_devices[3:4] if place == "one device" else eight_devices
    mesh = MeshConfig() if place == "one device" else MeshConfig(data=1, fsdp=4, tensor=2)
    layout = make_layout(mesh, devices)
    got = load_for_sampling(folder, config, layout).params
    want = model.prepare(load_run(folder, config, layout).params, config.model, weights)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert isinstance(got["head"], Int8) == (weights == "int8")
    for leaf in jax.tree.leaves(got):
        assert set(leaf.devices()) <= set(devices)


def test_parameters_are_read_in_the_compute_dtype(workdir, eight_devices):
    folder = epath.Path(workdir)
    config = load_config(folder)
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, compute_dtype="bfloat16")
    )
    params = load_for_sampling(folder, config, make_layout(MeshConfig(), eight_devices)).params
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}
