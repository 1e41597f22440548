"""What the benchmarks have in common: questions, answers, matches, judgments.

Each benchmark module reads its own files into these and writes them back. Keys are strings, though
some files number their questions.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from jax_mdlm.config import ConfigError
from jax_mdlm.data.examples import Message

ChatMessages = list[dict[str, str]]  # role and content, as chat endpoints take them

A_IS_BETTER, TIE, B_IS_BETTER = 1.0, 0.5, 0.0

# What a judge of ours is told; the layout around it and the verdict are each benchmark's own. The
# official judges have longer instructions: figures to be compared with published ones need the
# official tools. These words serve to compare two models of one's own.
JUDGE_PROMPT = "jax-mdlm-pair"  # stands in judgments where the tools name their prompt

_TASK = (
    "Two AI assistants, A and B, were given the same request. Decide which answer serves the user "
    "better. Look first for what is wrong or left out, then at how well the answer does what was "
    "asked, then at how clearly it says it. Neither the order nor the length of the answers is a "
    "reason to prefer one."
)
_EMPTY = "(this answer is empty)"


@dataclasses.dataclass(frozen=True)
class Question:
    """What a model is asked.

    Attributes:
      key: Finds it again in answers and judgments.
      given: The conversation before.
      turns: What the user says; each is answered before the next is said.
      row: The object that it came from.
    """

    key: str
    given: tuple[Message, ...]
    turns: tuple[str, ...]
    row: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class DecodedTurns:
    """The answers to the turns of one question, fresh from the model.

    Attributes:
      turns: Texts.
      tokens: Their lengths, in tokens of the run's tokenizer.
    """

    turns: tuple[str, ...]
    tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ModelAnswer:
    """The same as read from a file.

    Attributes:
      key: Of its question.
      model: Who answered.
      turns: Texts.
      row: The object that it came from.
    """

    key: str
    model: str
    turns: tuple[str, ...]
    row: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Match:
    """Two answers to be judged in both orders.

    Attributes:
      question: The question.
      item: What judgments of it are grouped by (`Comparison.question`).
      unit: Which part of the item (`Comparison.unit`): a turn, an iteration, "" where there is one.
      first: The model that is measured.
      second: What it is measured against.
      prompts: To the judge; A is `first` in the first prompt and `second` in the other.
    """

    question: Question
    item: str
    unit: str
    first: ModelAnswer
    second: ModelAnswer
    prompts: tuple[ChatMessages, ChatMessages]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What judges said of two models on one part of a question.

    Attributes:
      question: What intervals resample; all judgments of a question share it.
      unit: Which part of it.
      model: The one that is measured.
      baseline: The other.
      outcome: 1 the model is better, 0 the baseline, 0.5 a tie or two orders that disagree; None
        where no verdict could be read.
    """

    question: str
    unit: str
    model: str
    baseline: str
    outcome: float | None


@dataclasses.dataclass(frozen=True)
class Grade:
    """The grade of one answer that was judged alone; None where none could be read."""

    question: str
    model: str
    score: float | None


@dataclasses.dataclass(frozen=True)
class Judgments:
    """A file of judgments.

    Attributes:
      comparisons: Of pairs; of a row that holds both orders, one.
      grades: Of single answers.
      rows: The objects that they came from, to be written back.
    """

    comparisons: tuple[Comparison, ...]
    grades: tuple[Grade, ...]
    rows: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Judge:
    """Who judged and when: what judgments say about themselves.

    Attributes:
      model: The judge's name.
      time: Seconds since 1970.
    """

    model: str
    time: float


class Benchmark(Protocol):
    """The files of one benchmark's tools, and how its pairs are judged."""

    @property
    def scale(self) -> str:
        """What the grade of a single answer is, e.g. "1 to 10"."""
        ...

    @property
    def shortest(self) -> int:
        """Characters that an answer must have for the official tools to judge it as any other."""
        ...

    @property
    def hint(self) -> str:
        """Where the official tools look for the answers; `{model}` and `{file}` are filled in."""
        ...

    def read_questions(self, path: str) -> list[Question]:
        """The question file."""
        ...

    def answer_row(
        self,
        question: Question,
        model: str,
        decoded: DecodedTurns,
        settings: dict[str, Any],
        time: float,
    ) -> dict[str, Any]:
        """One answer as the tools expect it; `settings` are those of `config.sample`."""
        ...

    def write_answers(self, path: Path, rows: list[dict[str, Any]]) -> None:
        """Replaces one model's answers."""
        ...

    def read_own(self, path: str, model: str) -> list[ModelAnswer]:
        """What `write_answers` wrote for a model.

        Raises:
          ConfigError: the file is another model's, and has no place for this one.
        """
        ...

    def read_answers(self, path: str) -> list[ModelAnswer]:
        """The answers in a file, of all models that it holds."""
        ...

    def matches(self, question: Question, first: ModelAnswer, second: ModelAnswer) -> list[Match]:
        """What there is to judge about two models' answers to a question."""
        ...

    def judgment_rows(
        self, match: Match, replies: tuple[str, str], judge: Judge
    ) -> list[dict[str, Any]]:
        """The judge's replies to both prompts as the tools write them."""
        ...

    def write_judgments(self, path: Path, rows: list[dict[str, Any]]) -> None:
        """Replaces the judgments."""
        ...

    def read_judgments(self, path: str) -> Judgments:
        """Judgments of the official tools, or ours."""
        ...


def only(answers: list[ModelAnswer], model: str, path: str) -> list[ModelAnswer]:
    """The answers, if all are of one model.

    Raises:
      ConfigError: one is not.
    """
    for answer in answers:
        if answer.model != model:
            raise ConfigError(
                f"{path} must hold answers of {model}, it has one of {answer.model}; choose "
                "another --output"
            )
    return answers


def keyed(questions: Sequence[Question], path: str) -> list[Question]:
    """The questions, if there are any and none has the key of another.

    Raises:
      ConfigError: none, or two with one key.
    """
    if not questions:
        raise ConfigError(f"{path} must hold questions, it is empty")
    seen: set[str] = set()
    for question in questions:
        if question.key in seen:
            raise ConfigError(f"{path}: two questions have the key {question.key}; remove one")
        seen.add(question.key)
    return list(questions)


def instruction(verdict: str, *, about: str = "") -> str:
    """The judge's instruction.

    Args:
      verdict: How the verdict is to be written.
      about: What is special about the request.
    """
    return " ".join(part for part in (_TASK, about, verdict) if part)


def judge_messages(system: str, user: str) -> ChatMessages:
    """The two messages that a judge gets."""
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def quoted(answer: str) -> str:
    """An answer as the judge sees it: an empty one is named, so that it is not overlooked."""
    return answer if answer.strip() else _EMPTY
