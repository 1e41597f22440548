"""Import and export of a LLaDA-shaped checkpoint of random weights, beside `cp` on the same disk.

Every command runs as a process of its own, page cache warm. Before each the disks are synced and
`--settle` seconds pass: virtual machines take freed memory back meanwhile, so that all commands
find the same. A time ends when the bytes are on the disk (`sync`); the time in which they only
reached the page cache is given as well. Anonymous memory (RssAnon: mapped files do not count) is
sampled while a command runs.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.printing import print_result
from jax_mdlm.config import ModelConfig
from jax_mdlm.conversion import published, shards
from jax_mdlm.conversion.boxes import FLOATS, BothLayouts
from jax_mdlm.conversion.shards import INDEX
from jax_mdlm.conversion.source import CONFIG
from jax_mdlm.model import table

_SAMPLED_EVERY = 0.01  # seconds


def write_random_weights(folder: Path, config: ModelConfig, shard_bytes: int) -> int:
    """Writes a folder of published form with random normal weights; returns their bytes.

    Args:
      folder: New.
      config: Layout; `param_dtype` is the dtype of the tensors.
      shard_bytes: Most bytes of tensors in a file.
    """
    folder.mkdir(parents=True)
    dtype = FLOATS[config.param_dtype]
    pool = (0.02 * np.random.default_rng(0).standard_normal(2**23, np.float32)).astype(dtype)
    rows = [BothLayouts(row, config) for row in table.rows(config)]
    tensors = [(name, row.torch_shape) for row in rows for name in row.torch_names]
    shapes = dict(tensors)
    plan = shards.plan_shards(tensors, config.param_dtype, shard_bytes)
    for shard in plan:
        with open(folder / shard.file, "wb") as file:
            file.write(shard.header)
            for number, name in enumerate(shard.offsets):
                left = int(np.prod(shapes[name]))
                while left:
                    part = np.roll(pool[:left], 7 * number)
                    file.write(part.view(np.uint8).data)
                    left -= part.size
    if len(plan) > 1:
        (folder / INDEX).write_text(shards.index_of(plan))
    ids = published.TokenIds(mask=1, eos=2, pad=2)
    settings = published.published_settings(config, ids, config.param_dtype, None)
    (folder / CONFIG).write_text(published.settings_text(settings))
    return table.num_parameters(config) * dtype.itemsize


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark and prints its result, one JSON object, on stdout."""
    print_result("convert", __doc__, add_flags, run, argv)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Gives the parser this benchmark's flags."""
    for name, default, meaning in (
        ("layers", 17, "transformer blocks; 17 make 2.1 GB"),
        ("embed", 2048, "D, width"),
        ("mlp", 6144, "F, hidden width"),
        ("vocab", 32768, "V, rows of the embedding"),
        ("repeats", 3, "runs of each, the median counts"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} ({default})")
    parser.add_argument("--settle", type=float, default=5.0, help="seconds before each run (5)")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="on the disk to measure")


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures import and export."""
    for name in ("layers", "embed", "mlp", "vocab", "repeats"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.embed % 128:
        parser.error(f"--embed must be a multiple of 128, got {arguments.embed}")
    heads = arguments.embed // 128
    config = ModelConfig(
        vocab_size=arguments.vocab,
        embed=arguments.embed,
        layers=arguments.layers,
        heads=heads,
        kv_heads=heads,
        mlp=arguments.mlp,
        param_dtype="bfloat16",
    )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        return _measure(Path(place), config, arguments.repeats, arguments.settle)


def _measure(place: Path, config: ModelConfig, repeats: int, settle: float) -> dict[str, Any]:
    source, copy = place / "source", place / "copy"
    workdir, target = place / "workdir", place / "target"
    num_bytes = write_random_weights(source, config, shard_bytes=5 * 10**9)
    convert = [sys.executable, "-m", "jax_mdlm.convert"]
    commands = {
        "cp": (["cp", "-r", str(source), str(copy)], copy),
        "import": ([*convert, "import", str(source), str(workdir)], workdir),
        "export": ([*convert, "export", str(workdir), str(target)], target),
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, (words, made) in commands.items():
            shutil.rmtree(made, ignore_errors=True)
            subprocess.run(["sync"], check=True)
            time.sleep(settle)
            runs[name].append(_watch(words))
    result: dict[str, Any] = {
        "bytes": num_bytes,
        "layers": config.layers,
        "repeats": repeats,
    }
    for name, values in runs.items():
        result[name] = {
            key: round(statistics.median(run[key] for run in values), 3) for key in values[0]
        }
    for name in ("import", "export"):
        for kind in ("to_disk", "to_cache"):
            ratio = result["cp"][kind] / result[name][kind]
            result[name][f"speed_to_cp_{kind}"] = round(ratio, 3)
    return result


def _watch(words: Sequence[str]) -> dict[str, float]:
    """Runs a command.

    Returns:
      Seconds until the bytes were in the page cache (conversions: without the start of Python, as
      they report it) and on the disk, seconds of the whole process, and the peak of its anonymous
      memory in MB.
    """
    start = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        seen: list[int] = [0]
        watcher = threading.Thread(target=_sample, args=(process, seen))
        watcher.start()
        out, errors = process.communicate()
        seconds = time.perf_counter() - start
        watcher.join()
    begin = time.perf_counter()
    subprocess.run(["sync"], check=True)
    synced = time.perf_counter() - begin
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} failed: {errors.decode()[-400:]}")
    reported = re.search(r"in ([\d.]+) s\)", out.decode())
    inside = float(reported[1]) if reported else seconds
    return {
        "to_cache": inside,
        "to_disk": inside + synced,
        "whole_process": seconds,
        "peak_anonymous_mb": max(seen) / 1e3,
    }


def _sample(process: subprocess.Popen[bytes], seen: list[int]) -> None:
    while process.poll() is None:
        try:
            text = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        if found := re.search(r"RssAnon:\s+(\d+) kB", text):
            seen.append(int(found[1]))
        time.sleep(_SAMPLED_EVERY)


if __name__ == "__main__":
    main()
