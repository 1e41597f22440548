"""Creative Writing v3: https://github.com/EQ-bench/creative-writing-bench, at commit e7ab009.

Questions, `data/creative_writing_prompts_v3.json`: an object of `writing_prompt` (with the
placeholder <SEED>) and `seed_modifiers`, by prompt id; iteration `i` uses modifier `i`. Answers and
grades share the runs file of `core/benchmark.py`: run key -> `creative_tasks` -> iteration ->
prompt id -> a task (`core/conversation.py`) with `status` and `results_by_modifier`, where
`model_response` is the answer and `judge_scores` are 0 to 20 per criterion. A task that is written
with the status `generated` is judged by the official command and not generated again. Comparisons
stand in the Elo file of `core/elo.py`: model -> `elo_analysis` -> `pairwise_comparisons`, a row per
order.

The repository has no licence: only names of fields and criteria are taken from it.
"""

import dataclasses
import datetime
import json
import re
from pathlib import Path
from typing import Any

from jax_mdlm.evaluation.judge.records import (
    ChatMessages,
    Comparison,
    DecodedTurns,
    Grade,
    Judge,
    Judgments,
    Match,
    ModelAnswer,
    Question,
    judge_messages,
    keyed,
    quoted,
)
from jax_mdlm.evaluation.judge.rows import Row, read_object, write_json

A, B = "A0493", "A0488"  # what the two writers are called
CRITERIA = {
    "character_authenticity_insight": "believable characters, seen into",
    "interesting_original": "interest and originality",
    "writing_quality": "quality of the prose",
    "coherence": "a plot, choices and images that hold together",
    "instruction_following": "doing what the prompt asks",
    "world_and_atmosphere": "world and atmosphere",
    "avoids_cliches": "freedom from cliches",
    "avoids_verbosity": "freedom from wordiness and showy vocabulary",
    "avoids_poetic_overload": "freedom from needless metaphors",
}
# The official sum also takes the pluses of these from the loser: they count twice.
_TWICE = ("avoids_poetic_overload", "coherence", "avoids_verbosity")
_MOST = 5 * len(CRITERIA)  # pluses, each counted once: what margins are divided by

INSTRUCTION = (
    f"Two writers, {A} and {B}, answered the same writing prompt. Compare them on each of these "
    "criteria and name the better one every time, there are no draws: "
    + "; ".join(f"{name} ({meaning})" for name, meaning in CRITERIA.items())
    + ". A text may end in the middle because it was cut; that is no fault. Reply with one JSON "
    'object that has the field "reasons", your reasons in a few sentences, and a field for each '
    f'criterion by its name: the better writer with one to five pluses, for example "{A}++" or '
    f'"{B}+".'
)


def read_pluses(reply: str) -> tuple[int, int] | None:
    """Pluses of A and B, weighted as officially; None where the reply holds no criterion."""
    begin, end = reply.find("{"), reply.rfind("}")
    try:
        found = json.loads(reply[begin : end + 1])
    except ValueError:
        return None
    verdicts = {name: found[name] for name in CRITERIA if isinstance(found.get(name), str)}
    if not any(label in verdict for verdict in verdicts.values() for label in (A, B)):
        return None
    sums = {A: 0, B: 0}
    for name, verdict in verdicts.items():
        winner = A if A in verdict else B if B in verdict else None
        if winner:
            sums[winner] += verdict.count("+")
            if name in _TWICE:
                sums[B if winner == A else A] -= verdict.count("+")
    return sums[A], sums[B]


def outcome_fields(reply: str, *, first_is_a: bool) -> dict[str, Any]:
    """The fields of a comparison that say who won.

    Args:
      reply: The judge's.
      first_is_a: Whether the measured model was A.
    """
    order = f"{A}:test / {B}:other" if first_is_a else f"{A}:other / {B}:test"
    common = {"order": order, "judge_response": {"reply": reply}}
    sums = read_pluses(reply)
    if sums is None:
        # What the official tool writes, whose solver leaves rows with an error out.
        neutral = {"outcome_for_test_model": 0.5, "plus_for_test": 0, "plus_for_other": 0}
        error = "no verdict in the judge's reply"
        return common | neutral | {"error": error, "fraction_for_test": 0.5}
    own, other = sums if first_is_a else sums[::-1]
    outcome = 0.5 if own == other else float(own > other)
    share = abs(own - other) / _MOST
    margin = (0.5 + share / 2) if outcome != 0.5 else 0.5
    return common | {
        "outcome_for_test_model": outcome,
        "plus_for_test": own,
        "plus_for_other": other,
        "plus_diff": abs(own - other),
        "plus_diff_normalized": share,
        "plus_diff_blended": share,
        "fraction_for_test": margin if outcome >= 0.5 else 1 - margin,
    }


RUN_ID = "jax-mdlm"  # the official command finds our run by it
SHORTEST = 500  # characters; of a shorter answer the official tool says that generation failed
JUDGED_CHARACTERS = 4000  # of an answer, in a comparison (LENGTH_TRUNCATION_CHARS)
LOWER_IS_BETTER = frozenset(  # data/negative_criteria.txt
    [
        "Unearned Transformations",
        "Incongruent Ending Positivity",
        "Overwrought",
        "Purple Prose",
        "Amateurish",
        "Unsurprising or Uncreative",
        "Tell-Don't-Show",
        "Weak Dialogue",
        "Meandering",
    ]
)
_LARGEST = 20.0  # of a criterion
_JUDGED = ("completed", "judged")
_RUN, _ELO = "a creative writing runs file", "a creative writing Elo file"


@dataclasses.dataclass(frozen=True)
class CreativeWriting:
    """The files of EQ-Bench Creative Writing.

    Attributes:
      iterations: Answers to each prompt, each with another modifier; official results have 3.
      judge: Model that the official tool is to judge our answers with: it takes it from the file.
    """

    iterations: int = 1
    judge: str = "anthropic/claude-3.7-sonnet"
    scale: str = "0 to 100"
    shortest: int = SHORTEST

    @property
    def hint(self) -> str:
        """The official command that judges the answers."""
        return (
            f"judge with creative_writing_bench.py --test-model {{model}} --judge-model "
            f"{self.judge} --runs-file {{file}} --run-id {RUN_ID} --iterations {self.iterations}"
        )

    def read_questions(self, path: str) -> list[Question]:
        """The prompts of all iterations, one iteration after the other."""
        file = read_object(path, "a creative writing prompt file")
        questions = [
            _question(Row(f"{path}: prompt {name}", "a creative writing prompt", prompt), name, i)
            for i in range(1, self.iterations + 1)
            for name in file.fields
            for prompt in [file.mapping(name)]
        ]
        return keyed(questions, path)

    def answer_row(
        self,
        question: Question,
        model: str,
        decoded: DecodedTurns,
        settings: dict[str, Any],
        time: float,
    ) -> dict[str, Any]:
        """As `CreativeWritingTask.to_dict` after generation."""
        row, text = question.row, decoded.turns[0].strip()
        result: dict[str, Any] = {"model_response": text, "generation_failed": False}
        if len(text) < SHORTEST:
            result = {
                "generation_failed": True,
                "error_message": f"{len(text)} of at least {SHORTEST} characters",
                "short_response": text,
            }
        return {
            "prompt_id": row["prompt_id"],
            "base_prompt": row["writing_prompt"],
            "seed_modifiers": [row["seed"]],
            "iteration_index": row["iteration"],
            "test_model": model,
            "judge_model": self.judge,
            "status": "generated",
            "start_time": time,
            "end_time": time,
            "error": None,
            "results_by_modifier": {row["seed"]: result},
        }

    def write_answers(self, path: Path, rows: list[dict[str, Any]]) -> None:
        """Our run in a runs file; other runs in it stay."""
        runs = read_object(path, _RUN).fields if path.is_file() else {}
        model = rows[0]["test_model"]
        begun = datetime.datetime.fromtimestamp(rows[0]["start_time"]).isoformat()
        new = {
            "test_model": model,
            "judge_model": rows[0]["judge_model"],
            "start_time": begun,
            "status": "running",
            "creative_prompts_file": "data/creative_writing_prompts_v3.json",
            "results": {},
        }
        tasks: dict[str, dict[str, Any]] = {}
        for row in rows:
            tasks.setdefault(str(row["iteration_index"]), {})[row["prompt_id"]] = row
        key = _run_key(model)
        write_json(path, runs | {key: runs.get(key, new) | {"creative_tasks": tasks}})

    def read_own(self, path: str, model: str) -> list[ModelAnswer]:
        """The tasks of our run; the file may hold runs of the official tool, of any model."""
        file, key = read_object(path, _RUN), _run_key(model)
        runs = {key: file.mapping(key)} if file.has(key) else {}
        return _answers(dataclasses.replace(file, fields=runs))

    def read_answers(self, path: str) -> list[ModelAnswer]:
        """The tasks of all runs."""
        return _answers(read_object(path, _RUN))

    def matches(self, question: Question, first: ModelAnswer, second: ModelAnswer) -> list[Match]:
        """One match an iteration."""
        prompts = _prompt(question, first, second), _prompt(question, second, first)
        item, iteration = question.row["prompt_id"], question.row["iteration"]
        return [Match(question, item, f"{iteration}-{iteration}", first, second, prompts)]

    def judgment_rows(
        self, match: Match, replies: tuple[str, str], judge: Judge
    ) -> list[dict[str, Any]]:
        """As `elo._judge_item_iteration_pairs_in_parallel_cw`, a row per order."""
        rows, iteration = [], str(match.question.row["iteration"])
        for reply, first_is_a in zip(replies, (True, False), strict=True):
            rows.append(
                {
                    "item_id": match.item,
                    "pair": {
                        "test_model": match.first.model,
                        "neighbor_model": match.second.model,
                        "test_model_iteration_id": iteration,
                        "neighbor_model_iteration_id": iteration,
                    },
                    "item_length": {
                        "test_model": len(_cut(match.first)),
                        "neighbor_model": len(_cut(match.second)),
                    },
                    "judge": judge.model,
                    **outcome_fields(reply, first_is_a=first_is_a),
                }
            )
        return rows

    def write_judgments(self, path: Path, rows: list[dict[str, Any]]) -> None:
        """The comparisons in an Elo file; what else it holds stays."""
        file = read_object(path, _ELO).fields if path.is_file() else {"__metadata__": {}}
        by_model: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_model.setdefault(row["pair"]["test_model"], []).append(row)
        for model, comparisons in by_model.items():
            entry = file.setdefault(model, {})
            analysis = entry.setdefault("elo_analysis", {"final_elo_ratings": {}})
            analysis["pairwise_comparisons"] = comparisons
        write_json(path, file)

    def read_judgments(self, path: str) -> Judgments:
        """Grades of a runs file, or comparisons of an Elo file."""
        file = read_object(path, _ELO)
        if any(isinstance(run, dict) and "creative_tasks" in run for run in file.fields.values()):
            tasks = [row for row in _tasks(file) if row.fields.get("status") in _JUDGED]
            grades = tuple(_grade(row) for row in tasks)
            return Judgments((), grades, [row.fields for row in tasks])
        rows = list(_comparison_rows(file))
        return Judgments(tuple(map(_comparison, rows)), (), [row.fields for row in rows])


def _question(row: Row, prompt: str, iteration: int) -> Question:
    seeds = row.entries("seed_modifiers")
    if not seeds:
        raise row.wrong("at least one of seed_modifiers", seeds)
    seed = row.text("seed_modifiers", (iteration - 1) % len(seeds))
    text = row.text("writing_prompt")
    known = {"prompt_id": prompt, "writing_prompt": text, "seed": seed, "iteration": iteration}
    return Question(_key(prompt, iteration), (), (text.replace("<SEED>", seed),), known)


def _key(prompt: str, iteration: Any) -> str:
    return f"{prompt}/{iteration}"


def _run_key(model: str) -> str:
    """As the official command makes it of --run-id and --test-model."""
    return f"{RUN_ID}__{re.sub(r'[^a-zA-Z0-9_-]+', '_', model)}"


def _answers(file: Row) -> list[ModelAnswer]:
    return [
        ModelAnswer(
            key=_key(row.text("prompt_id"), row.fields.get("iteration_index")),
            model=row.text("test_model"),
            turns=(_response(row),),
            row=row.fields,
        )
        for row in _tasks(file)
    ]


def _tasks(file: Row) -> list[Row]:
    tasks = []
    for run in file.fields:
        for iteration, prompts in file.mapping(run, "creative_tasks").items():
            for name in prompts:
                task = file.mapping(run, "creative_tasks", iteration, name)
                origin = f"{file.origin}: {run}, iteration {iteration}, prompt {name}"
                tasks.append(Row(origin, "a creative writing task", task))
    return tasks


def _response(row: Row) -> str:
    texts = []
    for seed in row.mapping("results_by_modifier"):
        result = row.mapping("results_by_modifier", seed)
        texts.append(result.get("model_response") or result.get("short_response") or "")
    return "\n".join(texts)


def _cut(answer: ModelAnswer) -> str:
    return answer.turns[0][:JUDGED_CHARACTERS]


def _prompt(question: Question, a: ModelAnswer, b: ModelAnswer) -> ChatMessages:
    parts = [f"[Writing prompt]\n{question.turns[0]}\n[End of the writing prompt]"]
    for name, answer in ((A, a), (B, b)):
        text = quoted(_cut(answer))
        parts.append(f"[Writer {name}]\n{text}\n[End of writer {name}]")
    return judge_messages(INSTRUCTION, "\n\n".join(parts))


def _grade(row: Row) -> Grade:
    """As `scoring.compute_creative_scores`: the mean over criteria, times 5."""
    scores = []
    for seed in row.mapping("results_by_modifier"):
        result = row.mapping("results_by_modifier", seed)
        for criterion, score in (result.get("judge_scores") or {}).items():
            if isinstance(score, (int, float)) and score <= _LARGEST:
                scores.append(_LARGEST - score if criterion in LOWER_IS_BETTER else score)
    mean = 100 / _LARGEST * sum(scores) / len(scores) if scores else None
    return Grade(row.text("prompt_id"), row.text("test_model"), mean)


def _comparison_rows(file: Row) -> list[Row]:
    rows = []
    for model in file.fields:
        if model == "__metadata__":
            continue
        path = (model, "elo_analysis", "pairwise_comparisons")
        for number in range(len(file.entries(*path))):
            origin = f"{file.origin}: {model}, comparison {number + 1}"
            found = file.mapping(*path, number)
            rows.append(Row(origin, "a creative writing comparison", found))
    return rows


def _comparison(row: Row) -> Comparison:
    units = [row.label("pair", f"{who}_model_iteration_id") for who in ("test", "neighbor")]
    return Comparison(
        question=row.text("item_id"),
        unit="-".join(units),
        model=row.text("pair", "test_model"),
        baseline=row.text("pair", "neighbor_model"),
        outcome=None if row.has("error") else row.number("outcome_for_test_model"),
    )
