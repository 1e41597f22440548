"""Pairs of answers to a judge and back: which are to be judged, and the judge's replies in order.

Enters: questions and two models' answers. Leaves: rows of judgments as the benchmark writes them.
"""

import collections
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from jax_mdlm.config import ConfigError
from jax_mdlm.evaluation.judge.client import RefusedRequest
from jax_mdlm.evaluation.judge.records import (
    Benchmark,
    ChatMessages,
    Comparison,
    Match,
    ModelAnswer,
    Question,
)

_REFUSALS = 3

Ask = Callable[[ChatMessages], str]


def find_matches(
    benchmark: Benchmark,
    questions: Sequence[Question],
    first: Sequence[ModelAnswer],
    second: Sequence[ModelAnswer],
) -> list[Match]:
    """What there is to judge.

    Args:
      benchmark: Makes the prompts.
      questions: Of the benchmark.
      first: Answers of the model that is measured.
      second: Answers of the model that it is measured against.

    Raises:
      ConfigError: a question without an answer of both, or with an answer to other turns.
    """
    answers = [{answer.key: answer for answer in one} for one in (first, second)]
    matches = []
    for question in questions:
        pair = [_find(question, known) for known in answers]
        matches += benchmark.matches(question, *pair)
    return matches


def not_judged(matches: Sequence[Match], done: Sequence[Comparison]) -> list[Match]:
    """The matches that no judgment is of, with or without a verdict."""
    judged = {(one.question, one.unit, frozenset((one.model, one.baseline))) for one in done}
    return [
        match
        for match in matches
        if (match.item, match.unit, frozenset((match.first.model, match.second.model)))
        not in judged
    ]


def judge_matches(
    matches: Sequence[Match], ask: Ask, *, parallel: int
) -> Iterator[tuple[Match, tuple[str, str]]]:
    """Asks the judge about each match in both orders.

    Args:
      matches: In the order of the results.
      ask: Sends a conversation and returns the reply; is called from several threads.
      parallel: Matches under way at a time.

    Yields:
      A match and the replies to its prompts; empty ones, in which no verdict is found, where the
      server refuses the conversation: one that is too long must not stop the others.

    Raises:
      RefusedRequest: as the first `_REFUSALS` conversations are, so it is not about them.
      ConfigError: a request fails for good; matches that come much later are not begun.
    """
    pool, held, answered = ThreadPoolExecutor(parallel), [], False
    waiting: collections.deque[tuple[Match, Future[tuple[str, str]]]] = collections.deque()
    todo = iter(matches)
    try:
        while True:
            # Not all at once: after a failure, what is under way is still paid for.
            for match in itertools.islice(todo, 2 * parallel - len(waiting)):
                waiting.append((match, pool.submit(_judge, match, ask)))
            if not waiting:
                return
            match, future = waiting.popleft()
            try:
                held.append((match, future.result()))
                answered = True
            except RefusedRequest:
                held.append((match, ("", "")))
                if not answered and len(held) in (_REFUSALS, len(matches)):
                    raise
            if answered:
                yield from held
                held.clear()
    finally:
        pool.shutdown(cancel_futures=True)


def one_model(answers: Sequence[ModelAnswer], file: str, model: str | None) -> list[ModelAnswer]:
    """The answers of one model out of a file.

    Args:
      answers: All of the file.
      file: Its name, for messages.
      model: Which; None = there is only one.

    Raises:
      ConfigError: no such model, or several to choose from.
    """
    names = list(dict.fromkeys(answer.model for answer in answers))
    if not names:
        raise ConfigError(f"{file} must hold answers, it is empty")
    if model is None and len(names) == 1:
        model = names[0]
    if model not in names:
        expected = "one of its models after #" if model is None else f"answers of {model}"
        raise ConfigError(
            f"--answers {file} needs {expected}; it holds: {', '.join(names)}; write FILE#MODEL"
        )
    return [answer for answer in answers if answer.model == model]


def _judge(match: Match, ask: Ask) -> tuple[str, str]:
    return ask(match.prompts[0]), ask(match.prompts[1])


def _find(question: Question, answers: dict[str, ModelAnswer]) -> ModelAnswer:
    if question.key not in answers:
        model = next(iter(answers.values())).model
        raise ConfigError(
            f"question {question.key} must have an answer of {model}, it has none; finish its "
            "answers, or give both models the same --questions"
        )
    answer = answers[question.key]
    if len(answer.turns) != len(question.turns):
        raise ConfigError(
            f"the answer of {answer.model} to question {question.key} must have "
            f"{len(question.turns)} turns, it has {len(answer.turns)}; answer it again"
        )
    return answer
