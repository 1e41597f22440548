"""Win rates and mean grades of judgments, the official tools' or ours."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from jax_mdlm.config import ConfigError
from jax_mdlm.evaluation.intervals import Interval
from jax_mdlm.evaluation.judge import MeanGrade, WinRate, make_benchmark, mean_grades, win_rates


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
        ends = rate.rate.ends
        interval = f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else _none(rate.rate)
        print(
            f"{rate.model} against {rate.baseline}: win rate {100 * rate.rate.value:.1f} % "
            f"{interval}, {rate.questions:,} questions{_left_out(rate.left_out)}"
        )
    for grade in grades:
        ends = grade.grade.ends
        interval = f"[{ends[0]:.2f}, {ends[1]:.2f}]" if ends else _none(grade.grade)
        print(
            f"{grade.model}: grade {grade.grade.value:.2f} {interval} ({benchmark.scale}), "
            f"{grade.questions:,} questions"
            f"{_left_out(grade.left_out)}"
        )


def _none(interval: Interval) -> str:
    return f"(no interval: {interval.reason.replace('row', 'question')})"


def _left_out(count: int) -> str:
    return f", {count:,} without a verdict left out" if count else ""


def _ends(interval: Interval) -> dict[str, float | str | None]:
    _, low, high = interval.numbers()
    ends: dict[str, float | str | None] = {"low": low, "high": high}
    return ends | ({"no_interval": interval.reason} if interval.reason else {})


def _rate_record(rate: WinRate) -> dict[str, Any]:
    return {
        "model": rate.model,
        "baseline": rate.baseline,
        "win_rate": rate.rate.value,
        **_ends(rate.rate),
        "questions": rate.questions,
        "left_out": rate.left_out,
    }


def _grade_record(grade: MeanGrade, scale: str) -> dict[str, Any]:
    return {
        "model": grade.model,
        "grade": grade.grade.value,
        **_ends(grade.grade),
        "scale": scale,
        "questions": grade.questions,
        "left_out": grade.left_out,
    }
