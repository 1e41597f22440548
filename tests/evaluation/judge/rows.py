"""Small files of the benchmarks' forms, with text of our own."""

import json
from pathlib import Path

from jax_mdlm.evaluation.judge import ArenaHard, Benchmark, CreativeWriting, MtBench, WildBench
from jax_mdlm.evaluation.judge.records import DecodedTurns

NAMES = ("arena_hard", "mt_bench", "wildbench", "creative_writing")


def make(name: str, **settings) -> Benchmark:
    kinds = (ArenaHard, MtBench, WildBench, CreativeWriting)
    return dict(zip(NAMES, kinds))[name](**settings)


def question_file(folder: Path, name: str) -> Path:
    """Three questions (creative writing: three prompts)."""
    texts = ["what is a slot?", "name a colour", "Zähle bis drei\nund zurück"]
    if name == "arena_hard":
        rows = [
            {"uid": f"u{i}", "category": "hard_prompt", "subcategory": "coding", "prompt": text}
            for i, text in enumerate(texts)
        ]
    elif name == "mt_bench":
        rows = [
            {"question_id": 81 + i, "category": "writing", "turns": [text, "and now shorter"]}
            for i, text in enumerate(texts)
        ]
        rows[1]["reference"] = ["blue", "b"]
    elif name == "wildbench":
        past = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
        rows = [
            {
                "id": str(i),
                "session_id": f"s{i}",
                "conversation_input": [*past[: 2 * (i % 2)], {"role": "user", "content": text}],
                "checklist": ["is it right?", "is it short?"],
                "primary_tag": "Planning",
                "secondary_tags": [],
            }
            for i, text in enumerate(texts)
        ]
    else:
        prompts = {
            str(i): {
                "category": "tale",
                "title": "t",
                "writing_prompt": f"{text} <SEED>",
                "seed_modifiers": [f"seed {i}a", f"seed {i}b"],
            }
            for i, text in enumerate(texts)
        }
        path = folder / "prompts.json"
        path.write_text(json.dumps(prompts))
        return path
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer_file(folder: Path, benchmark: Benchmark, questions: Path, model: str) -> Path:
    """An answer to every turn, of a model whose answers say its name."""
    path = folder / f"{model}.{'jsonl' if isinstance(benchmark, (ArenaHard, MtBench)) else 'json'}"
    rows = []
    for question in benchmark.read_questions(str(questions)):
        turns = tuple(f"{model}, turn {i}: {'words ' * 100}ü" for i in range(len(question.turns)))
        decoded = DecodedTurns(turns, (7,) * len(turns))
        settings = {"temperature": 0.5, "top_p": 1.0, "length": 8, "limit": 0}
        rows.append(benchmark.answer_row(question, model, decoded, settings, 5.0))
    benchmark.write_answers(path, rows)
    return path


def verdict(name: str, winner: str) -> str:
    """A judge's reply in the form that a benchmark asks for; `winner` is A, B or = (a tie)."""
    if name == "arena_hard":
        return f"well [[{ {'A': 'A>>B', 'B': 'B>A', '=': 'A=B'}[winner] }]]"
    if name == "mt_bench":
        return f"well [[{winner.replace('=', 'C')}]]"
    if name == "wildbench":
        choice = {"A": "A++", "B": "B+", "=": "A=B"}[winner]
        return json.dumps({"reason": "well", "choice": choice})
    votes = {"A": ("A0493++", "A0493+"), "B": ("A0488+", "A0488+++"), "=": ("A0488+", "A0493+")}
    first, second = votes[winner]
    return f"so: {json.dumps({'writing_quality': first, 'interesting_original': second})}"
