"""The flags of the paper's measurements; the module of a task is imported when it runs."""

import argparse
from typing import Any

from jax_mdlm import command

STRENGTHS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)

_INTERVENTION = """\
Error rates of one or more models while a share of the tokens is put on the wrong slot.

`--workdir NAME=DIR[,DIR...]` names a model; several folders are its training seeds. Each decoding
is kept in its work directory, so that the same command goes on where it was interrupted and a
curve is decoded once. The first model is what the others are compared with.
"""
_SWEEP = """\
Trains a list of runs and compares them under interventions, one command from list to figure.

A list is a file with `get_runs() -> {name: [words of the train command]}`; the first run is what
the others are compared with. Every model is trained once for each training seed, in
`FOLDER/<digest of its settings>-seed<N>`: lists that share a run share the model, and the same
command again goes on where it was interrupted. What a model scored is kept in its work directory.
"""
_REPEATS = """\
Exact matches, and repeated characters that were lost or gained ("100" decoded as "10").

`--workdir NAME=DIR[,DIR...]` names a model; several folders are its training seeds. The rows are
those of the run's source (`numbers`), or of `--file`: JSONL with prompt and response. `--write
FILE` writes the rows of `numbers` in that form, asked in words, for a model that was not trained on
them.
"""
_SLACK = """\
Where slack stands: in the targets that training draws, and in what the model decodes.

Slack per slot along a response, lengths of runs, gaps (start, between tokens, tail), the tokens
beside it, and when in the decoding it is fixed. The rows are those of the run's source, or of
`--file`: JSONL with prompt and response. `--figure` draws six panels.
"""


def add_experiments(tasks: Any) -> None:
    """The tasks of `evaluate` that this room has."""
    for add_task in (_intervention, _sweep, _repeats, _slack):
        add_task(tasks)


def _intervention(tasks: Any) -> None:
    """The flags of `evaluate intervention`."""
    task = tasks.add_parser(
        "intervention", help="errors while tokens are put on wrong slots", description=_INTERVENTION
    )
    _add_intervention(task)
    task.add_argument("--workdir", action="append", required=True, metavar="[NAME=]DIR[,DIR...]")
    task.add_argument("--output", default="", help="folder for intervention.json and .png")
    task.add_argument("--json", action="store_true", help="one JSON object instead of text")
    task.set_defaults(run=command.run_of("jax_mdlm.experiments.intervention"))


def _add_intervention(task: argparse.ArgumentParser) -> None:
    """What is decoded, and how it is disturbed."""
    task.add_argument("--kind", choices=["displace", "boundary"], default="displace")
    task.add_argument("--direction", choices=["right", "left", "both"], default="right")
    task.add_argument("--share", type=float, default=0.5, help="boundary: when, 0 to 1")
    task.add_argument("--strengths", type=float, nargs="+", default=list(STRENGTHS))
    task.add_argument("--seeds", type=int, default=5, help="decodings per strength above 0")
    task.add_argument("--split", choices=["validation", "test"], default="test")
    task.add_argument("--file", default="", help="JSONL rows instead of a split of the source")
    task.add_argument("--metric", default="", help="default: what is usual for the source")
    task.add_argument("--limit", type=int, default=0, help="rows at most; 0 = all")
    _add_too_long(task)


def _sweep(tasks: Any) -> None:
    """The flags of `evaluate sweep`."""
    task = tasks.add_parser(
        "sweep", help="train a list of runs and compare them", description=_SWEEP
    )
    task.add_argument("--runs", required=True, help="a file with get_runs(), or a shipped name")
    task.add_argument("--folder", required=True, help="where models are trained and kept")
    task.add_argument("--training-seeds", type=int, default=1, help="models per run")
    task.add_argument("--only", default="", help="names of runs, comma-separated; default: all")
    task.add_argument("--jobs", type=int, default=1, help="models at a time; each gets its cores")
    task.add_argument("--output", required=True, help="folder for table, JSON and figures")
    _add_intervention(task)
    task.set_defaults(run=command.run_of("jax_mdlm.experiments.sweep"))


def _repeats(tasks: Any) -> None:
    """The flags of `evaluate repeats`."""
    task = tasks.add_parser(
        "repeats", help="exact match and lost repeats of numbers", description=_REPEATS
    )
    task.add_argument("--workdir", action="append", default=[], metavar="[NAME=]DIR[,DIR...]")
    task.add_argument("--split", choices=["validation", "test"], default="test")
    task.add_argument("--file", default="", help="JSONL rows instead of a split of the source")
    task.add_argument("--limit", type=int, default=0, help="rows at most; 0 = all")
    _add_too_long(task)
    task.add_argument("--write", metavar="FILE", default="", help="write rows instead of scoring")
    task.add_argument("--json", action="store_true", help="one JSON object instead of text")
    task.set_defaults(run=command.run_of("jax_mdlm.experiments.repeats"))


def _slack(tasks: Any) -> None:
    """The flags of `evaluate slack`."""
    task = tasks.add_parser("slack", help="where slack stands", description=_SLACK)
    task.add_argument("--workdir", required=True, help="work directory of a training run")
    task.add_argument("--split", choices=["validation", "test"], default="validation")
    task.add_argument("--file", default="", help="JSONL rows instead of a split of the source")
    task.add_argument("--limit", type=int, default=0, help="rows at most; 0 = all")
    task.add_argument("--bins", type=int, default=10, help="parts of a response, and of its calls")
    task.add_argument("--figure", metavar="FILE", default="", help="*.png, *.svg or *.pdf")
    task.add_argument("--json", action="store_true", help="one JSON object instead of text")
    task.set_defaults(run=command.run_of("jax_mdlm.experiments.slack"))


def _add_too_long(task: argparse.ArgumentParser) -> None:
    """The flag that says what becomes of a row that the model cannot take."""
    task.add_argument(
        "--too-long",
        choices=["error", "empty"],
        default="error",
        help="rows that do not fit the model: refuse, or leave the answer empty, which is wrong",
    )
