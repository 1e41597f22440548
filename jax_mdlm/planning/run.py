"""Plans made and printed, machine after machine."""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Sequence

from jax_mdlm import command
from jax_mdlm.config import Config, ConfigError
from jax_mdlm.planning import report
from jax_mdlm.planning.plan import Plan, make_plan
from jax_mdlm.planning.search import flags, search
from jax_mdlm.planning.topologies import describe, topology_of


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
    machines = [describe(name, args.slices) for name in names]
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
        print("\n" + report.table(plans), end="")
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
        record = report.record(best, args.rows or 0)
        if args.search:
            tried = [report.record(plan) | {"flags": flags(plan)} for plan in found]
            record |= {"flags": flags(best), "tried": tried}
        return json.dumps(record) + "\n"
    text = report.as_text(best, args.rows or 0)
    if args.search:
        text += "\n" + report.table(found)
        text += f"\nflags of the first: {flags(best)}\n" if best.fits else "\nnothing fits\n"
    return text
