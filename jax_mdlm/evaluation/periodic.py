"""The evaluation during training: the objective on held-out rows, and answers to some of them.

Enters: a run's config, corpus and layout. Leaves: a function of the parameters that gives numbers
and sample texts.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
from etils import epath

from jax_mdlm.config import Config, ConfigError
from jax_mdlm.containers import Params
from jax_mdlm.data.batches import evaluation_batches
from jax_mdlm.data.chat import Conversation, template_of
from jax_mdlm.data.corpus import Corpus
from jax_mdlm.data.tokenizer import slot_texts, without_end
from jax_mdlm.diffusion import TERMS, Term, validation_metrics
from jax_mdlm.evaluation.scores import metric_named
from jax_mdlm.evaluation.tasks import Task, open_task, rows_decoded, slack_share, task_of_rows
from jax_mdlm.mdlm import Mdlm
from jax_mdlm.sampling import why_too_long
from jax_mdlm.setup import Setup
from jax_mdlm.sharding import Layout
from jax_mdlm.training.log import Measured, Sample, mean_value
from jax_mdlm.training.step import make_evaluation_step

Evaluation = Callable[[Params], Measured]


def make_evaluation(
    config: Config,
    corpus: Corpus,
    layout: Layout,
    workdir: epath.Path,
    terms: Sequence[Term] = TERMS,
    note: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """What `train` measures on the validation rows.

    Always `nll_bound` (nats per response token: an upper bound on the negative log-likelihood of
    the text) and the terms of the objective, with the same slack and noise at every call. Where the
    rows ask something, `train.decode_rows` of them are decoded: the scores of their task, and
    `slack_share`.

    Args:
      config: The run.
      corpus: Its rows and tokenizer.
      layout: Mesh and rules; all processes decode together.
      workdir: Where prepared data lives.
      terms: Of the objective.
      note: Is told what cannot be measured.
    """
    measures = [_objective(config, corpus, layout, terms)]
    if task := _open(config, corpus, workdir, note):
        measures.append(_decoded(_setup(config, corpus, workdir), layout, task))

    def measure(params: Params) -> Measured:
        found = [one(params) for one in measures]
        values = {name: value for one in found for name, value in one.values.items()}
        return Measured(values, [sample for one in found for sample in one.samples])

    return measure


def _objective(config: Config, corpus: Corpus, layout: Layout, terms: Sequence[Term]) -> Evaluation:
    step = make_evaluation_step(config, corpus.tokenizer.ids, layout, terms)
    names = validation_metrics(terms)

    def measure(params: Params) -> Measured:
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
        found = {name: mean_value([p[name] for p in parts]) for name in names if name in parts[0]}
        return Measured(found)

    return measure


def _open(
    config: Config, corpus: Corpus, workdir: epath.Path, note: Callable[[str], None]
) -> Task | None:
    """The rows that are decoded; None where there are none. The same on every process."""
    rows = rows_decoded(config)
    if corpus.held_out is None or rows == 0:
        return None
    if config.data.source == "pronunciations":  # its rows have more than one right answer each
        task = open_task(config, workdir, limit=rows or 0)
    else:
        task = task_of_rows(config, corpus.held_out, _fits(_setup(config, corpus, workdir)))
    if not task.conversations:
        note(f"no row of {task.name} has an answer and fits sample.length: none is decoded")
        return None
    scores = []
    for score in task.scores:
        try:
            metric_named(score.metric)
            scores.append(score)
        except ConfigError as error:
            note(f"validation leaves out {score.name}: {error}")
    return dataclasses.replace(task, scores=tuple(scores))


def _fits(setup: Setup) -> Callable[[Conversation], bool]:
    def fits(conversation: Conversation) -> bool:
        try:
            prompt = setup.encode(conversation)
        except ConfigError:  # a row that is skipped in training too
            return False
        return not why_too_long(prompt, setup.options, setup.config.model.max_length)

    return fits


def _setup(config: Config, corpus: Corpus, workdir: epath.Path) -> Setup:
    return Setup(workdir, config, corpus.tokenizer, template_of(config.data, corpus.tokenizer))


def _decoded(setup: Setup, layout: Layout, task: Task) -> Evaluation:
    prompts, tokenizer = task.prompts(setup), setup.tokenizer

    def measure(params: Params) -> Measured:
        answers = list(Mdlm.of(setup, params, layout, 0).decode(prompts))
        texts = [tokenizer.decode(answer.tokens) for answer in answers]
        values = {score.name: score.value(texts, task.references) for score in task.scores}
        canvases = [without_end(answer.response.tolist(), tokenizer) for answer in answers]
        rows = zip(task.conversations, task.references, texts, canvases, strict=True)
        samples = [
            Sample(_text_of(asked), accepted[0], text, slot_texts(canvas, tokenizer))
            for asked, accepted, text, canvas in rows
        ]
        return Measured(values | {"slack_share": slack_share(answers, setup.options)}, samples)

    return measure


def _text_of(conversation: Conversation) -> str:
    if isinstance(conversation, str):
        return conversation
    return "\n".join(message[1] for message in conversation)  # pyright: ignore
