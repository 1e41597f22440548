"""Runs of a tiny model: how they are started, followed and compared."""

import json
import re
import socket
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests.training.forks import Child, Forks

STEPS, SAVE_EVERY = 160, 20
CLOCK = ("steps_per_second", "tokens_per_second")  # metrics that no two runs share


def arguments(config_file: Path, workdir: Path, *overrides: str) -> list[str]:
    """The command line of a run."""
    return ["--config", str(config_file), "--workdir", str(workdir), *overrides]


def start(
    forks: Forks, config_file: Path, workdir: Path, *overrides: str, devices: int = 1, **env: str
) -> Child:
    """Starts a run on CPU devices; its output goes to `<workdir>.log`."""
    workdir.mkdir(exist_ok=True)
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    name = f"{workdir.name}.{env.get('JAX_PROCESS_ID', '0')}.{time.monotonic_ns()}.log"
    words = arguments(config_file, workdir, *overrides)
    return forks.start(workdir.parent / name, *words, XLA_FLAGS=flags, **env)


def start_group(
    forks: Forks,
    config_file: Path,
    workdir: Path,
    *overrides: str,
    processes: int,
    devices: int,
    **env: str,
) -> list[Child]:
    """Starts a run over several processes with so many devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    crowded = processes > 2
    if crowded:
        forks.crowd.enter()
    group = [
        start(
            forks,
            config_file,
            workdir,
            *overrides,
            devices=devices,
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES=str(processes),
            JAX_PROCESS_ID=str(index),
            **env,
        )
        for index in range(processes)
    ]
    if crowded:
        forks.crowd.came(child.pid for child in group)
    return group


def lines(workdir: Path, *groups: str) -> list[dict]:
    """Lines of the metrics file, of these groups (default: train and validation)."""
    path = workdir / "metrics.jsonl"
    found = path.read_text().splitlines() if path.exists() else []
    entries = [json.loads(line) for line in found if line.endswith("}")]
    return [line for line in entries if line["group"] in (groups or ("train", "validation"))]


def losses(workdir: Path) -> dict[int, float]:
    """Training loss by step."""
    return {line["step"]: line["loss"] for line in lines(workdir, "train")}


def steps_saved(workdir: Path) -> list[int]:
    """Steps whose checkpoint is whole."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if re.fullmatch(r"\d+", name))


def wait_for_step(child: Child, workdir: Path, step: int) -> None:
    """Until the metrics have come so far."""
    wait_until(child, lambda: any(line["step"] >= step for line in lines(workdir)))


def wait_until(child: Child, holds) -> None:
    """Looks often, while the run goes on."""
    while child.poll() is None:
        if holds():
            return
        time.sleep(0.005)
    raise AssertionError(f"ended with {child.poll()} before that: {child.text()[-3000:]}")


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Everything of a checkpoint, as NumPy."""
    restored = ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / str(step) / "tree")
    leaves, _ = jax.tree_util.tree_flatten_with_path(restored)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def same_state(left: Path, right: Path, step: int) -> None:
    """Bitwise: parameters, moments, keys."""
    a, b = arrays(left, step), arrays(right, step)
    assert a.keys() == b.keys()
    assert len(a) > 30
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def same_run(left: Path, right: Path, step: int = STEPS) -> None:
    """Bitwise: the state, and every metric but the clock's."""
    same_state(left, right, step)

    def numbers(workdir: Path) -> dict:
        return {
            (line["step"], line["group"]): {k: v for k, v in line.items() if k not in CLOCK}
            for line in lines(workdir)
        }

    x, y = numbers(left), numbers(right)
    assert x.keys() == y.keys(), x.keys() ^ y.keys()
    for key in x:
        assert x[key] == y[key], key
