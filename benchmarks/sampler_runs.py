"""The runs of `benchmark sampler`: a generation, a batch size with all its settings, the search.

Enters: parameters, prompts and options. Leaves: figures. A time is what a user waits for: prompts
leave the host, the answers are back on it.
"""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import Params
from jax_mdlm.sampling import SampleOptions, sample

Prompts = list[list[int]]

_SEARCH_RUNS = 16  # at most
_NEAR = 0.05  # relative; ends the search


@dataclasses.dataclass(frozen=True)
class Decoded:
    """One generation, on the host.

    Attributes:
      seconds: From prompts to answers.
      tokens: int32 [B, R]; the region that was decoded.
      committed_at: int32 [B, R].
      calls: Model calls.
    """

    seconds: float
    tokens: np.ndarray
    committed_at: np.ndarray
    calls: int

    @property
    def commits(self) -> float:
        """Commits of a row per call that committed in it, on average.

        Of a row: the slowest row of a block decides how many calls the batch makes, and a model
        would look less certain in a larger batch.
        """
        return self.tokens.size / sum(len(np.unique(row)) for row in self.committed_at)


def decode(
    params: Params, config: ModelConfig, prompts: Prompts, options: SampleOptions
) -> Decoded:
    """One generation: host to device to host."""
    key = jax.random.key(0)
    start = time.perf_counter()
    state = sample(params, config, prompts, options, key)
    canvas, committed_at, calls = jax.device_get((state.canvas, state.committed_at, state.step))
    seconds = time.perf_counter() - start
    start = state.region.start
    return Decoded(seconds, canvas[:, start:], committed_at[:, start:], int(calls))


def measure(
    params: Params,
    config: ModelConfig,
    prompts: Prompts,
    decodings: dict[str, SampleOptions],
    rival: Callable[[Prompts], Any] | None,
    repeats: int,
) -> dict[str, Any]:
    """The figures of one batch.

    Runs are interleaved, one of each decoding and then from the start again, so that a machine
    that gets slower or faster does so for all of them; medians count.

    Args:
      params: As from `model.prepare`.
      config: The network.
      prompts: Of one length.
      decodings: Options by name; the first is the exact one that others are compared with.
      rival: Decodes prompts to a canvas [B, L]; None = there is none.
      repeats: Timed runs of each.

    Returns:
      `rival`: median seconds, all runs, tokens per second; None without one. `settings`: by name
      the same, and
        calls, ms_per_call: model calls of a generation, and its time divided by them
        commits_per_call: `Decoded.commits`
        times_rival, times_rival_fastest: rival's time divided by ours; medians, fastest runs
        equal_to_rival, equal_to_exact: share of equal tokens
        first_call_seconds, compile_seconds: of the run that compiled (not at all where a search
          did so before)
    """
    num_new = next(iter(decodings.values())).settings.length
    size = len(prompts) * num_new
    theirs = None if rival is None else np.asarray(rival(prompts))[:, -num_new:]  # warms it up
    first, compiling = {}, {}
    for name, options in decodings.items():
        with _compilations() as seconds:
            first[name] = decode(params, config, prompts, options)
        compiling[name] = sum(seconds)

    times: dict[str, list[float]] = {name: [] for name in decodings}
    rival_times: list[float] = []
    for _ in range(repeats):
        if rival is not None:
            start = time.perf_counter()
            rival(prompts)
            rival_times.append(time.perf_counter() - start)
        for name, options in decodings.items():
            times[name].append(decode(params, config, prompts, options).seconds)

    waited = statistics.median(rival_times) if rival_times else None
    exact = next(iter(first.values())).tokens
    return {
        "rival": None if waited is None else _speed(rival_times, size),
        "settings": {
            name: {
                **_speed(times[name], size),
                "calls": run.calls,
                "ms_per_call": round(1e3 * statistics.median(times[name]) / run.calls, 3),
                "commits_per_call": round(run.commits, 3),
                "times_rival": waited and round(waited / statistics.median(times[name]), 3),
                "times_rival_fastest": waited and round(min(rival_times) / min(times[name]), 3),
                "equal_to_rival": None if theirs is None else float(np.mean(run.tokens == theirs)),
                "equal_to_exact": float(np.mean(run.tokens == exact)),
                "first_call_seconds": round(run.seconds, 3),
                "compile_seconds": round(compiling[name], 3),
            }
            for name, run in first.items()
        },
    }


def search_scale(commits: Callable[[float], float], target: float) -> tuple[float, float]:
    """Finds the factor of the head at which `commits(factor)` is about `target`.

    The factor is doubled until there are enough commits, then bisected on a logarithmic axis.
    `commits` rises only on the whole, so the best factor that was seen is returned.

    Args:
      commits: Commits a call with a head that is so many times as large.
      target: Commits a call that are looked for.

    Returns:
      The factor, and what it gave.
    """
    low, high, scale = 1.0, float("inf"), 1.0
    best = 1.0, float("inf")
    for _ in range(_SEARCH_RUNS):
        found = commits(scale)
        if abs(found - target) < abs(best[1] - target):
            best = scale, found
        if abs(found - target) <= _NEAR * target:
            break
        low, high = (scale, high) if found < target else (low, scale)
        scale = 2 * low if high == float("inf") else (low * high) ** 0.5
    return best


def _speed(seconds: list[float], num_tokens: int) -> dict[str, Any]:
    middle = statistics.median(seconds)
    return {
        "seconds": round(middle, 4),
        "runs": [round(run, 4) for run in seconds],
        "tokens_per_second": round(num_tokens / middle, 2),
    }


@contextlib.contextmanager
def _compilations() -> Iterator[list[float]]:
    """A list that gets the seconds of every compilation while it is open."""
    seconds: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event.endswith("/backend_compile_duration"):
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
