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
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.printing import print_result
from benchmarks.published_folder import write_random_weights
from benchmarks.watching import watch
from jax_mdlm.config import ModelConfig

_SAMPLED_EVERY = 0.01  # seconds


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
            runs[name].append(to_disk(words, settle))
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


def to_disk(words: Sequence[str], settle: float) -> dict[str, float]:
    """Runs a command that writes files, after a sync and `settle` seconds.

    Returns:
      Seconds until the bytes were in the page cache (conversions: without the start of Python, as
      they report it) and on the disk, seconds of the whole process, and the peak of its anonymous
      memory in MB.

    Raises:
      RuntimeError: the command failed.
    """
    subprocess.run(["sync"], check=True)
    time.sleep(settle)
    run = watch(words, _SAMPLED_EVERY)
    begin = time.perf_counter()
    subprocess.run(["sync"], check=True)
    synced = time.perf_counter() - begin
    if run.code:
        raise RuntimeError(f"{' '.join(words)} failed: {run.errors[-400:]}")
    reported = re.search(r"in ([\d.]+) s\)", run.out)
    inside = float(reported[1]) if reported else run.seconds
    return {
        "to_cache": inside,
        "to_disk": inside + synced,
        "whole_process": run.seconds,
        "peak_anonymous_mb": run.peak("anonymous") / 1e6,
    }


if __name__ == "__main__":
    main()
