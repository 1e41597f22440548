"""Eight CPU devices for every test, and a compilation cache that outlives a run."""

import dataclasses
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Level 0: the suite compiles far more than it computes.
FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    # Eight devices share few cores: by default one that is 40 s late ends the process.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    "--xla_cpu_collective_timeout_seconds=600",
]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
# Threads of XLA's pool. By default one per device: where a device is in two collectives at once,
# each may wait for ever for a device that has no thread left.
os.environ["PJRT_NPROC"] = "32"
CACHE = Path(tempfile.gettempdir()) / f"jax_mdlm_test_cache_{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from jax_mdlm import conversion  # noqa: E402
from jax_mdlm.config import ModelConfig  # noqa: E402
from jax_mdlm.containers import Params  # noqa: E402

GOLDEN = Path(__file__).parent / "data" / "llada_random_mha"  # what the published code computed


@pytest.fixture(scope="session")
def eight_devices() -> list[jax.Device]:
    devices = jax.devices()
    assert len(devices) == 8
    return devices


@pytest.fixture(scope="session")
def golden() -> tuple[Params, ModelConfig, dict[str, np.ndarray]]:
    """Parameters, config and reference arrays of a small random LLaDA."""
    params, config = conversion.load(GOLDEN)
    return params, dataclasses.replace(config, remat="none"), dict(np.load(GOLDEN / "golden.npz"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """(KiB) -> a disk of that size; called again, the disk has grown."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def size(kilobytes: int) -> Path:
        nonlocal mounted
        options = f"{'remount,' if mounted else ''}size={kilobytes}k"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place])
        if done.returncode:
            pytest.skip("mounting a small tmpfs needs root")
        mounted = True
        return place

    yield size
    if mounted:
        subprocess.run(["umount", place], check=True)
