"""Plans: `python -m jax_mdlm.plan --config configs/llada_ctc.py --topology v5e:4x4`.

Compiles the step of `train` (with `--sample`: the generation of `sample`) with the real TPU
compiler for machines that need not be there, and prints memory, work and the bound per chip. Needs
libtpu (`pip install 'jax[tpu]'`) and neither a TPU nor data. Exit code 3: something does not fit.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from jax_mdlm import command
from jax_mdlm.config import Config, ConfigError
from jax_mdlm.plan import report
from jax_mdlm.plan.plan import Plan, make_plan
from jax_mdlm.plan.search import flags, search
from jax_mdlm.plan.topologies import describe


def main(argv: Sequence[str]) -> None:
    """Runs the command; raises ConfigError for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m jax_mdlm.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="FILE[:preset] or a shipped name")
    parser.add_argument(
        "--topology", required=True, nargs="+", metavar="NAME", help="e.g. v5e:4x4 v4:2x2x4"
    )
    parser.add_argument("--slices", type=int, default=1, help="such machines, over the network")
    parser.add_argument("--sample", action="store_true", help="the sampler instead of the step")
    parser.add_argument(
        "--search", action="store_true", help="look for a mesh, microbatches and a remat policy"
    )
    parser.add_argument("--tries", type=int, default=6, help="compiles of --search, a topology")
    parser.add_argument(
        "--rows", type=int, help="training rows: updates, hours and chip-hours at best, too"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per topology")
    args, overrides = command.split_overrides(parser, argv)
    _check(args)
    config = command.parse_config(args.config, overrides)
    if args.rows is not None:
        _check_rows(args, config)
    if args.slices > 1 and config.mesh.data == 1:
        config = dataclasses.replace(
            config, mesh=dataclasses.replace(config.mesh, data=args.slices)
        )
    machines = [describe(name, args.slices) for name in args.topology]
    plans = []
    for machine in machines:
        if args.search:
            found = search(config, machine, args.tries)
        else:
            found = [make_plan(config, machine, "sample" if args.sample else "train")]
        plans.append(found[0])
        print(_shown(found, args), end="", flush=True)
    if len(plans) > 1 and not args.json:
        print("\n" + report.table(plans), end="")
    if not all(plan.fits for plan in plans):
        sys.exit(3)


def _check(args: argparse.Namespace) -> None:
    for name in ("slices", "tries"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.search and args.sample:
        raise ConfigError("--search looks for a training step's choices; drop it or --sample")


def _check_rows(args: argparse.Namespace, config: Config) -> None:
    if args.rows < 1:
        raise ConfigError(f"--rows must be at least 1, got {args.rows}")
    if args.sample:
        raise ConfigError("--rows counts the updates of a training run; drop it or --sample")
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
