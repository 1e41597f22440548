"""Imports, exports and inspections, and what they print."""

import argparse
import json
import time
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
from jax_mdlm.storage import given_path


def run(args: argparse.Namespace) -> None:
    """Does what the first word says; raises ConfigError for what the user can mend."""
    {"import": _import, "export": _export, "inspect": _inspect}[args.command](args)


def _import(args: argparse.Namespace) -> None:
    # Nothing is computed: the chips stay free, and a machine without any converts as well.
    jax.config.update("jax_platforms", "cpu")
    command.start_processes(detect=False)
    source = open_source(args.source)
    start = time.perf_counter()
    with ByteProgress(source.num_bytes, active=jax.process_index() == 0) as progress:
        meter = Meter(progress.add)
        import_weights(source, given_path(args.workdir), meter, command.warn)
    print(
        f"imported {len(source.tensors)} tensors, {table.num_parameters(source.config):,} "
        f"parameters in {source.config.param_dtype}, into {args.workdir} "
        f"({_rate(meter, start)})"
    )


def _export(args: argparse.Namespace) -> None:
    shard_bytes = SHARD_BYTES if args.shard_bytes is None else args.shard_bytes
    if shard_bytes < 1:
        raise ConfigError(f"--shard-bytes must be at least 1, got {shard_bytes}")
    if args.base and not args.adapter:
        raise ConfigError("--base names what an adapter belongs on; give it with --adapter")
    dtype = args.dtype or ("float32" if args.adapter else "bfloat16")
    jax.config.update("jax_platforms", "cpu")
    command.start_processes(detect=False)
    start = time.perf_counter()
    with ByteProgress(None, active=jax.process_index() == 0) as progress:
        meter = Meter(progress.add)
        paths = given_path(args.workdir), given_path(args.target)
        if args.adapter:
            done = export_adapter(*paths, meter, dtype=dtype, step=args.step, base=args.base)
        else:
            done = export_weights(
                *paths, meter, dtype=dtype, step=args.step, shard_bytes=shard_bytes
            )
    for line in meter.warnings():
        command.warn(line)
    print(
        f"exported step {done.step} to {args.target}: {len(done.files)} file(s) in {dtype} "
        f"({_rate(meter, start)})"
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
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else _number(value)
        lines.append(f"{key:<17}{shown}")
    return "\n".join(lines)


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and value >= 10**6 else str(value)


def _rate(meter: Meter, start: float) -> str:
    whose = " by this process" if jax.process_count() > 1 else ""
    return f"{meter.num_bytes / 1e9:.2f} GB{whose} in {time.perf_counter() - start:.2f} s"
