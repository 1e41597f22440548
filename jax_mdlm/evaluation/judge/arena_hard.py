"""Arena-Hard-Auto: https://github.com/lmarena/arena-hard-auto, at commit 196f6b8 (Apache-2.0).

Questions, `data/arena-hard-v2.0/question.jsonl`: `uid`, `category`, `prompt`. Answers, written by
`gen_answer.py` to `model_answer/MODEL.jsonl`: `uid`, `ans_id`, `model`, `messages` (the answer is
`{"answer": text}`), `tstamp`, `metadata`. Judgments, written by `gen_judgment.py` to
`model_judgment/JUDGE/MODEL.jsonl`: `uid`, `category`, `judge`, `model`, `baseline`, and two
`games`, the first with the baseline as A, each with `score` (`A>>B`, `A>B`, `A=B`, `B>A`, `B>>A`
or null), `judgment` and `prompt`.

`show_result.py` counts a verdict with `>>` three times; here each game counts once.
"""

import dataclasses
import re
import uuid
from pathlib import Path
from typing import Any

from jax_mdlm.evaluation.judge.records import (
    A_IS_BETTER,
    B_IS_BETTER,
    TIE,
    ChatMessages,
    Comparison,
    DecodedTurns,
    Judge,
    Judgments,
    Match,
    ModelAnswer,
    Question,
    instruction,
    judge_messages,
    keyed,
    only,
    quoted,
)
from jax_mdlm.evaluation.judge.rows import Row, read_object_lines, write_lines

_VERDICT = (
    "Give your reasons briefly, then end with one of these labels: [[A>>B]] A is much better, "
    "[[A>B]] A is slightly better, [[A=B]] they are equally good, [[B>A]] B is slightly better, "
    "[[B>>A]] B is much better."
)
# The labels that gen_judgment.py can read and show_result.py can count.
_OUTCOMES: dict[str, float] = {
    **dict.fromkeys(("A>>B", "A>B", "B<<A", "B<A"), A_IS_BETTER),
    **dict.fromkeys(("B>>A", "B>A", "A<<B", "A<B"), B_IS_BETTER),
    **dict.fromkeys(("A=B", "B=A"), TIE),
}
_LABELS = (re.compile(r"\[\[([AB<>=]+)\]\]"), re.compile(r"\[([AB<>=]+)\]"))


@dataclasses.dataclass(frozen=True)
class ArenaHard:
    """The files of Arena-Hard-Auto."""

    scale: str = ""
    shortest: int = 1
    hint: str = "arena-hard-auto reads data/arena-hard-v2.0/model_answer/{model}.jsonl"

    def read_questions(self, path: str) -> list[Question]:
        """`question.jsonl`."""
        rows = read_object_lines(path, "an Arena-Hard question")
        return keyed([_question(row) for row in rows], path)

    def answer_row(
        self,
        question: Question,
        model: str,
        decoded: DecodedTurns,
        settings: dict[str, Any],
        time: float,
    ) -> dict[str, Any]:
        """As `gen_answer.get_answer`.

        The counts in `metadata` serve the official style control. `token_len` is counted with the
        run's tokenizer, where `gen_answer.py` takes GPT-4o's; `utils/add_markdown_info.py` of the
        repository counts again.
        """
        (text,), (tokens,) = decoded.turns, decoded.tokens
        return {
            "uid": question.key,
            "ans_id": uuid.uuid4().hex,
            "model": model,
            "messages": [
                {"role": "user", "content": question.turns[0]},
                {"role": "assistant", "content": {"answer": text}},
            ],
            "tstamp": time,
            "metadata": {"token_len": tokens, **markdown_counts(text)},
        }

    def write_answers(self, path: Path, rows: list[dict[str, Any]]) -> None:
        """`model_answer/MODEL.jsonl`."""
        write_lines(path, rows)

    def read_own(self, path: str, model: str) -> list[ModelAnswer]:
        """The same file; it has one model."""
        return only(self.read_answers(path), model, path)

    def read_answers(self, path: str) -> list[ModelAnswer]:
        """`model_answer/MODEL.jsonl`."""
        return [
            ModelAnswer(
                key=row.label("uid"),
                model=row.text("model"),
                turns=(row.text("messages", -1, "content", "answer"),),
                row=row.fields,
            )
            for row in read_object_lines(path, "an Arena-Hard answer")
        ]

    def matches(self, question: Question, first: ModelAnswer, second: ModelAnswer) -> list[Match]:
        """One match a question."""
        prompts = _prompt(question, first, second), _prompt(question, second, first)
        return [Match(question, question.key, "", first, second, prompts)]

    def judgment_rows(
        self, match: Match, replies: tuple[str, str], judge: Judge
    ) -> list[dict[str, Any]]:
        """As `gen_judgment.judgment`; its first game has the baseline as A."""
        games = [
            {"score": label(reply), "judgment": {"answer": reply}, "prompt": prompt}
            for prompt, reply in zip(match.prompts, replies, strict=True)
        ]
        return [
            {
                "uid": match.question.key,
                "category": match.question.row["category"],
                "judge": judge.model,
                "model": match.first.model,
                "baseline": match.second.model,
                "games": games[::-1],
            }
        ]

    def write_judgments(self, path: Path, rows: list[dict[str, Any]]) -> None:
        """`model_judgment/JUDGE/MODEL.jsonl`."""
        write_lines(path, rows)

    def read_judgments(self, path: str) -> Judgments:
        """`model_judgment/JUDGE/MODEL.jsonl`; as there, a missing verdict takes its pair along."""
        rows = read_object_lines(path, "an Arena-Hard judgment")
        found = [
            Comparison(row.label("uid"), "", row.text("model"), row.text("baseline"), _outcome(row))
            for row in rows
        ]
        return Judgments(tuple(found), (), [row.fields for row in rows])


def label(reply: str) -> str | None:
    """The last label of a judge's reply; None if there is none that can be counted."""
    for pattern in _LABELS:
        found = pattern.findall(reply.upper())
        if found:
            return found[-1] if found[-1] in _OUTCOMES else None
    return None


def markdown_counts(text: str) -> dict[str, dict[str, int]]:
    """Headings, list items and bold passages of an answer, what stands in code left out.

    The same counts as `utils/add_markdown_info.py`, whose way to leave code out is to delete every
    copy of what stands between two fences.
    """
    for block in re.findall(r"```([^`]*)```", text):
        text = text.replace(block, "")

    def count(pattern: str) -> int:
        return len(re.findall(pattern, text, re.MULTILINE))

    return {
        "header_count": {f"h{level}": count(rf"^#{{{level}}}\s") for level in range(1, 7)},
        "list_count": {"ordered": count(r"^\s*\d+\.\s"), "unordered": count(r"^\s*[-*+]\s")},
        "bold_count": {"**": count(r"\*\*[^*\n]+\*\*"), "__": count(r"__[^_\n]+__")},
    }


def _question(row: Row) -> Question:
    row.text("category")
    return Question(row.label("uid"), (), (row.text("prompt"),), row.fields)


def _prompt(question: Question, a: ModelAnswer, b: ModelAnswer) -> ChatMessages:
    """The layout of `config/arena-hard-v2.0.yaml`, with an instruction of our own."""
    answers = [
        f"<|The Start of Assistant {name}'s Answer|>\n{quoted(answer.turns[0])}\n"
        f"<|The End of Assistant {name}'s Answer|>"
        for name, answer in (("A", a), ("B", b))
    ]
    user = "\n\n".join([f"<|User Prompt|>\n{question.turns[0]}", *answers])
    return judge_messages(instruction(_VERDICT), user)


def _outcome(row: Row) -> float | None:
    games = row.entries("games")
    if len(games) != 2:
        raise row.wrong("two games", games)
    outcomes = []
    for number, game in enumerate(games):
        if game is None or row.mapping("games", number).get("score") is None:
            return None
        score = row.text("games", number, "score")
        if score not in _OUTCOMES:
            raise row.wrong(f"a label such as A>B in games[{number}].score", score)
        outcomes.append(_OUTCOMES[score])
    return (1 - outcomes[0] + outcomes[1]) / 2
