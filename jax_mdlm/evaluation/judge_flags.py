"""The flags of `evaluate judge`; the module of an action is imported when it runs."""

import argparse
from typing import Any

from jax_mdlm import command

BENCHMARKS = (
    "arena_hard",
    "mt_bench",
    "wildbench",
    "creative_writing",
)  # of `make_benchmark`


def add(tasks: Any) -> None:
    """The actions of `evaluate judge`."""
    task = tasks.add_parser("judge", help="files of LLM judges: answers, comparisons, win rates")
    actions = task.add_subparsers(dest="action", required=True, metavar="ACTION")
    for add_action in (_answers, _compare, _report):
        add_action(actions)


def _answers(actions: Any) -> None:
    """The flags of `evaluate judge answers`."""
    action = actions.add_parser("answers", help="a run's answers as the official judge reads them")
    _add_benchmark(action)
    action.add_argument("--questions", required=True, help="the benchmark's question file")
    action.add_argument("--workdir", required=True, help="work directory of a training run")
    action.add_argument("--model", required=True, help="what the run is called in the file")
    action.add_argument("--output", required=True, help="answers; the same command goes on")
    action.add_argument("--limit", type=int, default=0, help="questions at most; 0 = all")
    action.add_argument(
        "--too-long",
        choices=["error", "empty"],
        default="error",
        help="questions that do not fit the model: refuse, or leave the answer empty",
    )
    _add_iterations(action)
    action.add_argument(
        "--official-judge", metavar="NAME", help="creative_writing: judge that the file names"
    )
    action.set_defaults(run=command.run_of("jax_mdlm.evaluation.judge.answers"))


def _compare(actions: Any) -> None:
    """The flags of `evaluate judge compare`."""
    action = actions.add_parser("compare", help="let a judge compare two models, in both orders")
    _add_benchmark(action)
    action.add_argument("--questions", required=True, help="the benchmark's question file")
    action.add_argument(
        "--answers",
        required=True,
        action="append",
        metavar="FILE[#MODEL]",
        help="twice: the model that is measured, then the one it is measured against",
    )
    action.add_argument("--output", required=True, help="judgments; the same command goes on")
    action.add_argument("--url", required=True, help="base address, e.g. http://localhost:8000/v1")
    action.add_argument("--judge-model", required=True, metavar="NAME", help="as the server knows")
    action.add_argument("--key-env", metavar="VARIABLE", help="environment variable of the key")
    action.add_argument("--limit", type=int, default=0, help="questions at most; 0 = all")
    action.add_argument("--parallel", type=int, default=4, help="matches under way at a time")
    action.add_argument("--timeout", type=float, default=300.0, help="seconds without an answer")
    action.add_argument("--attempts", type=int, default=8, help="requests for one reply, at most")
    action.add_argument("--temperature", type=float, default=0.0, help="of the judge")
    action.add_argument("--max-tokens", type=int, default=0, help="of a reply; 0 = the server's")
    _add_iterations(action)
    action.set_defaults(run=command.run_of("jax_mdlm.evaluation.judge.compare"))


def _report(actions: Any) -> None:
    """The flags of `evaluate judge report`."""
    action = actions.add_parser("report", help="win rates and mean grades with 95 %% intervals")
    _add_benchmark(action)
    action.add_argument("--judgments", required=True, help="a file of judgments")
    action.add_argument("--baseline", metavar="MODEL", help="measure all others against it")
    action.add_argument("--json", action="store_true", help="one JSON object instead of text")
    action.set_defaults(run=command.run_of("jax_mdlm.evaluation.judge.report"))


def _add_benchmark(action: argparse.ArgumentParser) -> None:
    """The flag that all actions have."""
    action.add_argument("--benchmark", required=True, choices=BENCHMARKS)


def _add_iterations(action: argparse.ArgumentParser) -> None:
    """The flag of those that read questions."""
    text = "creative_writing: answers to each prompt (default 1)"
    action.add_argument("--iterations", type=int, help=text)
