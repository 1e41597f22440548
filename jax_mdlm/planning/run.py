"""Plans made and printed, machine after machine: in words and as JSON."""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from jax_mdlm import command
from jax_mdlm.config import Config, ConfigError
from jax_mdlm.planning.plan import HEADROOM, Plan, make_plan
from jax_mdlm.planning.search import flags_of, search
from jax_mdlm.planning.topologies import machine_named, topology_of

_GB = 1e9
_PARTS = ("parameters", "frozen", "optimizer", "batch")
_BOUNDS = {
    "compute": "matrix units",
    "hbm": "HBM",
    "ici": "links between chips",
    "dcn": "network between slices",
}


def record_of(plan: Plan, rows: int = 0) -> dict[str, Any]:
    """For JSON; bytes, FLOPs and seconds are per chip and run, what is not known is null.

    Args:
      plan: What is known of a step.
      rows: Training rows of the whole run; 0 = not asked.
    """
    cost, bound, train = plan.cost, plan.roofline, plan.config.train
    training = plan.mode == "train"
    hours = plan.hours(rows) if rows else None
    return {
        "topology": plan.machine.name,
        "mode": plan.mode,
        "config": plan.config.name,
        "slices": plan.machine.slices,
        "chips": len(plan.machine.devices),
        "mesh": plan.mesh,
        "batch_size": train.batch_size if training else plan.config.sample.batch_size,
        "microbatches": train.microbatches if training else None,
        "remat": plan.config.model.remat if training else None,
        "peak_hbm_bytes": plan.memory.peak,
        "hbm_bytes": round(plan.machine.chip.hbm_bytes),
        "headroom": HEADROOM,
        "fits": plan.fits,
        "parameters_bytes": plan.part_bytes("parameters"),
        "frozen_bytes": plan.part_bytes("frozen"),
        "optimizer_bytes": plan.part_bytes("optimizer"),
        "batch_bytes": plan.part_bytes("batch"),
        "checkpoint_bytes": plan.checkpoint_bytes,
        "activations_bytes": plan.memory.temporaries,
        "flops": cost and cost.flops,
        "attention_flops": cost and cost.attention_flops,
        "flops_ratio": plan.flops_ratio,
        "hbm_traffic_bytes": cost and cost.hbm_bytes,
        "collective_bytes": bound and bound.by_kind,
        "dcn_bytes": bound and bound.dcn_bytes,
        "seconds": bound and bound.seconds,
        "bound": bound and bound.bound,
        "best_seconds": bound and bound.best,
        "tokens": plan.tokens,
        "tokens_per_second": plan.tokens_per_second,
        "tokens_per_second_per_chip": plan.tokens_per_second
        and plan.tokens_per_second / len(plan.machine.devices),
        "mfu": plan.mfu,
        "rows": rows or None,
        "updates": plan.updates(rows) if rows else None,
        "best_hours": hours,
        "best_chip_hours": hours and hours * len(plan.machine.devices),
        "not_counted": list(cost.doubts) if cost else [],
    }


def in_words(plan: Plan, rows: int = 0) -> str:
    """A page, with the hours of a run over so many training rows if there are any."""
    return "\n".join([*_lines(plan), *_whole_run(plan, rows)]) + "\n"


def _whole_run(plan: Plan, rows: int) -> Iterator[str]:
    if rows and (hours := plan.hours(rows)) is not None:
        train, chips = plan.config.train, len(plan.machine.devices)
        yield (
            f"{rows:,} rows x {train.epochs:g} epoch(s) / {train.batch_size}: "
            f"{plan.updates(rows):,} updates, at best {hours:.1f} hours, "
            f"{hours * chips:,.0f} chip-hours"
        )


def _lines(plan: Plan) -> Iterator[str]:
    chips, chip = len(plan.machine.devices), plan.machine.chip
    yield f"{plan.config.name} on {plan.machine.title}: {chips} chips, {_mesh(plan)}, {_work(plan)}"
    # --- memory ---
    yield ""
    yield f"{'memory of a chip':70}GB (10^9 B)"
    for part in _PARTS:
        arrays = [argument for argument in plan.arguments if argument.part == part]
        if not arrays:
            continue
        yield f"  {part:72}{plan.part_bytes(part) / _GB:9.3f}"
        for argument in arrays if part in ("parameters", "frozen") else ():
            form = f"{argument.dtype} {_dims(argument.shape)} -> {_dims(argument.shard)}"
            yield f"    {argument.path:18} {form:51}{argument.bytes / _GB:9.3f}"
    yield f"  {'activations, gradients, buffers':72}{plan.memory.temporaries / _GB:9.3f}"
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    usable = f"of {chip.hbm_bytes / _GB:.2f} usable, {HEADROOM:.0%} kept free: {verdict}"
    yield f"  {'peak, ' + usable:72}{plan.memory.peak / _GB:9.3f}"
    if plan.checkpoint_bytes is not None:
        yield f"{'a checkpoint, of all chips together':74}{plan.checkpoint_bytes / _GB:9.3f}"
    if plan.cost is None or plan.roofline is None:
        return
    # --- work ---
    cost, bound = plan.cost, plan.roofline
    yield ""
    yield f"work of a chip per {'step' if plan.mode == 'train' else 'batch of prompts'}"
    yield f"  {'FLOPs of matrix products':54}{cost.flops:12.4g}"
    yield f"  {'  of these attention':54}{cost.attention_flops:12.4g}"
    if plan.flops_ratio is not None:
        yield f"  {'  the others in 6 x parameters x tokens':54}{plan.flops_ratio:12.3f}"
    yield f"  {'bytes between chip and HBM':54}{cost.hbm_bytes:12.4g}"
    for (kind, axes), size in sorted(bound.exchanged.items(), key=lambda item: -item[1]):
        yield f"  {f'bytes taken in by {kind} ({axes})':54}{size:12.4g}"
    if bound.dcn_bytes:
        yield f"  {'  of these from other slices':54}{bound.dcn_bytes:12.4g}"
    # --- time ---
    yield ""
    yield "seconds at best, each part at its full rate"
    for name, seconds in bound.seconds.items():
        mark = "  <- the bound" if name == bound.bound else ""
        yield f"  {_BOUNDS[name]:54}{seconds:12.4g}{mark}"
    rate = plan.tokens_per_second or 0.0
    share = f", MFU {plan.mfu:.1%}" if plan.mfu is not None else ""
    yield f"best case: {rate:,.0f} tokens/s, {rate / chips:,.0f} a chip{share}"
    for doubt in cost.doubts:
        yield f"not counted: {doubt}"


def table(plans: Sequence[Plan]) -> str:
    """A line a plan, to compare."""
    rows = [
        ("topology", "mesh", "parts", "remat", "peak GB", "of", "fits", "bound", "tokens/s", "MFU")
    ]
    for plan in plans:
        train, rate, share = plan.mode == "train", plan.tokens_per_second, plan.mfu
        rows.append(
            (
                plan.machine.title,
                _mesh(plan).removeprefix("mesh "),
                str(plan.config.train.microbatches) if train else "-",
                plan.config.model.remat if train else "-",
                f"{plan.memory.peak / _GB:.2f}",
                f"{plan.machine.chip.hbm_bytes / _GB:.2f}",
                "yes" if plan.fits else "no",
                plan.roofline.bound if plan.roofline else "-",
                f"{rate:,.0f}" if rate else "-",
                f"{share:.1%}" if share is not None else "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = {0, 1, 3, 6, 7}  # words; numbers stand at the right
    lines = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _mesh(plan: Plan) -> str:
    axes = [f"{name}={size}" for name, size in plan.mesh.items() if size > 1]
    return "mesh " + (" ".join(axes) or "of one")


def _work(plan: Plan) -> str:
    config = plan.config
    if plan.mode == "sample":
        return f"{config.sample.batch_size} prompts, {plan.tokens:,} new slots"
    return (
        f"batch {config.train.batch_size} x {config.data.length:,} slots in "
        f"{config.train.microbatches} microbatch(es), remat {config.model.remat}"
    )


def _dims(dims: tuple[int, ...]) -> str:
    return "[" + ", ".join(str(size) for size in dims) + "]"


def run(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Prints a plan per topology; exit code 3 where something does not fit."""
    config = command.parse_config(args.config, overrides)
    if args.rows is not None:
        _check_counted(config)
    if args.slices > 1 and config.mesh.data == 1:
        config = dataclasses.replace(
            config, mesh=dataclasses.replace(config.mesh, data=args.slices)
        )
    names = [topology_of(asked) for asked in args.topology]
    for asked, name in zip(args.topology, names, strict=True):
        if asked != name:
            command.note(f"{asked} is {name}")
    machines = [machine_named(name, args.slices) for name in names]
    plan = functools.partial(make_plan, say=command.note)
    plans = []
    for machine in machines:
        if args.search:
            found = search(config, machine, args.tries, plan)
        else:
            found = [plan(config, machine, "sample" if args.sample else "train")]
        plans.append(found[0])
        print(_shown(found, args), end="", flush=True)
    if len(plans) > 1 and not args.json:
        print("\n" + table(plans), end="")
    if not all(one.fits for one in plans):
        sys.exit(3)


def _check_counted(config: Config) -> None:
    """Raises ConfigError where --rows does not say how many updates a run makes."""
    if config.train.steps:
        raise ConfigError(
            f"--rows needs a run that is counted in epochs, got train.steps={config.train.steps}; "
            "set --config.train.steps=0 --config.train.epochs=3"
        )
    if config.data.buckets:
        raise ConfigError(
            "--rows needs data.buckets to be empty: with buckets the rows' lengths decide how many "
            "updates there are; set --config.data.buckets="
        )


def _shown(found: list[Plan], args: argparse.Namespace) -> str:
    """One plan, or the best of a search with what else was tried."""
    best = found[0]
    if args.json:
        shown = record_of(best, args.rows or 0)
        if args.search:
            tried = [record_of(plan) | {"flags": flags_of(plan)} for plan in found]
            shown |= {"flags": flags_of(best), "tried": tried}
        return json.dumps(shown) + "\n"
    text = in_words(best, args.rows or 0)
    if args.search:
        text += "\n" + table(found)
        text += f"\nflags of the first: {flags_of(best)}\n" if best.fits else "\nnothing fits\n"
    return text
