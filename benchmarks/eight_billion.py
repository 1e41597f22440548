"""LLaDA-8B with random weights through the doors of the package: convert, load, sample.

The folder is written first, unless it is there and whole, and stays. Every measure is a process of
its own; its memory is sampled every 50 ms (see `benchmarks.watching`). The page cache is as earlier
measures left it.

import, export   seconds beside `cp` of the same bytes, anonymous memory, see `benchmarks.convert`
load             `jax_mdlm.load` and two answers, see `benchmarks.load_once`: from the published
                 folder and, where `import` is measured too, from the import
sample           the command, with a text: exit code and memory

A command that fails is a result: its exit code and the last line that it wrote.

    python -m benchmarks.eight_billion --folder DIR --weights int8 int4 --only load sample

Disk for all 32 layers: 16.0 GB for the folder; as much again beside it while `import` is measured,
and twice as much while `export` is, which are removed at the end.
"""

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.convert import to_disk
from benchmarks.load_once import BLOCK
from benchmarks.published_folder import llada_config, num_bytes, write_llada
from benchmarks.watching import Run, watch
from jax_mdlm.config import ConfigError, ModelConfig
from jax_mdlm.conversion import open_source
from jax_mdlm.model import table

PHASES = ("import", "export", "load", "sample")
_PROMPT = "What is slack?"
_SLACK_ON_DISK = 1.02  # tokenizer, file system
_SETTLE = 5.0  # seconds before what is compared with `cp`

Report = Callable[[str, dict[str, Any]], None]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark; prints a line for each measure, or with --json one object at the end."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.eight_billion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser)
    arguments = parser.parse_args(argv)
    found: dict[str, dict[str, Any]] = {}

    def report(name: str, values: dict[str, Any]) -> None:
        found[name] = values
        if not arguments.json:
            shown = ", ".join(f"{key} {value}" for key, value in values.items())
            print(f"{name}: {shown}", flush=True)

    run(parser, arguments, report)
    if arguments.json:
        print(json.dumps(found, indent=2))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Gives the parser this benchmark's flags."""
    parser.add_argument("--folder", type=Path, required=True, help="of the published weights")
    parser.add_argument("--layers", type=int, default=32, help="transformer blocks (32)")
    parser.add_argument(
        "--weights", nargs="+", choices=["full", "int8", "int4"], default=["int8", "int4"]
    )
    parser.add_argument("--length", type=int, default=128, help="slots (128)")
    parser.add_argument("--tokens", type=int, default=4, help="that `load` fills in (4)")
    parser.add_argument("--only", nargs="+", choices=PHASES, default=PHASES, help="measures (all)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace, report: Report) -> None:
    """Writes the folder and measures.

    Args:
      parser: Ends the process for flags that cannot be used.
      arguments: As parsed.
      report: Is given the figures of each measure under its name, as soon as they are there.
    """
    if arguments.layers < 1:
        parser.error(f"--layers must be at least 1, got {arguments.layers}")
    if arguments.length < BLOCK or arguments.length % BLOCK:
        parser.error(f"--length must be a multiple of {BLOCK}, got {arguments.length}")
    config = llada_config(arguments.layers)
    folder = arguments.folder.resolve()
    there = _is_there(parser, folder, config)
    _check_disk(parser, folder, config, there, arguments.only)
    size = num_bytes(config)
    parameters = table.num_parameters(config)
    report("model", {"layers": config.layers, "parameters": parameters, "gb": size / 1e9})
    if not there:
        write_llada(folder, config)
        subprocess.run(["sync"], check=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-") as name:
        place = Path(name)
        models = {"folder": folder}
        if {"import", "export"} & {*arguments.only}:
            _measure_convert(folder, place, "export" in arguments.only, report)
            models["import"] = place / "import"
        for weights in arguments.weights:
            for kind, path in models.items():
                if "load" in arguments.only:
                    figures = _load(path, weights, arguments.length, arguments.tokens)
                    report(f"load {kind} {weights}", figures)
                if "sample" in arguments.only:
                    report(f"sample {kind} {weights}", _sample(path, weights, arguments.length))


def _is_there(parser: argparse.ArgumentParser, folder: Path, config: ModelConfig) -> bool:
    """Says whether the folder holds the model; ends the process where it holds anything else."""
    if not folder.exists() or not any(folder.iterdir()):
        return False
    try:
        found = open_source(folder).config
    except ConfigError as error:
        parser.error(
            f"--folder {folder} must be new or hold all of the model, but "
            f"{str(error).splitlines()[0]}; remove it or name another"
        )
    if found != dataclasses.replace(config, compute_dtype=found.compute_dtype):
        parser.error(
            f"--folder {folder} must hold {config.layers} layers of LLaDA-8B, it holds another "
            f"model (of {found.layers}); remove it, name another, or give its --layers"
        )
    return True


def _check_disk(
    parser: argparse.ArgumentParser,
    folder: Path,
    config: ModelConfig,
    there: bool,
    only: Sequence[str],
) -> None:
    """Says what the disk must hold at most; ends the process where it has less."""
    size = num_bytes(config)
    beside = 2 if "export" in only else int("import" in only)
    needed = ((not there) + beside) * size * _SLACK_ON_DISK
    parent = next(path for path in folder.parents if path.exists())
    free = shutil.disk_usage(parent).free
    told = (
        f"{needed / 1e9:.1f} GB on the disk of {parent} ({size / 1e9:.1f} GB for the folder"
        f"{', which is there' if there else ''}, {beside * size / 1e9:.1f} GB beside it for a "
        f"while), {free / 1e9:.1f} GB are free"
    )
    if free < needed:
        parser.error(f"needs {told}; make room, or choose measures with --only load sample")
    print(f"takes {told}", file=sys.stderr)


def _measure_convert(folder: Path, place: Path, exports: bool, report: Report) -> None:
    """Measures `cp`, import and export; the import stays in `place`."""
    workdir, target = place / "import", place / "export"
    convert = [sys.executable, "-m", "jax_mdlm.convert"]
    copied = to_disk(["cp", "-r", str(folder), str(place / "copy")], _SETTLE)
    shutil.rmtree(place / "copy")
    report("cp", _rounded(copied))
    commands = [["import", str(folder), str(workdir)]]
    if exports:
        commands.append(["export", str(workdir), str(target)])
    for words in commands:
        figures = to_disk([*convert, *words], _SETTLE)
        for kind in ("to_disk", "to_cache"):
            figures[f"speed_to_cp_{kind}"] = copied[kind] / figures[kind]
        report(words[0], _rounded(figures))
    shutil.rmtree(target, ignore_errors=True)


def _load(path: Path, weights: str, length: int, tokens: int) -> dict[str, Any]:
    """Measures a load and two answers in a process of their own."""
    words = [sys.executable, "-m", "benchmarks.load_once", str(path), "--weights", weights]
    done = watch([*words, "--length", str(length), "--tokens", str(tokens)])
    if done.code:
        return _failed(done)
    found = json.loads(done.out)
    loaded, answered = found.pop("loaded_at"), found.pop("answered_at")
    return {
        "exit_code": 0,
        "seconds_to_first_call": round(loaded - done.began, 3),
        **{f"loading_{kind}": value for kind, value in _peaks(done, loaded).items()},
        **_peaks(done, answered),
        **found,
    }


def _sample(path: Path, weights: str, length: int) -> dict[str, Any]:
    """Measures the command `sample`; its answer takes one call a block."""
    settings = {
        "weights": weights,
        "length": length,
        "block_length": BLOCK,
        "steps": length // BLOCK,
    }
    overrides = [f"--config.sample.{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "jax_mdlm.sample", "--workdir", str(path)]
    done = watch([*command, *overrides, _PROMPT])
    if done.code:
        return _failed(done)
    return {
        "exit_code": 0,
        "seconds": round(done.seconds, 3),
        **_peaks(done),
        "answer": done.out.strip()[:100],
    }


def _failed(done: Run) -> dict[str, Any]:
    return {
        "exit_code": done.code,
        "seconds": round(done.seconds, 3),
        **_peaks(done),
        "error": done.last_error.removeprefix("error: "),
    }


def _peaks(done: Run, until: float = float("inf")) -> dict[str, float]:
    """Gives peaks of memory in GB."""
    return {
        f"peak_{kind}_gb": round(done.peak(kind, until) / 1e9, 3)
        for kind in ("rss", "high_water", "anonymous")
    }


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in figures.items()}


if __name__ == "__main__":
    main()
