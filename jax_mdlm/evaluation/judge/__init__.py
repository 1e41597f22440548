"""LLM judges: the files of public benchmarks, a client, win rates.

`arena_hard`, `mt_bench`, `wildbench` and `creative_writing` each write and read the files that the
tools of that benchmark write and read, so that the official judges run on a run's answers.
"""

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
    "mean_grades",
    "not_judged",
    "one_model",
    "win_rates",
]
