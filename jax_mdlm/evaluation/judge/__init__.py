"""LLM judges: the files of public benchmarks, a client, win rates.

`arena_hard`, `mt_bench`, `wildbench` and `creative_writing` each write and read the files that the
tools of that benchmark write and read, so that the official judges run on a run's answers.
"""

from jax_mdlm.config import ConfigError
from jax_mdlm.evaluation.judge.arena_hard import ArenaHard
from jax_mdlm.evaluation.judge.client import Client, Endpoint
from jax_mdlm.evaluation.judge.comparing import find_matches, judge_matches, not_judged, one_model
from jax_mdlm.evaluation.judge.creative_writing import CreativeWriting
from jax_mdlm.evaluation.judge.mt_bench import MtBench
from jax_mdlm.evaluation.judge.records import Benchmark, Judge, Question
from jax_mdlm.evaluation.judge.scores import MeanGrade, WinRate, mean_grades, win_rates
from jax_mdlm.evaluation.judge.wildbench import WildBench

__all__ = [
    "ArenaHard",
    "Benchmark",
    "Client",
    "CreativeWriting",
    "Endpoint",
    "Judge",
    "MeanGrade",
    "MtBench",
    "Question",
    "WildBench",
    "WinRate",
    "find_matches",
    "judge_matches",
    "make_benchmark",
    "mean_grades",
    "not_judged",
    "one_model",
    "win_rates",
]

_PLAIN: dict[str, Benchmark] = {
    "arena_hard": ArenaHard(),
    "mt_bench": MtBench(),
    "wildbench": WildBench(),
}


def make_benchmark(
    name: str, iterations: int | None = None, official_judge: str | None = None
) -> Benchmark:
    """The files of a benchmark.

    Args:
      name: As in --benchmark.
      iterations: As in --iterations.
      official_judge: As in --official-judge.

    Raises:
      ConfigError: a flag of creative_writing with another benchmark, or no iteration.
    """
    given = {"--iterations": iterations, "--official-judge": official_judge}
    settings = {flag: value for flag, value in given.items() if value is not None}
    if name in _PLAIN:
        if settings:
            raise ConfigError(f"{next(iter(settings))} is for creative_writing only, got {name}")
        return _PLAIN[name]
    if iterations is not None and iterations < 1:
        raise ConfigError(f"--iterations must be at least 1, got {iterations}")
    benchmark = CreativeWriting()
    return CreativeWriting(
        iterations=iterations or benchmark.iterations, judge=official_judge or benchmark.judge
    )
