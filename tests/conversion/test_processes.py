"""Several processes: each reads and holds its part, none the whole model."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jax_mdlm import convert
from tests.conversion import folders

# Runs in each process: reads a folder in one of two ways, reports bytes and anonymous memory.
CODE = """
import json, re, sys, threading, time
from etils import epath
import jax
from jax_mdlm import command, conversion
from jax_mdlm.config import MeshConfig
from jax_mdlm.conversion.placing import place_params
from jax_mdlm.conversion.reading import Meter, opened_params
from jax_mdlm.sharding import make_layout

def anonymous():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])

def watch():
    while True:
        seen.append(anonymous())
        time.sleep(0.002)

how, folder, workdir = sys.argv[1:]
command.start_processes()
jax.devices()
if how == "export":
    conversion.export_weights(
        epath.Path(folder), epath.Path(workdir), Meter(), dtype="float32", shard_bytes=40_000
    )
    print(json.dumps({}))
    sys.exit()
source = conversion.open_source(folder)
meter, before = Meter(), anonymous()
seen = [before]
threading.Thread(target=watch, daemon=True).start()
held = 0
if how == "import":
    conversion.import_weights(source, epath.Path(workdir), meter)
else:
    layout = make_layout(MeshConfig(fsdp=-1))
    with opened_params(source, source.config, "float32", meter) as (_, arrays):
        place = lambda row: layout.sharding(row.axes)
        params = place_params(arrays, source.config, place, "float32")
    held = sum(s.data.nbytes for leaf in jax.tree.leaves(params) for s in leaf.addressable_shards)
print(json.dumps({"read": meter.num_bytes, "grown": max(seen) - before, "held": held}))
"""


def run(how: str, folder: Path, workdir: Path, processes: int = 2) -> list[dict]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for number in range(processes):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // processes}",
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(number),
        }
        words = [sys.executable, "-c", CODE, how, str(folder), str(workdir)]
        started.append(
            subprocess.Popen(
                words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    results = []
    for process in started:
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-2000:]
        results.append(json.loads(out.splitlines()[-1]))
    return results


@pytest.mark.slow
def test_two_processes_read_half_each(tmp_path: Path) -> None:
    """Import to disk, and straight onto eight devices; the import is that of one process."""
    tensors = folders.write_folder(
        tmp_path / "in", layers=6, embed=64, mlp=160, vocab=80, dtype="bfloat16"
    )
    total = sum(tensor.nbytes for tensor in tensors.values())
    for how in ("import", "place"):
        read = [result["read"] for result in run(how, tmp_path / "in", tmp_path / "run")]
        assert sum(read) == total
        assert max(read) < 0.55 * total
    convert.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--dtype", "bfloat16"])
    back = folders.read_weights(tmp_path / "out")
    for name, tensor in tensors.items():
        assert back[name].tobytes() == tensor.tobytes(), name


@pytest.mark.slow
def test_two_processes_export_what_one_does(tmp_path: Path) -> None:
    tensors = folders.write_folder(tmp_path / "in")
    convert.main(["import", str(tmp_path / "in"), str(tmp_path / "run")])
    run("export", tmp_path / "run", tmp_path / "out")
    back = folders.read_weights(tmp_path / "out")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].tobytes() == tensor.tobytes(), name
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2


@pytest.mark.slow
def test_no_process_ever_holds_the_model(tmp_path: Path) -> None:
    """0.6 GB in two processes: an import holds buffers, a start its slices and one more."""
    tensors = folders.write_folder(
        tmp_path / "in", layers=8, embed=1024, heads=8, kv_heads=8, mlp=4096, vocab=16384
    )
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert total > 0.6e9
    largest = max(8 * t.nbytes for t in tensors.values() if t.ndim == 2 and len(t) < 16384)
    for result in run("import", tmp_path / "in", tmp_path / "run"):
        assert result["read"] < 0.55 * total
        assert result["grown"] < 200e6
    for result in run("place", tmp_path / "in", tmp_path / "run"):
        assert result["read"] < 0.55 * total
        assert result["held"] == pytest.approx(total / 2, rel=0.01)
        # a slice on the host and its copy on the device, of a stacked array
        assert result["grown"] < result["held"] + largest / 8 + 100e6


@pytest.mark.slow
def test_memory_of_import_and_export_does_not_grow_with_the_layers(tmp_path: Path) -> None:
    grown = {}
    for layers in (4, 8):
        folder = tmp_path / str(layers)
        tensors = folders.write_folder(
            folder / "in", layers=layers, embed=1024, heads=8, kv_heads=8, mlp=4096, vocab=4096
        )
        assert sum(t.nbytes for t in tensors.values()) > layers * 60e6
        (result,) = run("import", folder / "in", folder / "run", processes=1)
        grown[layers] = result["grown"]
    assert max(grown.values()) < 200e6
    assert grown[8] < grown[4] + 30e6


def test_shares_are_even_for_the_8b_layout() -> None:
    """Boxes dealt out by size, without any file."""
    from jax_mdlm.config import ModelConfig
    from jax_mdlm.conversion.boxes import BothLayouts
    from jax_mdlm.model import table
    from jax_mdlm.storage.arrays import box_shape

    load = np.zeros(16, int)
    for row in table.rows(ModelConfig()):
        for box in BothLayouts(row, ModelConfig()).boxes(2):
            load[np.argmin(load)] += int(np.prod(box_shape(box)))
    assert load.sum() == table.num_parameters(ModelConfig())
    assert load.max() < 1.02 * load.min()
