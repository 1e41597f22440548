"""Trains a list of runs and compares them under interventions, one command from list to figure.

A list is a file with `get_runs() -> {name: [words of the train command]}`; the first run is what
the others are compared with. Every model is trained once for each training seed, in
`FOLDER/<digest of its settings>-seed<N>`: lists that share a run share the model, and the same
command again goes on where it was interrupted. What a model scored is kept in its work directory.
"""

import argparse
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax_mdlm import command
from jax_mdlm.config import Config, ConfigError, to_json
from jax_mdlm.evaluate import intervention
from jax_mdlm.evaluate.figures import draw_rows, pyplot

RECORD = "run.json"  # in a work directory, when its training has ended


@dataclasses.dataclass(frozen=True)
class Run:
    """A model to be trained.

    Attributes:
      name: In tables and figures.
      words: Of the train command, seed and folders aside.
      seed: Of the training.
      workdir: Where it goes.
    """

    name: str
    words: tuple[str, ...]
    seed: int
    workdir: Path


def add(tasks: Any) -> None:
    """The flags of `evaluate sweep`."""
    task = tasks.add_parser(
        "sweep", help="train a list of runs and compare them", description=__doc__
    )
    task.add_argument("--runs", required=True, help="a file with get_runs(), or a shipped name")
    task.add_argument("--folder", required=True, help="where models are trained and kept")
    task.add_argument("--training-seeds", type=int, default=1, help="models per run")
    task.add_argument("--only", default="", help="names of runs, comma-separated; default: all")
    task.add_argument("--jobs", type=int, default=1, help="models at a time; each gets its cores")
    task.add_argument("--output", required=True, help="folder for table, JSON and figures")
    intervention.add_flags(task)
    task.set_defaults(run=run)


def run(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Trains what is missing, decodes, writes table and figures. Touches no device itself."""
    pyplot()
    intervention.check_strengths(args)
    runs = list_runs(args, overrides)
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        places = [cores_of(number, args.jobs) for number in range(args.jobs)]
        try:
            for one in pool.map(lambda one: train_and_decode(one, args, places), runs):
                print(f"done: {one.name}, seed {one.seed}, {one.workdir}", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what runs may end, no more begins
            raise
    names = list(dict.fromkeys(one.name for one in runs))
    models = [
        f"{name}=" + ",".join(str(one.workdir) for one in runs if one.name == name)
        for name in names
    ]
    words = [word for model in models for word in ("--workdir", model)]
    folder = Path(args.output)
    call("evaluate", ["intervention", *words, *flags(args), "--output", str(folder)], None)
    record = json.loads((folder / "intervention.json").read_text())
    write_table(folder, runs, record)
    draw_rows(str(folder / "runs.png"), record)


def list_runs(args: argparse.Namespace, overrides: Sequence[str]) -> list[Run]:
    """All runs, seed after seed, so that an interrupted sweep has something of every run.

    Raises:
      ConfigError: the list cannot be used; an override is given (it would have another digest).
    """
    if overrides:
        raise ConfigError(
            f"a sweep takes its settings from --runs, got {' '.join(overrides)}; put them there"
        )
    if args.training_seeds < 1 or args.jobs < 1:
        raise ConfigError(
            f"--training-seeds and --jobs must be 1 or more, got {args.training_seeds} and "
            f"{args.jobs}"
        )
    found: dict[str, list[str]] = command.load_function(args.runs, "get_runs")()
    chosen = [name for name in args.only.split(",") if name] or list(found)
    unknown = [name for name in chosen if name not in found]
    if unknown:
        raise ConfigError(
            f"--only must name runs of {args.runs}, {', '.join(found)}; got {unknown}"
        )
    return [
        Run(
            name,
            tuple(found[name]),
            seed,
            Path(args.folder) / f"{digest(parse(found[name]))}-seed{seed}",
        )
        for seed in range(args.training_seeds)
        for name in chosen
    ]


def parse(words: Sequence[str]) -> Config:
    """The config that words of the train command stand for."""
    named = [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
    if len(named) != 1:
        raise ConfigError(f"a run must name one config as --config=NAME, got {' '.join(words)}")
    return command.parse_config(named[0], [word for word in words if word[:9] == "--config."])


def digest(config: Config) -> str:
    """Names what is trained: settings without the run's name and training seed."""
    train = dataclasses.replace(config.train, seed=0)
    plain = to_json(dataclasses.replace(config, name="", train=train))
    return hashlib.sha256(plain.encode()).hexdigest()[:12]


def train_and_decode(one: Run, args: argparse.Namespace, places: list[set[int]]) -> Run:
    """Trains a model if it is not there, and decodes it under every intervention."""
    place = places.pop()
    try:
        record = one.workdir / RECORD
        if not record.exists():
            began = time.monotonic()
            words = [
                *one.words,
                f"--config.train.seed={one.seed}",
                f"--config.data.data_dir={Path(args.folder).absolute() / 'data'}",
                "--workdir",
                str(one.workdir),
            ]
            call("train", words, place, one.workdir)
            minutes = round((time.monotonic() - began) / 60, 2)
            config = parse(one.words)
            record.write_text(
                json.dumps(
                    {
                        "name": one.name,
                        "seed": one.seed,
                        "steps": config.train.steps,
                        "minutes": minutes,
                        "words": list(one.words),
                    }
                )
            )
        model = ["--workdir", f"{one.name}={one.workdir}"]
        call("evaluate", ["intervention", *model, *flags(args), "--json"], place, one.workdir)
    finally:
        places.append(place)
    return one


def flags(args: argparse.Namespace) -> list[str]:
    """The intervention's flags, as words."""
    names = ("kind", "direction", "share", "seeds", "split", "file", "metric", "limit")
    words = [f"--{name}={getattr(args, name)}" for name in names]
    return [*words, "--strengths", *(f"{strength:g}" for strength in args.strengths)]


def cores_of(number: int, jobs: int) -> set[int]:
    """The cores of one of several jobs; all of them where they are fewer, or cannot be set."""
    if not hasattr(os, "sched_getaffinity"):
        return set()
    cores = sorted(os.sched_getaffinity(0))
    return set(cores[number::jobs]) or set(cores)


def call(name: str, words: Sequence[str], place: set[int] | None, workdir: Path | None = None):
    """Runs a command of this package; with a work directory its output goes to `<workdir>.log`.

    Raises:
      ConfigError: it failed; the last line that it said is passed on.
    """
    environment = dict(os.environ)
    if workdir is not None:
        cache = workdir.absolute().parent / "compilation_cache"
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
        workdir.parent.mkdir(parents=True, exist_ok=True)
    line = [sys.executable, "-m", f"jax_mdlm.{name}", *words]
    log = None if workdir is None else workdir.with_name(workdir.name + ".log")
    with open(os.devnull if log is None else log, "a") as out:
        process = subprocess.Popen(
            line,
            env=environment,
            stdout=None if log is None else out,
            stderr=None if log is None else subprocess.STDOUT,
        )
        if place and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, place)
        try:
            code = process.wait()
        except BaseException:
            process.terminate()  # it saves and ends
            process.wait()
            raise
    if code:
        last = "" if log is None else log.read_text().strip().rpartition("\n")[2]
        raise ConfigError(f"{' '.join(line[1:])} must end well, it ended with {code}: {last}")


def write_table(folder: Path, runs: Sequence[Run], record: dict[str, Any]) -> None:
    """`runs.json`: every model with its budget; `table.md`: a line per run."""
    models = [json.loads((one.workdir / RECORD).read_text()) for one in runs]
    for one, entry in zip(runs, models, strict=True):
        entry |= {"name": one.name, "workdir": one.workdir.name}
    (folder / "runs.json").write_text(json.dumps(models, indent=1) + "\n")
    strongest = record["strengths"][-1]
    head = ["run", "models", "clean, %", f"at {strongest:g}, %", "slope", "Pearson r", "area, %"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, one in record["models"].items():
        cells = [
            name,
            str(one["training_seeds"]),
            intervention.percent(one["clean"])[:-2],
            intervention.percent(one["rates"][-1])[:-2],
            intervention.number_of(one["slope"]),
            intervention.number_of(one["pearson"]),
            intervention.percent(one["area"])[:-2],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    (folder / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
