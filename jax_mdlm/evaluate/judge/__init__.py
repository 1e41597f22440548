"""`evaluate judge`: answers for official judges, a judge of one's own, win rates."""

from typing import Any

from jax_mdlm.evaluate.judge import answers, compare, report


def add(tasks: Any) -> None:
    """The actions of `evaluate judge`."""
    task = tasks.add_parser("judge", help="files of LLM judges: answers, comparisons, win rates")
    actions = task.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action in (answers, compare, report):
        action.add(actions)
