"""Exact matches, and repeated characters that were lost or gained ("100" decoded as "10")."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jax_mdlm.config import ConfigError
from jax_mdlm.data.numbers import load_numbers
from jax_mdlm.evaluation.intervals import Interval, shown
from jax_mdlm.evaluation.tasks import open_task, too_long_note
from jax_mdlm.experiments.equal_neighbours import Counts, Report, compare, summarise
from jax_mdlm.experiments.intervention import Model, parse_models
from jax_mdlm.opening import open_model, with_progress

_COLUMNS = {  # field of a report -> its heading
    "exact": "exact match",
    "exact_with": "with repeats",
    "exact_without": "without",
    "lost": "lost repeats",
    "gained": "gained",
}
_SHOWN = 3  # answers that lost a repeat, per model


def run(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Decodes every row with every model and prints a table, or writes the rows."""
    if bool(args.write) == bool(args.workdir):
        raise ConfigError("evaluate repeats needs either --workdir or --write FILE; give one")
    if args.write:
        write_rows(Path(args.write), args.split, args.limit)
        return
    record = {"split": args.file or args.split, "models": {}}
    for model in parse_models(args.workdir):
        record["models"][model.name] = measure(model, args, overrides)
    if jax.process_index() != 0:
        return
    print(json.dumps(record)) if args.json else print_table(record)


def write_rows(path: Path, split: str, limit: int) -> None:
    """The rows of `numbers` as JSONL, for models that were not trained on them."""
    rows = load_numbers(split)[: limit or None]
    lines = [json.dumps({"prompt": row.chat_prompt, "response": row.response}) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    print(f"{len(rows):,} {split} rows in {path}")


def measure(model: Model, args: argparse.Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """What is said of a model, as JSON values."""
    trained: list[list[Counts]] = []
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
    return {
        "training_seeds": len(trained),
        "steps": steps,
        "too_long": too_long,
        **plain(summarise(trained)),
        "lost_examples": lost[:_SHOWN],
    }


def plain(report: Report) -> dict[str, Any]:
    """Intervals as [value, low, high]; where there is none null, with the reason beside it."""
    values = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    found = {name: value for name, value in values.items() if isinstance(value, Interval)}
    return (
        values
        | {name: value.numbers() for name, value in found.items()}
        | {"no_interval": {name: value.reason for name, value in found.items() if value.reason}}
    )


def print_table(record: dict[str, Any]) -> None:
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
