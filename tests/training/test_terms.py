"""A term of the objective is one entry: its metrics come out of step, validation and console."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from jax_mdlm.config import Config, MeshConfig
from jax_mdlm.containers import Mean, TrainState
from jax_mdlm.data.corpus import Corpus, load_corpus
from jax_mdlm.diffusion import TERMS, Seen, Term, TermWeight, validation_metrics
from jax_mdlm.evaluation.periodic import make_evaluation
from jax_mdlm.progress import Progress
from jax_mdlm.sharding import make_layout
from jax_mdlm.training.loop import term_health
from jax_mdlm.training.optimizer import make_optimizer
from jax_mdlm.training.state import create_state
from jax_mdlm.training.step import make_train_step, shown_metrics


def sharpness(seen: Seen) -> tuple[jax.Array, dict[str, Mean]]:
    """Per row the mean log-normaliser of the response slots; over rows with a response."""
    there = seen.corruption.response
    squares = jnp.where(there, seen.slots.log_normaliser**2, 0.0)
    rows = jnp.sum(squares, axis=1) / jnp.maximum(jnp.sum(there, axis=1), 1)
    metrics = {
        "sharpness": Mean.of(rows, jnp.any(there, axis=1)),
        "largest": Mean.of(seen.slots.largest, there),
    }
    return jnp.sum(rows), metrics


TOY = Term("sharpness", sharpness, weight=lambda config: TermWeight(0.5), shown=("largest",))


@pytest.fixture
def corpus(tiny: Config, tmp_path) -> Corpus:
    return load_corpus(tiny, epath.Path(tmp_path))


def run(
    config: Config, corpus: Corpus, terms: tuple[Term, ...]
) -> tuple[dict[str, float], TrainState]:
    layout = make_layout(MeshConfig(fsdp=1), jax.devices()[:1])
    size = corpus.tokenizer.vocab_size
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))
    optimizer = make_optimizer(config, corpus.tokenizer.ids)
    state = create_state(config, optimizer, layout)
    step = make_train_step(config, optimizer, corpus.tokenizer.ids, layout, terms=terms)
    batches = corpus.batches(config, 0, layout.share())
    state, metrics = step(state, layout.place_rows(next(batches)))
    batches.close()
    return {name: float(mean.value) for name, mean in metrics.items()}, state


@pytest.mark.slow
def test_a_term_is_trained_logged_validated_and_shown(
    tiny: Config, corpus: Corpus, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual, _ = run(tiny, corpus, TERMS)
    values, state = run(tiny, corpus, (*TERMS, TOY))
    assert values.keys() - usual.keys() == {"sharpness", "largest", "sharpness_weight"}
    assert values["sharpness_weight"] == 0.5
    expected = usual["loss"] + 0.5 * values["sharpness"]
    assert values["loss"] == pytest.approx(expected, rel=1e-6)
    assert values["grad_norm"] != usual["grad_norm"], "it is differentiated"

    size = corpus.tokenizer.vocab_size
    config = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, vocab_size=size))
    layout = make_layout(MeshConfig(fsdp=1), jax.devices()[:1])
    workdir, terms = epath.Path(tmp_path), (*TERMS, TOY)
    measured = make_evaluation(config, corpus, layout, workdir, terms)(state.params).values
    assert list(measured) == validation_metrics(terms)
    assert {"sharpness", "largest"} <= measured.keys()

    progress = Progress(5)
    health = term_health(values, config, progress, terms)
    assert health["sharpness_to_ce"] == pytest.approx(0.5 * values["sharpness"] / values["ce"])
    progress.line(1, "train", values, shown_metrics(terms))
    assert f"sharpness {values['sharpness']:.3g}" in capsys.readouterr().err


@pytest.mark.slow
def test_parts_of_a_batch_add_up_with_a_term(tiny: Config, corpus: Corpus) -> None:
    parts = dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, microbatches=4))
    (whole, left), (added, right) = (run(one, corpus, (*TERMS, TOY)) for one in (tiny, parts))
    for name in whole:
        assert added[name] == pytest.approx(whole[name], rel=1e-5, abs=1e-6), name
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), left.params, right.params
    )


def test_a_weight_of_zero_leaves_a_term_out(tiny: Config, corpus: Corpus) -> None:
    off = dataclasses.replace(TOY, weight=lambda config: TermWeight(0.0))
    values, _ = run(tiny, corpus, (*TERMS, off))
    assert not {"sharpness", "largest"} & values.keys()


def test_a_metric_that_no_term_names_is_refused(tiny: Config, corpus: Corpus) -> None:
    unnamed = dataclasses.replace(TOY, shown=())
    with pytest.raises(ValueError, match="term sharpness must give the metrics that it alone"):
        run(tiny, corpus, (*TERMS, unnamed))
