"""The evaluation during training: the objective on held-out rows, and error rates where they exist.

Enters: a run's config, corpus and layout. Leaves: a function of the parameters.
"""

from collections.abc import Callable

import jax
from etils import epath

from jax_mdlm.config import Config
from jax_mdlm.containers import Params
from jax_mdlm.data.chat import template_of
from jax_mdlm.data.corpus import Corpus, open_references
from jax_mdlm.data.pipeline import evaluation_batches
from jax_mdlm.evaluation.tasks import evaluate_pronunciations
from jax_mdlm.mdlm import Mdlm
from jax_mdlm.setup import Setup
from jax_mdlm.sharding import Layout
from jax_mdlm.training.metrics import mean_value
from jax_mdlm.training.step import make_evaluation_step

Evaluation = Callable[[Params], dict[str, float]]


def make_evaluation(
    config: Config, corpus: Corpus, layout: Layout, workdir: epath.Path
) -> Evaluation:
    """What `train` measures on the validation rows.

    Always `nll_bound` (nats per response token: an upper bound on the negative log-likelihood of
    the text) and the terms of the objective, with the same slack and noise at every call. For
    `pronunciations` also phoneme and word error rate of decoded words.
    """
    measures = [_objective(config, corpus, layout)]
    if config.data.source == "pronunciations":
        measures.append(_pronunciations(config, corpus, layout, workdir))
    return lambda params: {
        name: value for measure in measures for name, value in measure(params).items()
    }


def _objective(config: Config, corpus: Corpus, layout: Layout) -> Evaluation:
    step = make_evaluation_step(config, corpus.tokenizer.ids, layout)

    def measure(params: Params) -> dict[str, float]:
        key = jax.random.key(config.train.seed)
        batches = evaluation_batches(
            corpus.validation,
            config.data,
            batch_size=config.train.batch_size,
            limit=config.train.evaluate_rows,
            share=layout.share(),
        )
        parts = []
        for number, batch in enumerate(batches):
            rows = layout.place_rows(batch)
            parts.append(step(params, rows, jax.random.fold_in(key, number)))
        parts = jax.device_get(parts)
        names = ("nll_bound", "ce", "ctc", "accuracy", "slack_predicted", "infeasible")
        return {name: mean_value([p[name] for p in parts]) for name in names if name in parts[0]}

    return measure


def _pronunciations(
    config: Config, corpus: Corpus, layout: Layout, workdir: epath.Path
) -> Evaluation:
    words = open_references(config.data, workdir, "validation")
    words = words[: config.train.evaluate_rows or None]
    template = template_of(config.data, corpus.tokenizer)
    setup = Setup(workdir, config, corpus.tokenizer, template)

    def measure(params: Params) -> dict[str, float]:
        scores = evaluate_pronunciations(Mdlm.of(setup, params, layout, 0), words)
        return {
            "phoneme_error_rate": scores.rates.phoneme,
            "word_error_rate": scores.rates.word,
            "slack_share": scores.slack_share,
        }

    return measure
