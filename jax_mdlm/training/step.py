"""One update: noise, loss, gradient, optimizer; a pure function of state and batch, jitted here.

Slack and noise are drawn on the device for the whole batch from `fold_in(key, step)`, before the
batch is cut into microbatches: a resumed run repeats its draws, and accumulation changes nothing
but the memory.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from jax_mdlm import diffusion, model
from jax_mdlm.config import Config, ConfigError
from jax_mdlm.containers import Batch, Corruption, Mean, Params, SpecialIds, TrainState
from jax_mdlm.data.order import length_buckets
from jax_mdlm.sharding import Layout
from jax_mdlm.training.optimizer import learning_rate
from jax_mdlm.training.state import abstract_state, network_params

Metrics = dict[str, Mean]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def fit_batch(config: Config, layout: Layout) -> Config:
    """The config with `train.microbatches` filled in where it is 0.

    Then a device has one row of the longest canvas at a time, on whatever slice the run goes on.

    Raises:
      ConfigError: the batch (of any canvas) does not divide into the mesh's shards and the parts.
    """
    train, shards = config.train, layout.batch_shards
    if train.microbatches == 0:
        train = dataclasses.replace(train, microbatches=max(train.batch_size // shards, 1))
    for bucket in length_buckets(config.data, config.objective, train.batch_size):
        rows, rest = divmod(bucket.rows, train.microbatches)
        if rest or rows % shards:
            raise ConfigError(
                "train.batch_size / train.microbatches must be a multiple of the mesh's "
                f"{shards} batch shards, got {bucket.rows / train.microbatches:g} (rows of "
                f"{bucket.length} slots); change the batch size or the mesh"
            )
    return dataclasses.replace(config, train=train)


def make_train_step(
    config: Config,
    optimizer: optax.GradientTransformation,
    ids: SpecialIds,
    layout: Layout,
    *,
    mean_rows: float | None = None,
    terms: Sequence[diffusion.Term] = diffusion.TERMS,
) -> TrainStep:
    """Compiles the update, at the first call with each shape of a batch; the state is donated.

    The loss of a step is a mean over its rows. With length buckets (`data.buckets`) steps on short
    canvases have more rows; were their gradients taken as they are, a row would count the less the
    shorter it is. A step's gradient is therefore multiplied by its rows / `mean_rows`: summed over
    an epoch every row has the same weight, and the mean over steps is the gradient of the mean over
    rows. `optimizer.clip_norm` applies to the weighted gradient.

    Args:
      config: The run.
      optimizer: Makes an update of a gradient.
      ids: Special token ids.
      layout: Places state and batch.
      mean_rows: Rows of a step on average, over an epoch; None = those of every batch.
      terms: Of the objective.

    Returns:
      `(state, batch) -> (state, metrics)`; the metrics are those of `diffusion.objective` plus
      `loss` (nats), `grad_norm` (before clipping), `learning_rate`, each term's weight
      (`ctc_weight`) and `tokens` (valid slots), all as `Mean`.
    """
    rate = learning_rate(config.optimizer, config.train.steps)
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, optimizer, layout))

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        corruption = diffusion.corrupt(key, batch, ids, config.objective)
        weights = diffusion.weights_at(config.objective, state.step, terms)
        loss = functools.partial(
            _loss, weights=weights, config=config, ids=ids, layout=layout, terms=terms
        )
        # The denominators of the whole batch, so that the parts add up to exactly its gradient.
        whole = functools.partial(diffusion.count_rows, corruption, ids, config.objective, terms)
        grads, metrics = _gradient(
            loss, whole, state.params, state.frozen, corruption, config.train.microbatches, layout
        )
        if mean_rows is not None:
            grads, metrics = _weigh(grads, metrics, len(batch.tokens) / mean_rows)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {
            "grad_norm": Mean.of(optax.tree.norm(grads)),
            "learning_rate": Mean.of(jnp.asarray(rate(state.step))),
            **{f"{name}_weight": Mean.of(weight) for name, weight in weights.items()},
            "tokens": Mean.of(jnp.sum(corruption.valid, dtype=jnp.float32)),
        }
        new = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)
        return new, metrics

    return jax.jit(
        train_step,
        in_shardings=(places, layout.rows),
        out_shardings=(places, layout.replicated),
        donate_argnums=0,
    )


def make_evaluation_step(
    config: Config,
    ids: SpecialIds,
    layout: Layout,
    terms: Sequence[diffusion.Term] = diffusion.TERMS,
) -> Callable[[Params, Batch, jax.Array], Metrics]:
    """Compiles `(params, batch, key) -> metrics` of the objective, without an update."""

    def evaluation_step(params: Params, batch: Batch, key: jax.Array) -> Metrics:
        corruption = diffusion.corrupt(key, batch, ids, config.objective)
        return _loss(
            params, None, corruption, None, config=config, ids=ids, layout=layout, terms=terms
        )[1]

    return jax.jit(evaluation_step, out_shardings=layout.replicated)


def shown_metrics(terms: Sequence[diffusion.Term] = diffusion.TERMS) -> tuple[str, ...]:
    """Metrics of a step that the console shows, in order, where they are there."""
    return ("loss", *diffusion.training_metrics(terms), "grad_norm", "learning_rate")


def _gradient(
    loss: Callable[..., tuple[jax.Array, Metrics]],
    count_rows: Callable[[], dict[str, jax.Array]],
    params: Params,
    frozen: Params | None,
    corruption: Corruption,
    parts: int,
    layout: Layout,
) -> tuple[Params, Metrics]:
    gradient = jax.grad(loss, has_aux=True)
    if parts == 1:
        return gradient(params, frozen, corruption, None)
    rows = count_rows()

    def accumulate(total: Params, part: Corruption) -> tuple[Params, Metrics]:
        part = jax.tree.map(lambda x: layout.constrain(x, "batch"), part)
        grads, metrics = gradient(params, frozen, part, rows)
        return jax.tree.map(jnp.add, total, grads), metrics

    # Row b goes to part b % parts: each device keeps its own rows, nothing moves.
    split = jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), corruption
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, metrics = jax.lax.scan(accumulate, zeros, split)
    # Every quantity is a total and a count; only the loss is already divided by the whole's rows.
    metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)
    metrics["loss"] = Mean(metrics["loss"].total, jnp.ones(()))
    return grads, metrics


def _weigh(grads: Params, metrics: Metrics, weight: float) -> tuple[Params, Metrics]:
    """A step whose rows are `weight` times those of the mean step."""
    if weight == 1.0:  # no buckets: nothing is multiplied
        return grads, metrics
    grads = jax.tree.map(lambda gradient: weight * gradient, grads)
    # A mean over rows, like the terms that it is made of, when the steps of a window are added.
    loss = Mean(weight * metrics["loss"].total, weight * metrics["loss"].count)
    return grads, metrics | {"loss": loss}


def _loss(
    params: Params,
    frozen: Params | None,
    corruption: Corruption,
    rows: dict[str, jax.Array] | None,
    *,
    weights: dict[str, jax.Array] | None = None,
    config: Config,
    ids: SpecialIds,
    layout: Layout,
    terms: Sequence[diffusion.Term],
) -> tuple[jax.Array, Metrics]:
    params = network_params(params, frozen, config, ids)
    hidden = model.encode(params, corruption.inputs, config.model, corruption.valid, layout)
    loss, metrics = diffusion.objective(
        hidden,
        model.head(params),
        corruption,
        ids,
        config.objective,
        weights=weights,
        rows=rows,
        constrain=layout.constrain,
        shards=(layout.parts("batch", "length"), layout.parts("vocab")),
        terms=terms,
    )
    return loss, metrics | {"loss": Mean.of(loss)}
