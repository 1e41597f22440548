"""Two models' answers, compared by a judge behind an OpenAI-compatible endpoint."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jax_mdlm.config import ConfigError
from jax_mdlm.evaluation.judge import (
    Benchmark,
    Client,
    Endpoint,
    Judge,
    find_matches,
    judge_matches,
    make_benchmark,
    not_judged,
    one_model,
)
from jax_mdlm.evaluation.judge.records import JUDGE_PROMPT, ModelAnswer
from jax_mdlm.evaluation.judge.rows import check_settings, output_file
from jax_mdlm.progress import Progress

_SAVE_EVERY = 20  # matches; a file is written whole, and replies are long


def run(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Asks about what is not judged yet, and saves on the way."""
    if overrides:
        raise ConfigError(f"judge compare has no settings of a run, got {overrides[0]}; drop it")
    benchmark = make_benchmark(args.benchmark, args.iterations)
    client = Client(_endpoint(args))
    path = output_file(args.output)
    questions = benchmark.read_questions(args.questions)[: args.limit or None]
    matches = find_matches(benchmark, questions, *_two_models(benchmark, args.answers))
    known = benchmark.read_judgments(args.output) if path.is_file() else None
    rows = list(known.rows) if known else []
    todo = not_judged(matches, known.comparisons if known else ())
    settings = {
        "judge": args.judge_model,
        "temperature": args.temperature,
        "max_tokens": args.max_tokens,
        "prompt": JUDGE_PROMPT,
    }
    check_settings(path, "comparisons", settings, begun=len(todo) < len(matches))

    saved = len(rows)
    with Progress(len(matches), start=len(matches) - len(todo), unit="match") as progress:
        try:
            judged = judge_matches(todo, client.ask, parallel=args.parallel)
            for number, (match, replies) in enumerate(judged, start=1):
                judge = Judge(args.judge_model, time.time())
                rows += benchmark.judgment_rows(match, replies, judge)
                if number % _SAVE_EVERY == 0:
                    benchmark.write_judgments(path, rows)
                    saved = len(rows)
                progress.advance(len(matches) - len(todo) + number)
        finally:  # what was paid for is kept, whatever happened to the rest
            if len(rows) > saved:
                benchmark.write_judgments(path, rows)
    found = benchmark.read_judgments(args.output).comparisons if matches else ()
    unread = sum(one.outcome is None for one in found)
    text = f"{len(matches):,} matches judged in {args.output}"
    print(text + (f", {unread:,} rows without a verdict" if unread else ""), file=sys.stderr)


def _endpoint(args: argparse.Namespace) -> Endpoint:
    for flag, value in (("--parallel", args.parallel), ("--attempts", args.attempts)):
        if value < 1:
            raise ConfigError(f"{flag} must be at least 1, got {value}")
    if args.timeout <= 0:
        raise ConfigError(f"--timeout must be above 0 seconds, got {args.timeout}")
    key = os.environ.get(args.key_env, "").strip() if args.key_env else None
    if key == "":
        raise ConfigError(
            f"--key-env {args.key_env} must name a variable with the key; it is empty"
        )
    return Endpoint(
        args.url,
        args.judge_model,
        key,
        temperature=args.temperature,
        max_tokens=args.max_tokens,
        timeout=args.timeout,
        attempts=args.attempts,
    )


def _two_models(
    benchmark: Benchmark, files: Sequence[str]
) -> tuple[list[ModelAnswer], list[ModelAnswer]]:
    if len(files) != 2:
        raise ConfigError(f"--answers must be given twice, got {len(files)}")
    found = []
    for entry in files:
        file, model = entry, None
        if "#" in entry and not Path(entry).is_file():
            file, model = entry.rsplit("#", 1)
        found.append(one_model(benchmark.read_answers(file), file, model))
    first, second = found
    if first[0].model == second[0].model:
        raise ConfigError(
            f"--answers must be of two models, both are of {first[0].model}; name them differently"
        )
    return first, second
