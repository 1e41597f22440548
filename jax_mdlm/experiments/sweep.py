"""Trains a list of runs and compares them under interventions, one command from list to figure.

It touches no device: `train` and `evaluate` run as processes of their own, each with its cores. A
model is named by a digest of its settings, and what it scored stays in its work directory.
"""

import argparse
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from etils import epath

from jax_mdlm import command
from jax_mdlm.config import Config, ConfigError, config_to_json
from jax_mdlm.experiments import intervention
from jax_mdlm.experiments.figures import draw_rows, pyplot
from jax_mdlm.workdir import choose_step, load_config, open_existing

RECORD = "run.json"  # in a work directory, when its training has ended


class Children:
    """Runs commands of this package, several at a time from several threads."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._lock = threading.Lock()

    @contextmanager
    def until_stopped(self) -> Iterator[None]:
        """A stop of this block, by SIGTERM too, is passed on: `train` saves and ends.

        After an error what runs goes on to its end; nothing is started any more.
        """

        def leave(number: int, frame: object) -> None:
            raise SystemExit(128 + number)

        old = signal.signal(signal.SIGTERM, leave)
        try:
            yield
        except Exception:
            with self._lock:
                self._stopped = True
            raise
        except BaseException:
            self.stop()
            raise
        finally:
            signal.signal(signal.SIGTERM, old)

    def stop(self) -> None:
        """Asks all that run to end, and starts no more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()

    def call(self, name: str, words: Sequence[str], place: set[int], log: Path | None) -> None:
        """Runs `python -m jax_mdlm.<name>` to its end.

        Args:
          name: Of the command.
          words: Its arguments.
          place: Cores it may use; empty = all.
          log: Where its output is appended to; None = that of this process.

        Raises:
          ConfigError: it failed, which passes on the last line that it said; or all was stopped.
        """
        line = [sys.executable, "-m", f"jax_mdlm.{name}", *words]
        if log is None:
            code = self._run(line, dict(os.environ), place, None)
        else:
            log.parent.mkdir(parents=True, exist_ok=True)
            cache = str(log.absolute().parent / "compilation_cache")
            environment = {"JAX_COMPILATION_CACHE_DIR": cache} | os.environ
            with open(log, "a") as out:
                code = self._run(line, environment, place, out)
        if code:
            last = "" if log is None else log.read_text().strip().rpartition("\n")[2]
            raise ConfigError(f"{' '.join(line[1:])} must end well, it ended with {code}: {last}")

    def _run(
        self, line: list[str], environment: dict[str, str], place: set[int], out: IO[str] | None
    ) -> int:
        with self._lock:
            if self._stopped:
                raise ConfigError("the sweep was stopped; the same command goes on")
            errors = None if out is None else subprocess.STDOUT
            process = subprocess.Popen(line, env=environment, stdout=out, stderr=errors)
            self._running.add(process)
        if place and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, place)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)


@dataclasses.dataclass(frozen=True)
class SweepRun:
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


def run(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Trains what is missing, decodes, writes table and figures. Touches no device itself."""
    pyplot()
    intervention.check_flags(args)
    runs = list_runs(args, overrides)
    children = Children()
    places = [cores_of(number, args.jobs) for number in range(args.jobs)]

    def work(one: SweepRun) -> SweepRun:
        place = places.pop()
        try:
            return train_and_decode(one, args, children, place)
        finally:
            places.append(place)

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool, children.until_stopped():
        for one in pool.map(work, runs):
            print(f"done: {one.name}, seed {one.seed}, {one.workdir}", flush=True)
    names = list(dict.fromkeys(one.name for one in runs))
    models = [
        f"{name}=" + ",".join(str(one.workdir) for one in runs if one.name == name)
        for name in names
    ]
    words = [word for model in models for word in ("--workdir", model)]
    folder = Path(args.output)
    words += [*_flags(args), "--output", str(folder)]
    children.call("evaluate", ["intervention", *words], set(), None)
    record = json.loads((folder / "intervention.json").read_text())
    write_table(folder, runs, record)
    draw_rows(str(folder / "runs.png"), record)


def list_runs(args: argparse.Namespace, overrides: Sequence[str]) -> list[SweepRun]:
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
    # --- which runs ---
    found: dict[str, list[str]] = command.load_function(args.runs, "get_runs")()
    chosen = list(dict.fromkeys(name for name in args.only.split(",") if name)) or list(found)
    unknown = [name for name in chosen if name not in found]
    if unknown:
        raise ConfigError(
            f"--only must name runs of {args.runs}, {', '.join(found)}; got {unknown}"
        )
    # --- what each of them trains ---
    digests: dict[str, str] = {}
    for name in chosen:
        config = parse_run(found[name])
        if config.train.seed:
            raise ConfigError(
                f"run {name} of {args.runs} must leave train.seed at 0, got {config.train.seed}; "
                "--training-seeds N trains it with 0 to N - 1"
            )
        if config.data.source == "chat_jsonl" and args.split == "test" and not args.file:
            raise ConfigError(
                f"run {name} of {args.runs} has no test split, data.source is chat_jsonl; name "
                "test rows with --file, or set --split=validation"
            )
        twin = digests.setdefault(digest(config), name)
        if twin != name:
            raise ConfigError(
                f"runs {twin} and {name} of {args.runs} have the same settings; leave one out"
            )
    places = {name: one for one, name in digests.items()}
    return [
        SweepRun(name, tuple(found[name]), seed, Path(args.folder) / f"{places[name]}-seed{seed}")
        for seed in range(args.training_seeds)
        for name in chosen
    ]


def parse_run(words: Sequence[str]) -> Config:
    """The config that words of the train command stand for."""
    named = [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
    if len(named) != 1:
        raise ConfigError(f"a run must name one config as --config=NAME, got {' '.join(words)}")
    return command.parse_config(named[0], [word for word in words if word[:9] == "--config."])


def digest(config: Config) -> str:
    """Names what is trained: settings without the run's name and training seed."""
    train = dataclasses.replace(config.train, seed=0)
    plain = config_to_json(dataclasses.replace(config, name="", train=train))
    return hashlib.sha256(plain.encode()).hexdigest()[:12]


def train_and_decode(
    one: SweepRun, args: argparse.Namespace, children: Children, place: set[int]
) -> SweepRun:
    """Trains a model if it is not there, and decodes it under every intervention.

    Raises:
      ConfigError: a command failed, or the training was stopped before its end.
    """
    record, log = one.workdir / RECORD, one.workdir.with_name(one.workdir.name + ".log")
    if not record.exists():
        whole, began = not one.workdir.exists(), time.monotonic()
        words = [
            *one.words,
            f"--config.train.seed={one.seed}",
            f"--config.data.data_dir={Path(args.folder).absolute() / 'data'}",
            "--workdir",
            str(one.workdir),
        ]
        children.call("train", words, place, log)
        steps = check_trained(one)
        # Of a training that was interrupted nobody knows how long the first part took.
        minutes = round((time.monotonic() - began) / 60, 2) if whole else None
        about = {"name": one.name, "seed": one.seed, "steps": steps, "minutes": minutes}
        record.write_text(json.dumps(about | {"words": list(one.words)}))
    words = ["--workdir", f"{one.name}={one.workdir}", *_flags(args), "--json"]
    children.call("evaluate", ["intervention", *words], place, log)
    return one


def check_trained(one: SweepRun) -> int:
    """The steps of a run; `train` also ends well where it was asked to stop.

    Raises:
      ConfigError: it has not come to its end.
    """
    folder = epath.Path(one.workdir)
    checkpoints = open_existing(folder)
    step = choose_step(checkpoints, None)
    checkpoints.close()
    steps = load_config(folder).train.steps
    if step < steps:
        raise ConfigError(
            f"{one.name} (seed {one.seed}) must be trained for {steps} steps, it was stopped at "
            f"{step}; the same command goes on"
        )
    return steps


def _flags(args: argparse.Namespace) -> list[str]:
    """The intervention's flags, as words."""
    names = ("kind", "direction", "share", "seeds", "split", "file", "metric", "limit", "too_long")
    words = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in names]
    return [*words, "--strengths", *(f"{strength:g}" for strength in args.strengths)]


def write_table(folder: Path, runs: Sequence[SweepRun], record: dict[str, Any]) -> None:
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
    if reasons := intervention.why_none(record):
        lines += ["", *reasons]
    (folder / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def cores_of(number: int, jobs: int) -> set[int]:
    """The cores of one of several jobs; all of them where they are fewer, or cannot be set."""
    if not hasattr(os, "sched_getaffinity"):
        return set()
    cores = sorted(os.sched_getaffinity(0))
    return set(cores[number::jobs]) or set(cores)
