"""The command line of `evaluate`: one module per task, each with `add` (its flags) and `run`."""

import argparse
from collections.abc import Sequence

from jax_mdlm import command
from jax_mdlm.evaluate import (
    harness,
    intervention,
    judge,
    likelihood,
    pronunciations,
    repeats,
    slack,
    sweep,
)

TASKS = (pronunciations, intervention, sweep, harness, judge, repeats, slack, likelihood)


def main(argv: Sequence[str]) -> None:
    """Runs the command; raises ConfigError for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m jax_mdlm.evaluate",
        description="Scores of trained runs; `TASK --help` has the flags of a task.",
    )
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for task in TASKS:
        task.add(tasks)
    args, overrides = command.split_overrides(parser, argv)
    args.run(args, overrides)
