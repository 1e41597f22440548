"""The evaluation during training: the objective on held-out rows, and error rates where they exist.

Enters: a run's config, corpus and layout. Leaves: a function of the parameters.
"""

from collections.abc import Callable, Sequence

import jax
from etils import epath

from jax_mdlm.config import Config
from jax_mdlm.containers import Params
from jax_mdlm.data.chat import template_of
from jax_mdlm.data.corpus import Corpus, open_references
from jax_mdlm.data.pipeline import evaluation_batches
from jax_mdlm.diffusion import TERMS, Term, validation_metrics
from jax_mdlm.evaluation.tasks import evaluate_pronunciations
from jax_mdlm.sampling import options_from
from jax_mdlm.sharding import Layout
from jax_mdlm.training.metrics import mean_value
from jax_mdlm.training.step import make_evaluation_step

Evaluation = Callable[[Params], dict[str, float]]


def make_evaluation(
    config: Config,
    corpus: Corpus,
    layout: Layout,
    workdir: epath.Path,
    terms: Sequence[Term] = TERMS,
) -> Evaluation:
    """What `train` measures on the validation rows.

    Always `nll_bound` (nats per response token: an upper bound on the negative log-likelihood of
    the text) and the terms of the objective, with the same slack and noise at every call. For
    `pronunciations` also phoneme and word error rate of decoded words.
    """
    measures = [_objective(config, corpus, layout, terms)]
    if config.data.source == "pronunciations":
        measures.append(_pronunciations(config, corpus, layout, workdir))
    return lambda params: {
        name: value for measure in measures for name, value in measure(params).items()
    }


def _objective(config: Config, corpus: Corpus, layout: Layout, terms: Sequence[Term]) -> Evaluation:
    step = make_evaluation_step(config, corpus.tokenizer.ids, layout, terms)
    names = validation_metrics(terms)

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
        return {name: mean_value([p[name] for p in parts]) for name in names if name in parts[0]}

    return measure


def _pronunciations(
    config: Config, corpus: Corpus, layout: Layout, workdir: epath.Path
) -> Evaluation:
    words = open_references(config.data, workdir, "validation")
    words = words[: config.train.evaluate_rows or None]
    options = options_from(config.sample, config.objective.collapse, corpus.tokenizer.ids)
    template = template_of(config.data, corpus.tokenizer)

    def measure(params: Params) -> dict[str, float]:
        scores = evaluate_pronunciations(
            params,
            config.model,
            words,
            corpus.tokenizer,
            template,
            options,
            jax.random.key(config.sample.seed),
            batch_size=config.sample.batch_size,
            layout=layout,
        )
        return {
            "phoneme_error_rate": scores.rates.phoneme,
            "word_error_rate": scores.rates.word,
            "slack_share": scores.slack_share,
        }

    return measure
