"""Scores of trained runs: `python -m jax_mdlm.evaluate TASK --workdir runs/pronounce`.

`TASK --help` has the flags of a task.
"""

import argparse
from collections.abc import Sequence

from jax_mdlm import command
from jax_mdlm.evaluation.flags import add_evaluations
from jax_mdlm.experiments.flags import add_experiments


def main(argv: Sequence[str]) -> None:
    """Runs the command; raises ConfigError for what the user can mend."""
    args, overrides = command.split_overrides(make_parser(), argv)
    args.run(args, overrides)


def make_parser() -> argparse.ArgumentParser:
    """The flags of all tasks."""
    parser = argparse.ArgumentParser(
        prog="python -m jax_mdlm.evaluate",
        description="Scores of trained runs; `TASK --help` has the flags of a task.",
    )
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    add_evaluations(tasks)
    add_experiments(tasks)
    return parser


if __name__ == "__main__":
    command.run(main)
