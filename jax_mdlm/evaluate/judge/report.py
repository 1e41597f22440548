"""Win rates and mean grades of judgments, the official tools' or ours."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from jax_mdlm.config import ConfigError
from jax_mdlm.evaluate.judge.choice import add_benchmark, make_benchmark
from jax_mdlm.evaluation.judge import MeanGrade, WinRate, mean_grades, win_rates


def add(actions: Any) -> None:
    """The flags of `evaluate judge report`."""
    action = actions.add_parser("report", help="win rates and mean grades with 95 %% intervals")
    add_benchmark(action)
    action.add_argument("--judgments", required=True, help="a file of judgments")
    action.add_argument("--baseline", metavar="MODEL", help="measure all others against it")
    action.add_argument("--json", action="store_true", help="one JSON object instead of text")
    action.set_defaults(run=run)


def run(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Prints a line per pair of models, and one per model that was graded alone."""
    if overrides:
        raise ConfigError(f"judge report has no settings of a run, got {overrides[0]}; drop it")
    benchmark = make_benchmark(args.benchmark)
    judgments = benchmark.read_judgments(args.judgments)
    if not judgments.comparisons and not judgments.grades:
        raise ConfigError(f"{args.judgments} must hold judgments, it has none; judge first")
    rates = win_rates(judgments.comparisons, args.baseline)
    grades = mean_grades(judgments.grades)
    if args.json:
        pairs = [_rate_record(rate) for rate in rates]
        singles = [_grade_record(grade, benchmark.scale) for grade in grades]
        print(json.dumps({"win_rates": pairs, "grades": singles}))
        return
    for rate in rates:
        low, value, high = (100 * x for x in (rate.rate.low, rate.rate.value, rate.rate.high))
        print(
            f"{rate.model} against {rate.baseline}: win rate {value:.1f} % "
            f"[{low:.1f}, {high:.1f}], {rate.questions:,} questions{_left_out(rate.left_out)}"
        )
    for grade in grades:
        shown = f"{grade.grade.value:.2f} [{grade.grade.low:.2f}, {grade.grade.high:.2f}]"
        print(
            f"{grade.model}: grade {shown} ({benchmark.scale}), {grade.questions:,} questions"
            f"{_left_out(grade.left_out)}"
        )


def _left_out(count: int) -> str:
    return f", {count:,} without a verdict left out" if count else ""


def _rate_record(rate: WinRate) -> dict[str, Any]:
    return {
        "model": rate.model,
        "baseline": rate.baseline,
        "win_rate": rate.rate.value,
        "low": rate.rate.low,
        "high": rate.rate.high,
        "questions": rate.questions,
        "left_out": rate.left_out,
    }


def _grade_record(grade: MeanGrade, scale: str) -> dict[str, Any]:
    return {
        "model": grade.model,
        "grade": grade.grade.value,
        "low": grade.grade.low,
        "high": grade.grade.high,
        "scale": scale,
        "questions": grade.questions,
        "left_out": grade.left_out,
    }
