"""The flags of scores, likelihoods and judges; the module of a task is imported when it runs."""

import argparse
from typing import Any

from jax_mdlm import command
from jax_mdlm.evaluation.harness.presets import PRESETS

_HARNESS = """\
Tasks of lm-evaluation-harness (extra `eval`), stock ones and local ones.

`--tasks` names them; a local one is a YAML file in a folder that `--include` names, with
`dataset_path: json` and its rows in `dataset_kwargs: {data_files: ...}`. `--preset` runs a task
under the settings of LLaDA's published numbers, but for what flags say. Without a length from
flags or a preset a task's own `max_gen_toks` is the canvas.
"""
BENCHMARKS = ("arena_hard", "mt_bench", "wildbench", "creative_writing")  # of `make_benchmark`


def add_evaluations(tasks: Any) -> None:
    """The tasks of `evaluate` that this room has."""
    for add_task in (_pronunciations, _likelihood, _harness, _judge):
        add_task(tasks)


def _pronunciations(tasks: Any) -> None:
    """The flags of `evaluate pronunciations`."""
    task = tasks.add_parser("pronunciations", help="phoneme and word error rate")
    task.add_argument("--workdir", required=True, help="work directory of a training run")
    task.add_argument("--split", choices=["validation", "test"], default="validation")
    task.add_argument("--limit", type=int, default=0, help="words at most; 0 = all")
    task.add_argument("--json", action="store_true", help="one JSON object instead of text")
    task.set_defaults(run=command.run_of("jax_mdlm.evaluation.pronunciations"))


def _likelihood(tasks: Any) -> None:
    """The flags of `evaluate likelihood`."""
    task = tasks.add_parser("likelihood", help="nats per token, or multiple choice")
    task.add_argument("--workdir", required=True, help="work directory of a training run")
    rows = task.add_mutually_exclusive_group(required=True)
    rows.add_argument("--file", help="JSON lines: conversations, or with --choices questions")
    rows.add_argument("--split", choices=["validation", "test"], help="the run's own rows")
    task.add_argument("--choices", action="store_true", help="score choices, take the likeliest")
    task.add_argument("--samples", type=int, default=128, help="masks drawn for a row")
    task.add_argument("--limit", type=int, default=0, help="rows at most; 0 = all")
    task.add_argument(
        "--end-padding",
        type=int,
        help="EOS slots after a response, scored with it; default: data.end_padding where every "
        "row of the training had it, else 0",
    )
    task.add_argument(
        "--marginal",
        action="store_true",
        help="also the likelihood of a single step, over all alignments of sample.length slots",
    )
    task.add_argument("--json", action="store_true", help="one JSON object instead of text")
    task.set_defaults(run=command.run_of("jax_mdlm.evaluation.likelihood"))


def _harness(tasks: Any) -> None:
    """The flags of `evaluate harness`."""
    task = tasks.add_parser(
        "harness",
        help="tasks of lm-evaluation-harness",
        description=_HARNESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    task.add_argument("--workdir", required=True, help="of a training run or an import")
    task.add_argument("--tasks", required=True, help="tasks, groups or tags, comma-separated")
    task.add_argument("--preset", choices=sorted(PRESETS), help="LLaDA's published settings")
    task.add_argument(
        "--include", action="append", default=[], metavar="DIR", help="folder with task files"
    )
    task.add_argument("--limit", type=float, help="documents a task; below 1: the share of them")
    task.add_argument("--num-fewshot", type=int, help="worked examples in a prompt")
    task.add_argument(
        "--apply-chat-template",
        action=argparse.BooleanOptionalAction,
        help="render prompts with the run's template, worked examples as turns",
    )
    task.add_argument("--samples", type=int, help="draws of a likelihood's estimate; default 128")
    task.add_argument(
        "--greedy",
        action="store_true",
        help="also decode continuations, for tasks that ask whether they are the first choice",
    )
    task.add_argument(
        "--allow-code",
        action="store_true",
        help="let tasks execute what the model wrote (MBPP, HumanEval); nothing confines it",
    )
    task.add_argument("--output", metavar="FILE", help="lm-eval's results as JSON")
    task.set_defaults(run=command.run_of("jax_mdlm.evaluation.harness.run"))


def _judge(tasks: Any) -> None:
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
