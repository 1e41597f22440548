"""WildBench v2: https://github.com/allenai/WildBench, at commit d6b8dca (Apache-2.0).

Questions are the rows of the dataset `allenai/WildBench` (v2), saved as JSON or JSONL:
`session_id`, `conversation_input` (messages, the user's last), `checklist`, `primary_tag`. Answers,
written by `src/unified_utils.py` (save_outputs) to `result_dirs/wild_bench_v2/MODEL.json`: a list
of `session_id`, `chat_history`, `model_input`, `output`, `generator`, `configs`, `dataset`,
`primary_tag`, in the order of the dataset. Judgments are lists too; with
`src/openai_batch_eval/batch_results_format.py` of `session_id`, `parsed_result`, `meta_data` and
either `model_test`, `score`, `model_output` or `model_A`, `model_B`, `winner`, `extent`,
`model_outputs`; with `src/eval.py` alone of `session_id`, `generator`, `parsed_result` and, for a
pair, `ref_generator` and `assignment`.

The official tools judge a pair once, in an order drawn at random; `compare` writes a row per order.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from jax_mdlm.data.examples import parse_messages
from jax_mdlm.evaluation.judge.records import (
    A_IS_BETTER,
    B_IS_BETTER,
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
from jax_mdlm.evaluation.judge.rows import Row, read_list, read_object_lines, write_json

_VERDICT = (
    'Reply with one JSON object with the fields "reason", your reasons in a few sentences, and '
    '"choice", one of "A++" (A is much better), "A+" (slightly better), "A=B" (equally good), "B+" '
    '(B is slightly better), "B++" (much better).'
)
_ABOUT = "The checklist names what a good answer should have; other merits and faults count too."
_CHOICES = {
    "A++": (A_IS_BETTER, 2),
    "A+": (A_IS_BETTER, 1),
    "A=B": (TIE, 0),
    "B+": (B_IS_BETTER, 1),
    "B++": (B_IS_BETTER, 2),
}
_CHOICE = re.compile(r'"choice"\s*:\s*"([^"]*)"')


@dataclasses.dataclass(frozen=True)
class WildBench:
    """The files of WildBench."""

    scale: str = "1 to 10"
    shortest: int = 1
    hint: str = "WildBench's src/eval.py reads it with --local_result_file {file}"

    def read_questions(self, path: str) -> list[Question]:
        """The dataset's rows: a JSON list, or JSONL."""
        read = read_list if path.endswith(".json") else read_object_lines
        return keyed([_question(row) for row in read(path, "a WildBench question")], path)

    def answer_row(
        self,
        question: Question,
        model: str,
        decoded: DecodedTurns,
        settings: dict[str, Any],
        time: float,
    ) -> dict[str, Any]:
        """As `unified_utils.save_outputs`; `configs` also holds how the run was sampled."""
        configs = {
            "engine": "jax_mdlm",
            "repetition_penalty": 1,
            "temperature": settings["temperature"],
            "top_p": settings["top_p"],
            "max_tokens": settings["limit"] or settings["length"],
        }
        return {
            "session_id": question.key,
            "chat_history": [message.content for message in question.given] + [*question.turns],
            "model_input": "n/a",  # what engines without a text prompt write there
            "output": [decoded.turns[0]],
            "generator": model,
            "configs": configs | {"sample": settings},
            "dataset": "wild_bench",
            "primary_tag": question.row["primary_tag"],
        }

    def write_answers(self, path: Path, rows: list[dict[str, Any]]) -> None:
        """`result_dirs/wild_bench_v2/MODEL.json`."""
        write_json(path, rows)

    def read_own(self, path: str, model: str) -> list[ModelAnswer]:
        """The same file; it has one model."""
        return only(self.read_answers(path), model, path)

    def read_answers(self, path: str) -> list[ModelAnswer]:
        """`result_dirs/wild_bench_v2/MODEL.json`; as the judge, only the first output."""
        answers = []
        for row in read_list(path, "a WildBench answer"):
            several = isinstance(row.fields.get("output"), list)
            text = row.text("output", 0) if several else row.text("output")
            answer = ModelAnswer(row.text("session_id"), row.text("generator"), (text,), row.fields)
            answers.append(answer)
        return answers

    def matches(self, question: Question, first: ModelAnswer, second: ModelAnswer) -> list[Match]:
        """One match a question."""
        prompts = _prompt(question, first, second), _prompt(question, second, first)
        return [Match(question, question.key, "", first, second, prompts)]

    def judgment_rows(
        self, match: Match, replies: tuple[str, str], judge: Judge
    ) -> list[dict[str, Any]]:
        """As `batch_results_format.py`, a row per order; an unread verdict has no winner."""
        rows = []
        orders = ((match.first, match.second), (match.second, match.first))
        for (a, b), reply in zip(orders, replies, strict=True):
            choice = read_choice(reply)
            outcome, extent = _CHOICES[choice] if choice else (None, None)
            winners = {A_IS_BETTER: a.model, B_IS_BETTER: b.model, TIE: "tie", None: None}
            rows.append(
                {
                    "session_id": match.question.key,
                    "parsed_result": {"choice": choice, "reply": reply},
                    "meta_data": {"judge": judge.model, "time": judge.time, "error": None},
                    "model_A": a.model,
                    "model_B": b.model,
                    "winner": winners[outcome],
                    "extent": extent,
                    "model_outputs": {a.model: a.turns[0], b.model: b.turns[0]},
                }
            )
        return rows

    def write_judgments(self, path: Path, rows: list[dict[str, Any]]) -> None:
        """One list."""
        write_json(path, rows)

    def read_judgments(self, path: str) -> Judgments:
        """Scores or pairs, of the batch tools or of `eval.py`."""
        rows = read_list(path, "a WildBench judgment")
        pairs = tuple(_comparison(row) for row in rows if _is_pair(row))
        grades = tuple(_grade(row) for row in rows if not _is_pair(row))
        return Judgments(pairs, grades, [row.fields for row in rows])


def read_choice(reply: str) -> str | None:
    """The choice in a judge's reply, which should be JSON; None if it is none of the five."""
    try:
        found = json.loads(reply)["choice"]
    except (ValueError, TypeError, KeyError):
        matches = _CHOICE.findall(reply)
        found = matches[-1] if matches else None
    return found if isinstance(found, str) and found in _CHOICES else None


def _question(row: Row) -> Question:
    messages = parse_messages(row.entries("conversation_input"), row.origin)
    if messages[-1].role != "user":
        raise row.wrong("a conversation_input that ends with the user", messages[-1].role)
    row.text("primary_tag")
    for number in range(len(row.entries("checklist"))):
        row.text("checklist", number)
    return Question(row.text("session_id"), messages[:-1], (messages[-1].content,), row.fields)


def _prompt(question: Question, a: ModelAnswer, b: ModelAnswer) -> ChatMessages:
    """The layout of `evaluation/eval_template.pairwise.v2.md`, with an instruction of our own."""
    past = "\n\n".join(f"{message.role.upper()}: {message.content}" for message in question.given)
    parts = [
        ("history", past),
        ("query", question.turns[0]),
        ("response_A", quoted(a.turns[0])),
        ("response_B", quoted(b.turns[0])),
        ("checklist", "\n".join(f"- {entry}" for entry in question.row["checklist"])),
    ]
    user = "\n\n".join(
        f"<|begin_of_{name}|>\n\n{text}\n\n<|end_of_{name}|>" for name, text in parts
    )
    return judge_messages(instruction(_VERDICT, about=_ABOUT), user)


def _is_pair(row: Row) -> bool:
    return row.has("model_A") or row.has("assignment")


def _comparison(row: Row) -> Comparison:
    """The model is A, whoever that was; `scores.win_rates` turns pairs the same way round."""
    if row.has("assignment"):
        a, b = row.text("assignment", "A"), row.text("assignment", "B")
        choice = row.mapping("parsed_result").get("choice")
        outcome = _CHOICES[choice][0] if choice in _CHOICES else None
    else:
        a, b = row.text("model_A"), row.text("model_B")
        winners = {a: A_IS_BETTER, b: B_IS_BETTER, "tie": TIE}
        outcome = None
        if row.has("winner"):
            winner = row.text("winner")
            if winner not in winners:
                raise row.wrong(f"a winner out of {a}, {b}, tie", winner)
            outcome = winners[winner]
    return Comparison(row.text("session_id"), "", a, b, outcome)


def _grade(row: Row) -> Grade:
    """`eval.py` leaves what it could not read as it is; it has no number then."""
    if row.has("model_test"):
        return Grade(row.text("session_id"), row.text("model_test"), row.number("score"))
    parsed = row.mapping("parsed_result")
    score = row.number("parsed_result", "score") if "score" in parsed else None
    return Grade(row.text("session_id"), row.text("generator"), score)
