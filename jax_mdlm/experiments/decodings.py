"""The experiment of arXiv 2601.22947: scores of decoded text under interventions of some strengths.

Enters: a trained run and a task. Leaves: errors per row and strength, kept in the work directory,
so that a curve is decoded once and serves every table and figure. `statistics` says what the
curves mean.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from jax_mdlm.evaluation.scores import distinct, repetition
from jax_mdlm.evaluation.tasks import Task, slack_share
from jax_mdlm.experiments.statistics import Curve
from jax_mdlm.mdlm import Mdlm
from jax_mdlm.sampling import SampleOptions
from jax_mdlm.storage import replace_text

FOLDER = "interventions"  # in the work directory


@dataclasses.dataclass(frozen=True)
class Decoded:
    """One decoding of all rows of a task.

    Attributes:
      errors: Per row.
      units: Per row; see `scores.Metric`.
      slack_share: Slack per decoded slot before the terminator.
      distinct: Distinct bigrams over all bigrams.
      repetition: Mean share of repeated 4-grams.
      calls: Model calls a row takes, mean.
    """

    errors: list[float]
    units: list[float]
    slack_share: float
    distinct: float
    repetition: float
    calls: float


def decode_task(
    model: Mdlm,
    task: Task,
    prompts: Sequence[Sequence[int] | None],
    options: SampleOptions,
    *,
    strength: float,
    seed: int,
) -> Decoded:
    """Decodes and scores all rows of a task once.

    Args:
      model: Answers.
      task: Rows and metric.
      prompts: Of the rows, as `task.prompts` renders them.
      options: How to decode; the strategy is the intervention, where `strength` is above 0.
      strength: Of the intervention.
      seed: Of the decoding: interventions and noise.
    """
    key = jax.random.key(seed)
    answers = list(model.decode(prompts, key=key, options=options, strength=strength))
    texts = [model.tokenizer.decode(answer.tokens) for answer in answers]
    errors, units = task.metric.score(texts, task.references)
    return Decoded(
        errors=errors.tolist(),
        units=units.tolist(),
        slack_share=slack_share(answers, options),
        distinct=distinct(texts),
        repetition=float(np.mean([repetition(text) for text in texts])),
        calls=float(np.mean([answer.own_calls for answer in answers])),
    )


class Store:
    """Decodings of a work directory, one file for each."""

    def __init__(self, workdir: epath.Path, what: dict[str, Any]) -> None:
        """`what` names everything but strength and seed that a decoding depends on."""
        self._folder, self._what = workdir / FOLDER, what

    def get(self, strength: float, seed: int, make: Callable[[], Decoded]) -> Decoded:
        """Reads a decoding, or makes it and, in the first process, writes it."""
        what = {**self._what, "strength": strength, "seed": seed}
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
        path = self._folder / f"{digest}.json"
        if path.exists():
            return Decoded(**json.loads(path.read_text())["decoded"])
        made = make()
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Another evaluation of this run may have been quicker.
            replace_text(path, json.dumps({"what": what, "decoded": dataclasses.asdict(made)}))
        return made


def seeds_for(strength: float, seeds: int, options: SampleOptions) -> range:
    """Decodings that differ: one where nothing is drawn."""
    random = strength > 0 or options.settings.temperature > 0 or options.strategy.draws
    return range(seeds if random else 1)


def curve_of(strengths: Sequence[float], decoded: Sequence[Sequence[Sequence[Decoded]]]) -> Curve:
    """The curve of a model.

    Args:
      strengths: Ascending.
      decoded: [training seed][strength][decoding seed].

    Returns:
      Errors and units of a row, summed over decodings and scaled to one: a strength that was
      decoded once weighs as much as one that was decoded five times.
    """

    def gather(name: str) -> np.ndarray:
        return np.array(
            [
                [np.mean([getattr(one, name) for one in runs], axis=0) for runs in trained]
                for trained in decoded
            ]
        )

    return Curve(np.asarray(strengths, np.float64), gather("errors"), gather("units"))
