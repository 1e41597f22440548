"""Converts checkpoints: `python -m jax_mdlm.convert import|export|inspect ...`.

import SOURCE WORKDIR    published weights (folder, gs://, s3://, hf://ORG/NAME) -> work directory
export WORKDIR TARGET    work directory -> folder that PyTorch users load; a LoRA run's adapters are
                         merged, or with --adapter written alone, as PEFT loads them
inspect PATH             what is in there

Tensors are streamed: memory does not grow with the model. One process does it all, unless
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID name several: each does its part.
"""

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import jax

from jax_mdlm import command
from jax_mdlm.config import ConfigError
from jax_mdlm.conversion import (
    Meter,
    export_adapter,
    export_weights,
    import_weights,
    inspect,
    open_source,
)
from jax_mdlm.conversion.exporting import SHARD_BYTES
from jax_mdlm.model import table
from jax_mdlm.progress import ByteProgress
from jax_mdlm.storage import place


def main(argv: Sequence[str]) -> None:
    """Runs the command; raises ConfigError for what the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m jax_mdlm.convert", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    into = commands.add_parser("import", help="published weights -> work directory")
    into.add_argument("source", help="folder, gs://..., s3://... or hf://ORG/NAME[@REVISION]")
    into.add_argument("workdir", help="new work directory, local or gs://")
    into.set_defaults(run=_import)
    out = commands.add_parser("export", help="work directory -> folder for PyTorch users")
    out.add_argument("workdir", help="of a training run or an import")
    out.add_argument("target", help="new folder, local or gs:// or s3://")
    out.add_argument(
        "--dtype",
        choices=["bfloat16", "float32"],
        help="of the exported tensors (bfloat16; float32 with --adapter)",
    )
    out.add_argument("--step", type=int, help="which checkpoint (the newest)")
    out.add_argument(
        "--shard-bytes", type=int, default=SHARD_BYTES, help=f"of a file ({SHARD_BYTES})"
    )
    out.add_argument(
        "--adapter", action="store_true", help="only the adapters of a LoRA run, as a PEFT folder"
    )
    out.add_argument(
        "--base",
        default="",
        help="with --adapter: published weights that it belongs on (those of init.from)",
    )
    out.set_defaults(run=_export)
    look = commands.add_parser("inspect", help="format, parameters, dtypes, ids, steps")
    look.add_argument("path", help="folder of weights, work directory or Orbax folder")
    look.add_argument("--json", action="store_true", help="one JSON object")
    look.set_defaults(run=_inspect)
    args = parser.parse_args(argv)
    args.run(args)


def _import(args: argparse.Namespace) -> None:
    # Nothing is computed: the chips stay free, and a machine without any converts as well.
    jax.config.update("jax_platforms", "cpu")
    command.start_processes(detect=False)
    source = open_source(args.source)
    start = time.perf_counter()
    with ByteProgress(source.num_bytes, active=_first()) as progress:
        meter = Meter(progress.add)
        import_weights(source, place(args.workdir), meter, command.warn)
    seconds = time.perf_counter() - start
    print(
        f"imported {len(source.tensors)} tensors, {table.num_parameters(source.config):,} "
        f"parameters in {source.config.param_dtype}, into {args.workdir} "
        f"({_rate(meter.num_bytes, seconds)})"
    )


def _export(args: argparse.Namespace) -> None:
    if args.shard_bytes < 1:
        raise ConfigError(f"--shard-bytes must be at least 1, got {args.shard_bytes}")
    if args.base and not args.adapter:
        raise ConfigError("--base names what an adapter belongs on; give it with --adapter")
    dtype = args.dtype or ("float32" if args.adapter else "bfloat16")
    jax.config.update("jax_platforms", "cpu")
    command.start_processes(detect=False)
    start = time.perf_counter()
    with ByteProgress(None, active=_first()) as progress:
        meter = Meter(progress.add)
        places = place(args.workdir), place(args.target)
        if args.adapter:
            done = export_adapter(*places, meter, dtype=dtype, step=args.step, base=args.base)
        else:
            done = export_weights(
                *places, meter, dtype=dtype, step=args.step, shard_bytes=args.shard_bytes
            )
    seconds = time.perf_counter() - start
    for line in meter.warnings():
        command.warn(line)
    print(
        f"exported step {done.step} to {args.target}: {len(done.files)} file(s) in {dtype} "
        f"({_rate(meter.num_bytes, seconds)})"
    )


def _inspect(args: argparse.Namespace) -> None:
    jax.config.update("jax_platforms", "cpu")
    found = inspect(args.path)
    print(json.dumps(found, indent=2) if args.json else _table(found))


def _table(found: dict[str, Any]) -> str:
    lines = []
    for key, value in found.items():
        if isinstance(value, dict):
            shown = ", ".join(f"{name} {_number(entry)}" for name, entry in value.items())
        elif isinstance(value, list):
            shown = ", ".join(map(str, value))
        else:
            shown = _number(value)
        lines.append(f"{key:<17}{shown}")
    return "\n".join(lines)


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and value >= 10**6 else str(value)


def _rate(num_bytes: int, seconds: float) -> str:
    whose = " by this process" if jax.process_count() > 1 else ""
    return f"{num_bytes / 1e9:.2f} GB{whose} in {seconds:.2f} s"


def _first() -> bool:
    return jax.process_index() == 0


if __name__ == "__main__":
    command.run(main)
