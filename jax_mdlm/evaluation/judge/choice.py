"""What the flag --benchmark stands for."""

from jax_mdlm.config import ConfigError
from jax_mdlm.evaluation.judge import ArenaHard, Benchmark, CreativeWriting, MtBench, WildBench

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
