"""MT-Bench: https://github.com/lm-sys/FastChat, fastchat/llm_judge, commit 0e6d3e4 (Apache-2.0).

Questions, `data/mt_bench/question.jsonl`: `question_id`, `category`, `turns` (two), some with a
`reference`. Answers, written by `gen_model_answer.py` to `model_answer/MODEL.jsonl`: `question_id`,
`answer_id`, `model_id`, `choices` (`index`, `turns`), `tstamp`. Judgments, written by `common.py`:
`model_judgment/JUDGE_single.jsonl` has `question_id`, `model`, `judge`, `score` (1 to 10, -1 where
none was read), `turn`; `JUDGE_pair.jsonl` has `model_1`, `model_2`, and `g1_winner`, `g2_winner`
(`model_1`, `model_2`, `tie`, `error`), in the second game the answers change places.
"""

import dataclasses
import re
import uuid
from pathlib import Path
from typing import Any

from jax_mdlm.evaluation.judge.records import (
    JUDGE_PROMPT,
    TIE,
    ChatMessages,
    Comparison,
    DecodedTurns,
    Grade,
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
    "Give your reasons briefly, then end with your verdict: [[A]] if A is better, [[B]] if B is "
    "better, [[C]] if they are equally good."
)
_SECOND_TURN = "Judge the answers to the second request; what came before is their context."
_LABEL = re.compile(r"\[\[([ABC])\]\]")
_WINNERS = ("model_1", "model_2", "tie", "error")


@dataclasses.dataclass(frozen=True)
class MtBench:
    """The files of MT-Bench."""

    scale: str = "1 to 10"
    shortest: int = 1
    hint: str = "FastChat reads fastchat/llm_judge/data/mt_bench/model_answer/{model}.jsonl"

    def read_questions(self, path: str) -> list[Question]:
        """`question.jsonl`."""
        rows = read_object_lines(path, "an MT-Bench question")
        return keyed([_question(row) for row in rows], path)

    def answer_row(
        self,
        question: Question,
        model: str,
        decoded: DecodedTurns,
        settings: dict[str, Any],
        time: float,
    ) -> dict[str, Any]:
        """As `gen_model_answer.get_model_answers`, with one choice."""
        return {
            "question_id": question.row["question_id"],
            "answer_id": uuid.uuid4().hex,
            "model_id": model,
            "choices": [{"index": 0, "turns": list(decoded.turns)}],
            "tstamp": time,
        }

    def write_answers(self, path: Path, rows: list[dict[str, Any]]) -> None:
        """`model_answer/MODEL.jsonl`."""
        write_lines(path, rows)

    def read_own(self, path: str, model: str) -> list[ModelAnswer]:
        """The same file; it has one model."""
        return only(self.read_answers(path), model, path)

    def read_answers(self, path: str) -> list[ModelAnswer]:
        """`model_answer/MODEL.jsonl`; as the judge, only the first choice."""
        return [
            ModelAnswer(
                key=row.label("question_id"),
                model=row.text("model_id"),
                turns=_texts(row, "choices", 0, "turns"),
                row=row.fields,
            )
            for row in read_object_lines(path, "an MT-Bench answer")
        ]

    def matches(self, question: Question, first: ModelAnswer, second: ModelAnswer) -> list[Match]:
        """One match a turn; the second turn's prompt shows both."""
        return [
            Match(
                question,
                question.key,
                str(turn),
                first,
                second,
                (_prompt(question, turn, first, second), _prompt(question, turn, second, first)),
            )
            for turn in range(1, len(question.turns) + 1)
        ]

    def judgment_rows(
        self, match: Match, replies: tuple[str, str], judge: Judge
    ) -> list[dict[str, Any]]:
        """As `common.play_a_match_pair`."""
        row: dict[str, Any] = {
            "question_id": match.question.row["question_id"],
            "model_1": match.first.model,
            "model_2": match.second.model,
            "g1_winner": _winner(replies[0], a="model_1", b="model_2"),
            "g2_winner": _winner(replies[1], a="model_2", b="model_1"),
            "judge": [judge.model, JUDGE_PROMPT + ("" if match.unit == "1" else "-multi-turn")],
        }
        for game, prompt, reply in zip(("g1", "g2"), match.prompts, replies, strict=True):
            row |= {f"{game}_user_prompt": prompt[-1]["content"], f"{game}_judgment": reply}
        return [row | {"turn": int(match.unit), "tstamp": judge.time}]

    def write_judgments(self, path: Path, rows: list[dict[str, Any]]) -> None:
        """`model_judgment/JUDGE_pair.jsonl`."""
        write_lines(path, rows)

    def read_judgments(self, path: str) -> Judgments:
        """`JUDGE_single.jsonl` or `JUDGE_pair.jsonl`."""
        rows = read_object_lines(path, "an MT-Bench judgment")
        pairs = tuple(_comparison(row) for row in rows if row.has("model_1"))
        grades = tuple(_grade(row) for row in rows if not row.has("model_1"))
        return Judgments(pairs, grades, [row.fields for row in rows])


def verdict(reply: str) -> str | None:
    """A, B or C (a tie): the last label of a judge's reply, which is where it was asked for."""
    found = _LABEL.findall(reply)
    return found[-1] if found else None


def _question(row: Row) -> Question:
    turns = _texts(row, "turns")
    if row.has("reference"):
        _texts(row, "reference")
    return Question(row.label("question_id"), (), turns, row.fields)


def _texts(row: Row, *path: str | int) -> tuple[str, ...]:
    found = tuple(row.text(*path, number) for number in range(len(row.entries(*path))))
    if not found:
        raise row.wrong(f"at least one text in {path[-1]}", [])
    return found


def _prompt(question: Question, turn: int, a: ModelAnswer, b: ModelAnswer) -> ChatMessages:
    """The layout of `data/judge_prompts.jsonl`, with an instruction of our own."""
    if turn == 1:
        parts = [f"[User Question]\n{question.turns[0]}", *_reference(question, turn)]
        for name, answer in (("A", a), ("B", b)):
            parts.append(
                f"[The Start of Assistant {name}'s Answer]\n{quoted(answer.turns[0])}\n"
                f"[The End of Assistant {name}'s Answer]"
            )
        return judge_messages(instruction(_VERDICT), "\n\n".join(parts))
    parts = list(_reference(question, turn))
    for name, answer in (("A", a), ("B", b)):
        talk = [
            f"### User:\n{asked}\n\n### Assistant {name}:\n{quoted(said)}"
            for asked, said in zip(question.turns[:turn], answer.turns[:turn], strict=True)
        ]
        title = f"Assistant {name}'s Conversation with User|>"
        parts.append("\n\n".join([f"<|The Start of {title}", *talk, f"<|The End of {title}"]))
    told = instruction(_VERDICT, about=_SECOND_TURN)
    return judge_messages(told, "\n\n".join(parts))


def _reference(question: Question, turn: int) -> list[str]:
    """The question file's own references, up to a turn."""
    references = (question.row.get("reference") or [])[:turn]
    if not references:
        return []
    text = "\n\n".join(references)
    return [f"[The Start of Reference Answer]\n{text}\n[The End of Reference Answer]"]


def _winner(reply: str, *, a: str, b: str) -> str:
    return {"A": a, "B": b, "C": "tie", None: "error"}[verdict(reply)]


def _comparison(row: Row) -> Comparison:
    """As `show_result.py`: a win needs both orders, a tie or a change of mind is a tie."""
    winners = [row.text("g1_winner"), row.text("g2_winner")]
    for winner in winners:
        if winner not in _WINNERS:
            raise row.wrong(f"a winner out of {', '.join(_WINNERS)}", winner)
    if "error" in winners:
        outcome = None
    elif winners[0] != winners[1] or "tie" in winners:
        outcome = TIE
    else:
        outcome = 1.0 if winners[0] == "model_1" else 0.0
    return Comparison(
        question=row.label("question_id"),
        unit=row.label("turn") if row.has("turn") else "1",
        model=row.text("model_1"),
        baseline=row.text("model_2"),
        outcome=outcome,
    )


def _grade(row: Row) -> Grade:
    score = row.number("score")
    return Grade(row.label("question_id"), row.text("model"), None if score == -1 else score)
