"""Exact matches, and repeated characters that were lost or gained ("100" decoded as "10").

Under the collapse map `merge` two equal tokens side by side are read as one, so a model that does
not put slack between them loses a digit; arXiv 2601.22947 names it as what its first version loses
on GSM8K.

Texts are compared as runs of equal characters ("1100" has the runs 1 x 2 and 0 x 2). An answer has
*lost* a repeat if both texts have the same characters in the same order, lengths of runs aside, and
a run is shorter than in the reference; *gained*, if a run is longer. An answer with another mistake
is wrong, but neither lost nor gained. Runs are also counted one by one, in all answers: there the
runs are aligned first.
"""

import argparse
import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_mdlm.config import ConfigError
from jax_mdlm.data.numbers import load_numbers
from jax_mdlm.evaluation.intervals import Interval, share_of, shown
from jax_mdlm.evaluation.scores import edit_table
from jax_mdlm.evaluation.tasks import open_task, too_long_note
from jax_mdlm.experiments.intervention import Model, intervals_in_json, parse_models
from jax_mdlm.opening import open_model, with_progress

_COLUMNS = {  # field of a report -> its heading
    "exact": "exact match",
    "exact_with": "with repeats",
    "exact_without": "without",
    "lost": "lost repeats",
    "gained": "gained",
}
_SHOWN = 3  # answers that lost a repeat, per model


class Stretch(NamedTuple):
    """Equal characters side by side."""

    character: str
    length: int


@dataclasses.dataclass(frozen=True)
class RepeatCounts:
    """One answer against its reference.

    Attributes:
      exact: The texts are equal, spaces at their ends aside.
      lost: A repeat was lost and there is no other kind of mistake.
      gained: A repeat was gained and there is no other kind of mistake.
      runs: Runs of the reference.
      repeats: Those of two characters or more.
      lost_runs: Repeats whose aligned run is shorter.
      gained_runs: Runs whose aligned run is longer.
    """

    exact: bool
    lost: bool
    gained: bool
    runs: int
    repeats: int
    lost_runs: int
    gained_runs: int


@dataclasses.dataclass(frozen=True)
class Report:
    """Shares over answers, 1 = 100%, with intervals over rows; None where no row counts.

    Attributes:
      exact: Answers that are right.
      exact_with: Of references with a repeat.
      exact_without: Of references without.
      lost: Answers that lost a repeat, of references with a repeat.
      gained: Answers that gained one, of all references.
      lost_runs: Repeats that were lost / repeats of all references; no interval.
      gained_runs: Runs that grew / runs of all references; no interval.
      rows: References.
      rows_with: Of these with a repeat.
    """

    exact: Interval
    exact_with: Interval | None
    exact_without: Interval | None
    lost: Interval | None
    gained: Interval
    lost_runs: float
    gained_runs: float
    rows: int
    rows_with: int


def run(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Decodes every row with every model and prints a table, or writes the rows."""
    if bool(args.write) == bool(args.workdir):
        raise ConfigError("evaluate repeats needs either --workdir or --write FILE; give one")
    if args.write:
        write_rows(Path(args.write), args.split, args.limit)
        return
    record = {"split": args.file or args.split, "models": {}}
    for model in parse_models(args.workdir):
        record["models"][model.name] = _measure(model, args, overrides)
    if jax.process_index() != 0:
        return
    print(json.dumps(record)) if args.json else print_repeats(record)


def write_rows(path: Path, split: str, limit: int) -> None:
    """The rows of `numbers` as JSONL, for models that were not trained on them."""
    rows = load_numbers(split)[: limit or None]
    lines = [json.dumps({"prompt": row.chat_prompt, "response": row.response}) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    print(f"{len(rows):,} {split} rows in {path}")


def _measure(model: Model, args: argparse.Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """What is said of a model, as JSON values."""
    trained: list[list[RepeatCounts]] = []
    lost: list[dict[str, str]] = []
    steps = []
    too_long = 0
    for workdir in model.workdirs:
        opened = open_model(workdir, overrides)
        config = opened.config
        if not args.file and config.data.source != "numbers":
            raise ConfigError(
                f"work directory {workdir} must be trained on numbers, its data.source is "
                f"{config.data.source}; give rows with --file (--write FILE writes some)"
            )
        task = open_task(config, opened.path, split=args.split, file=args.file, limit=args.limit)
        prompts = task.prompts(opened, args.too_long)
        too_long = prompts.count(None)
        answers = with_progress(opened.decode(prompts), len(prompts))
        texts = [opened.tokenizer.decode(answer.tokens) for answer in answers]
        expected = [reference for (reference,) in task.references]
        counts = [compare(*texts) for texts in zip(expected, texts, strict=True)]
        trained.append(counts)
        steps.append(opened.step)
        lost += [
            {"reference": reference, "decoded": text}
            for reference, text, count in zip(expected, texts, counts, strict=True)
            if count.lost
        ]
    values = vars(summarise(trained))
    found = {name: value for name, value in values.items() if isinstance(value, Interval)}
    return {
        "training_seeds": len(trained),
        "steps": steps,
        "too_long": too_long,
        **values,
        **intervals_in_json(found),
        "lost_examples": lost[:_SHOWN],
    }


def print_repeats(record: dict[str, Any]) -> None:
    """A row per model; shares in %, with 95 % intervals."""
    models = record["models"]
    one = next(iter(models.values()))
    print(
        f"{one['rows']:,} rows of {record['split']}, {one['rows_with']:,} of them with a repeat; "
        "%, 95 % intervals"
    )
    width = max(10, *(len(name) for name in models)) + 2
    print(" " * width + "".join(title.rjust(19) for title in _COLUMNS.values()) + "  lost runs")
    for name, model in models.items():
        cells = "".join(show(model[column]).rjust(19) for column in _COLUMNS)
        print(f"{name.ljust(width)}{cells}{100 * model['lost_runs']:11.1f}")
    for name, model in models.items():
        for column, reason in model["no_interval"].items():
            print(f"{name}, {_COLUMNS[column]}: no interval: {reason}")
        if note := too_long_note(model["too_long"], model["rows"]):
            print(f"{name}: {note}")
        pairs = [f"{pair['reference']} as {pair['decoded']}" for pair in model["lost_examples"]]
        if pairs:
            print(f"{name} read {', '.join(pairs)}")


def show(share: list[float | None] | None) -> str:
    """`98.1 [97.4, 98.7]`, in %."""
    if share is None:
        return "-"
    return shown([None if number is None else 100 * number for number in share], ".1f")


def runs(text: str) -> list[Stretch]:
    """The runs of a text, in order: "1100" -> [("1", 2), ("0", 2)]."""
    return [Stretch(character, len(list(group))) for character, group in itertools.groupby(text)]


def align(
    reference: Sequence[Stretch], hypothesis: Sequence[Stretch]
) -> list[tuple[Stretch, Stretch]]:
    """Pairs of runs of the same character on a cheapest path of edits (Levenshtein, over runs).

    An edit inserts, deletes or replaces a run; lengths cost nothing. Of equally cheap paths the one
    that pairs runs as late as possible is taken.
    """
    cost = edit_table([run.character for run in reference], [run.character for run in hypothesis])
    pairs = []
    i, j = len(reference), len(hypothesis)
    while i and j:
        same = reference[i - 1].character == hypothesis[j - 1].character
        if cost[i][j] == cost[i - 1][j - 1] + (not same):
            i, j = i - 1, j - 1
            if same:
                pairs.append((reference[i], hypothesis[j]))
        elif cost[i][j] == cost[i - 1][j] + 1:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def compare(reference: str, hypothesis: str) -> RepeatCounts:
    """RepeatCounts of one answer; spaces at the ends of both texts do not count."""
    reference, hypothesis = reference.strip(), hypothesis.strip()
    expected, found = runs(reference), runs(hypothesis)
    pairs = align(expected, found)
    collapses = len(pairs) == len(expected) == len(found)
    shorter = sum(run.length > other.length for run, other in pairs)
    longer = sum(run.length < other.length for run, other in pairs)
    return RepeatCounts(
        exact=reference == hypothesis,
        lost=collapses and shorter > 0,
        gained=collapses and longer > 0,
        runs=len(expected),
        repeats=sum(run.length > 1 for run in expected),
        lost_runs=shorter,
        gained_runs=longer,
    )


def summarise(trained: Sequence[Sequence[RepeatCounts]]) -> Report:
    """Shares over all answers.

    Args:
      trained: Counts of the same rows, in the same order, for each training seed. The intervals
        resample rows (each the mean over seeds); they say nothing of other seeds.

    Raises:
      ValueError: no rows, or seeds with other references.
    """
    rows = list(zip(*trained, strict=True))  # one tuple of seeds per row
    if not rows:
        raise ValueError("repeats need at least one row, got none")
    if any(len({(count.runs, count.repeats) for count in row}) > 1 for row in rows):
        raise ValueError("all training seeds must be held against the same references, in order")

    def column(name: str) -> np.ndarray:
        return np.array([[getattr(count, name) for count in row] for row in rows], float).mean(1)

    exact, repeats = column("exact"), column("repeats")
    has = repeats > 0
    return Report(
        exact=share_of(exact),
        exact_with=_share(exact[has]),
        exact_without=_share(exact[~has]),
        lost=_share(column("lost")[has]),
        gained=share_of(column("gained")),
        lost_runs=float(column("lost_runs").sum() / max(repeats.sum(), 1)),
        gained_runs=float(column("gained_runs").sum() / max(column("runs").sum(), 1)),
        rows=len(rows),
        rows_with=int(has.sum()),
    )


def _share(values: np.ndarray) -> Interval | None:
    return share_of(values) if values.size else None
