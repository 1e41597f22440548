"""Error rates of one or more models while a share of the tokens is put on the wrong slot."""

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jax_mdlm.config import ConfigError
from jax_mdlm.data.files import find_files
from jax_mdlm.evaluation.intervals import Interval, shown
from jax_mdlm.evaluation.scores import metric_named
from jax_mdlm.evaluation.tasks import Task, open_task, too_long_note
from jax_mdlm.experiments.decodings import Decoded, Store, curve_of, decode_task, seeds_for
from jax_mdlm.experiments.figures import draw_curves, intervention_in_words, pyplot, title_of
from jax_mdlm.experiments.statistics import (
    STATISTICS,
    Curve,
    Spread,
    bootstrap_curve,
    bootstrap_differences,
    permutation_test,
)
from jax_mdlm.mdlm import Mdlm
from jax_mdlm.opening import console, open_model
from jax_mdlm.sampling import Boundary, Displace, Strategy


class Model(NamedTuple):
    """A name and the work directories of its training seeds."""

    name: str
    workdirs: tuple[str, ...]


class ModelScores(NamedTuple):
    """What was decoded of a model: its curve, and means over decodings per strength."""

    curve: Curve
    means: list[dict[str, float]]
    task: Task
    step: int
    too_long: int


def run(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Decodes what is missing, prints the table, writes JSON and figure."""
    if args.output:
        pyplot()  # a package that is missing is said before hours of decoding
    models = parse_models(args.workdir)
    measured = {model.name: _measure(model, args, overrides) for model in models}
    record = _record_of(measured, args)
    if jax.process_index() != 0:
        return
    if args.json:
        print(json.dumps(record))
    else:
        _print_table(record)
    if args.output:
        folder = Path(args.output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "intervention.json").write_text(json.dumps(record, indent=1) + "\n")
        draw_record(record, str(folder / "intervention.png"))


def parse_models(words: Sequence[str]) -> list[Model]:
    """Models of `[NAME=]DIR[,DIR...]` arguments; without a name the folder's own is taken.

    Raises:
      ConfigError: two models of one name, or no folder.
    """
    models = []
    for word in words:
        name, equals, folders = word.partition("=")
        folders = folders if equals else word
        found = tuple(folder for folder in folders.split(",") if folder)
        if not found:
            raise ConfigError(f"--workdir must name a folder, got {word!r}")
        models.append(Model(name if equals else Path(found[0]).name, found))
    names = [model.name for model in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"--workdir names {twice[0]!r} twice; give names, NAME=DIR")
    return models


def _measure(model: Model, args: argparse.Namespace, overrides: Sequence[str]) -> ModelScores:
    """Decodes a model at every strength, all its training seeds."""
    strengths = check_flags(args)
    trained, first, step, too_long = [], None, 0, 0
    for workdir in model.workdirs:
        opened = open_model(workdir, overrides)
        task = open_task(
            opened.config,
            opened.path,
            split=args.split,
            file=args.file,
            limit=args.limit,
            metric=args.metric,
        )
        first = first or task
        check_same_rows(first, task, workdir)
        step = opened.step
        prompts = task.prompts(opened, args.too_long)
        too_long = prompts.count(None)
        disturbed = intervention_of(args, opened.options.strategy)
        trained.append(_decode_all(opened, task, prompts, disturbed, strengths, args.seeds))
    assert first is not None
    names = ("slack_share", "distinct", "repetition", "calls")
    means = []
    for number in range(len(strengths)):
        runs = [one for runs in trained for one in runs[number]]
        means.append({name: sum(getattr(r, name) for r in runs) / len(runs) for name in names})
    return ModelScores(curve_of(strengths, trained), means, first, step, too_long)


def check_same_rows(first: Task, other: Task, workdir: str) -> None:
    """Raises ConfigError where two tasks are not one: their errors cannot be compared."""
    if (first.digest, first.metric.name) != (other.digest, other.metric.name):
        raise ConfigError(
            f"--workdir {workdir} must be decoded on the same rows and metric as the first, "
            f"{len(first.references):,} of {first.name} by {first.metric.name}, got "
            f"{len(other.references):,} of {other.name} by {other.metric.name}; give --file and "
            "--metric"
        )


def intervention_of(args: argparse.Namespace, inner: Strategy) -> Strategy:
    """What the flags ask for, around a run's strategy."""
    if args.kind == "displace":
        return Displace(inner, args.direction)
    return Boundary(inner, args.share)


def recorded(args: argparse.Namespace) -> str:
    """The intervention in a record; `figures.intervention_in_words` reads it."""
    if args.kind == "displace":
        return f"Displace(direction={args.direction!r})"
    return f"Boundary(share={args.share!r})"


def check_flags(args: argparse.Namespace) -> list[float]:
    """The strengths, ascending; what flags alone can say is refused before anything is decoded.

    Raises:
      ConfigError: strengths that are no probabilities or lack 0; no seed; a metric, share or file
        that cannot be used.
    """
    if args.metric:
        metric_named(args.metric)
    if args.kind == "boundary" and not 0 <= args.share < 1:
        raise ConfigError(f"--share must be 0 or more and below 1, got {args.share}")
    if args.file:
        find_files(args.file, "--file")
    strengths = sorted(set(args.strengths))
    if len(strengths) < 2 or strengths[0] != 0 or strengths[-1] > 1:
        raise ConfigError(
            f"--strengths must be 0 and one or more probabilities, got {args.strengths}; for one "
            "score without intervention use evaluate pronunciations or evaluate harness"
        )
    if args.seeds < 1:
        raise ConfigError(f"--seeds must be 1 or more, got {args.seeds}")
    return strengths


def _decode_all(
    opened: Mdlm,
    task: Task,
    prompts: Sequence[Sequence[int] | None],
    intervention: Strategy,
    strengths: Sequence[float],
    seeds: int,
) -> list[list[Decoded]]:
    """[strength][decoding seed]; what the work directory holds already is read."""
    drawn = {strength: seeds_for(strength, seeds, opened.options) for strength in strengths}
    progress = console(sum(map(len, drawn.values())), "decoding")
    decodings, done = [], 0
    with progress:
        for strength in strengths:
            options = opened.options
            if strength > 0:
                options = dataclasses.replace(options, strategy=intervention)
            what = {
                "step": opened.step,
                "rows": [task.name, task.digest],
                "metric": task.metric.name,
                "options": repr(options),
                "weights": opened.config.sample.weights,
                "dtype": opened.config.model.compute_dtype,
            }
            store = Store(opened.path, what)

            def make(strength: float = strength, seed: int = 0, options=options) -> Decoded:
                return decode_task(opened, task, prompts, options, strength=strength, seed=seed)

            first = opened.config.sample.seed
            decodings.append([])
            for seed in drawn[strength]:
                own = first + seed
                made = store.get(strength, own, lambda make=make, own=own: make(seed=own))
                decodings[-1].append(made)
                done += 1
                progress.advance(done)
    return decodings


def _record_of(measured: dict[str, ModelScores], args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is said of the models, as JSON values."""
    (first, base), *others = measured.items()
    spread = Spread.of([one.curve for one in measured.values()])
    models = {}
    for name, one in measured.items():
        models[name] = {
            "step": one.step,
            "too_long": one.too_long,
            "training_seeds": len(one.curve.errors),
            "rates_of_training_seeds": [
                list(map(rounded, row)) for row in one.curve.rates.tolist()
            ],
            **intervals_in_json(bootstrap_curve(one.curve, spread=spread)),
            "means": one.means,
        }
    against = {}
    for name, other in others:
        check_same_rows(base.task, other.task, name)
        against[name] = intervals_in_json(
            bootstrap_differences(base.curve, other.curve, spread=spread)
        )
        against[name]["p"] = permutation_test(base.curve, other.curve).tolist()
    return {
        "task": base.task.name,
        "rows": len(base.task.references),
        "metric": base.task.metric.label,
        "intervention": recorded(args),
        "strengths": base.curve.strengths.tolist(),
        "decodings": args.seeds,
        "degrees_of_freedom_of_training_seeds": spread.freedom,
        "models": models,
        "against": {"model": first, "differences": against},
    }


def intervals_in_json(found: dict[str, Any]) -> dict[str, Any]:
    """Intervals as [value, low, high]; where there is none null, with the reason beside them."""
    numbers, reasons = {}, {}
    for name, value in found.items():
        several = value if isinstance(value, list) else [value]
        every = [one.numbers() for one in several]
        numbers[name] = every if isinstance(value, list) else every[0]
        if reason := next((one.reason for one in several if one.reason), ""):
            reasons[name] = reason
    return numbers | {"no_interval": reasons}


def why_none(record: dict[str, Any]) -> list[str]:
    """A line per reason for which something of the table has no interval."""
    said: dict[str, list[str]] = {}
    for name, one in record["models"].items():
        for what, reason in one["no_interval"].items():
            said.setdefault(reason, []).append(f"{name} {what}")
    return [f"no interval ({', '.join(names)}): {reason}" for reason, names in said.items()]


def rounded(value: float) -> float | None:
    """For JSON, which has no nan."""
    return round(value, 6) if math.isfinite(value) else None


def _print_table(record: dict[str, Any]) -> None:
    """The curve and what follows from it, a column per model."""
    models = record["models"]
    print(f"{record['metric']}, {record['rows']:,} rows of {record['task']}")
    freedom = record["degrees_of_freedom_of_training_seeds"]
    seeds = f"rows and training seeds ({freedom} degrees of freedom)" if freedom else "rows alone"
    disturbed, decodings = intervention_in_words(record["intervention"]), record["decodings"]
    print(f"{disturbed}; {decodings} decoding{'s' * (decodings != 1)} a strength")
    print(f"95 % intervals over {seeds}; p over rows alone")
    width = max(27, *(len(name) + 2 for name in models))
    print("strength".ljust(12) + "".join(name.rjust(width) for name in models))
    for number, strength in enumerate(record["strengths"]):
        cells = (percent(one["rates"][number]) for one in models.values())
        print(f"{strength:<12g}" + "".join(cell.rjust(width) for cell in cells))
    for name in STATISTICS:
        if name == "clean":
            continue
        show = percent if name == "area" else number_of
        print(name.ljust(12) + "".join(show(one[name]).rjust(width) for one in models.values()))
    for line in why_none(record):
        print(line)
    for name, one in models.items():
        if note := too_long_note(one["too_long"], record["rows"]):
            print(f"{name}: {note}")
    for name, change in record["against"]["differences"].items():
        p = change["p"]
        print(
            f"{name} / {record['against']['model']}: clean {number_of(change['clean_ratio'])}, "
            f"slope {number_of(change['slope_ratio'])}, area {number_of(change['area_ratio'])}; "
            f"paired p {p[0]:.2g} clean, {p[-1]:.2g} at {record['strengths'][-1]:g}"
        )


def percent(numbers: list[float | None]) -> str:
    """`13.6 [13.0, 14.2] %`."""
    return shown([None if n is None else 100 * n for n in numbers], ".2f", " %")


def number_of(numbers: list[float | None]) -> str:
    """`0.46 [0.41, 0.50]`."""
    return shown(numbers, ".3f")


def draw_record(record: dict[str, Any], path: str) -> None:
    """The curves with their intervals."""
    curves = {
        name: [_in_percent(rate) for rate in one["rates"]] for name, one in record["models"].items()
    }
    draw_curves(
        path,
        record["strengths"],
        curves,
        x="share of committed tokens that slip by a slot"
        if record["intervention"].startswith("Displace")
        else "share of rows whose text is shifted once",
        y=f"{record['metric']}, %",
        title=title_of(record),
        log=min(s for s in record["strengths"] if s > 0) < 0.1,
    )


def _in_percent(rate: list[float | None]) -> Interval:
    value, low, high = (math.nan if n is None else 100 * n for n in rate)
    return Interval(value, low, high)
