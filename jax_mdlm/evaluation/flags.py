"""The flags of scores and likelihoods; the module of a task is imported when it runs."""

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


def add(tasks: Any) -> None:
    """The tasks of `evaluate` that this room has, but for the judge's."""
    for add_task in (_pronunciations, _likelihood, _harness):
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
