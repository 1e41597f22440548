"""What a judge of ours is told. The layout around it and the verdict are each benchmark's own.

The official judges have longer instructions; figures to be compared with published ones need the
official tools. These words serve to compare two models of one's own.
"""

from jax_mdlm.evaluation.judge.records import ChatMessages

NAME = "jax-mdlm-pair"  # stands in judgments where the tools name their prompt

_TASK = (
    "Two AI assistants, A and B, were given the same request. Decide which answer serves the user "
    "better. Look first for what is wrong or left out, then at how well the answer does what was "
    "asked, then at how clearly it says it. Neither the order nor the length of the answers is a "
    "reason to prefer one."
)
_EMPTY = "(this answer is empty)"


def instruction(verdict: str, *, about: str = "") -> str:
    """The judge's instruction.

    Args:
      verdict: How the verdict is to be written.
      about: What is special about the request.
    """
    return " ".join(part for part in (_TASK, about, verdict) if part)


def conversation(system: str, user: str) -> ChatMessages:
    """The two messages that a judge gets."""
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def quoted(answer: str) -> str:
    """An answer as the judge sees it: an empty one is named, so that it is not overlooked."""
    return answer if answer.strip() else _EMPTY
