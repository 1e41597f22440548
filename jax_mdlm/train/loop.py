"""The loop: state, steps, evaluation, saves, in one page."""

import contextlib
from collections.abc import Mapping

import jax
import optax
from etils import epath

from jax_mdlm import command
from jax_mdlm.config import Config, to_json
from jax_mdlm.containers import SpecialIds, TrainState
from jax_mdlm.conversion import open_origin
from jax_mdlm.data.corpus import Corpus
from jax_mdlm.evaluation.periodic import make_evaluation
from jax_mdlm.model import table
from jax_mdlm.progress import Progress
from jax_mdlm.sharding import Layout
from jax_mdlm.storage import Checkpoints, open_checkpoints
from jax_mdlm.train.stop import Stop
from jax_mdlm.training import checkpoint
from jax_mdlm.training.metrics import Log, Throughput, Window
from jax_mdlm.training.optimizer import make_optimizer
from jax_mdlm.training.state import abstract_state, create_state, with_slack_row
from jax_mdlm.training.step import make_train_step
from jax_mdlm.workdir import checkpoint_folder


def train(config: Config, corpus: Corpus, layout: Layout, workdir: epath.Path) -> TrainState:
    """Trains, or goes on training, in `workdir`; returns the last state."""
    ids = corpus.tokenizer.ids
    optimizer = make_optimizer(config.optimizer, config.train.steps, ids)
    checkpoints = open_checkpoints(checkpoint_folder(workdir), keep=config.train.keep_checkpoints)
    state = _begin(config, optimizer, ids, layout, checkpoints, workdir)
    step = first_step = int(state.step)

    train_step = make_train_step(config, optimizer, ids, layout)
    evaluation = make_evaluation(config, corpus, layout, workdir)
    batches = corpus.batches(config, step)
    log = Log(workdir, resumed_at=step, tensorboard=config.train.tensorboard)
    window, throughput = Window(), Throughput(config.model, config.data.length)
    progress = Progress(config.train.steps, start=step, active=jax.process_index() == 0)
    stop = Stop()
    resolved = to_json(config)

    def save() -> None:
        window.check()  # never save what is not finite
        checkpoint.save_state(checkpoints, state, resolved)

    def evaluate() -> None:
        values = evaluation(state.params)
        log.write(step, "validation", values)
        progress.line(step, "validation", values)
        throughput.restart()

    def report() -> None:
        values = window.report()
        if values:
            values |= throughput.read(values.pop("tokens"))
            values |= ctc_health(values, progress)
            log.write(step, "train", values)
            progress.line(step, "train", values)

    progress.note(f"training rows: {corpus.train.counts}")
    progress.note(f"{table.num_parameters(config.model):,} parameters, {describe(layout)}")
    # Closed in reverse: a save that is under way is finished, whatever ends the loop.
    closing = contextlib.closing
    with closing(checkpoints), closing(log), closing(batches), progress, stop:
        while step < config.train.steps and not stop.requested(step):
            with jax.transfer_guard("disallow"):  # a silent copy in here would cost every step
                batch = layout.place_rows(next(batches))
                state, metrics = train_step(state, batch)
            window.add(step, metrics)
            step += 1
            throughput.step()
            progress.advance(step)
            last = step == config.train.steps
            if step % config.train.log_every == 0:
                report()
            if last or (config.train.evaluate_every and step % config.train.evaluate_every == 0):
                evaluate()
            if last or step % config.train.save_every == 0:
                save()
        if step == first_step == config.train.steps:
            progress.note(f"nothing to do: {workdir} has made its {step} steps")
        elif step < config.train.steps:
            if checkpoints.latest() != step:
                save()
            checkpoints.wait()
            progress.note(f"stopped by a signal and saved at step {step}; run again to go on")
    return state


def ctc_health(values: Mapping[str, float], progress: Progress) -> dict[str, float]:
    """How heavy CTC is beside CE; warns where rows without an alignment are common."""
    if "ctc" not in values:
        return {}
    if values["infeasible"] > 0.01:
        progress.note(
            f"warning: {values['infeasible']:.1%} of the rows have no alignment and are left out "
            "of CTC; raise data.length or set objective.separate_repeats=true"
        )
    return {"ctc_to_ce": values["ctc_weight"] * values["ctc"] / max(values["ce"], 1e-9)}


def describe(layout: Layout) -> str:
    """The mesh and its devices, for the log."""
    axes = [f"{name}={size}" for name, size in layout.mesh.shape.items() if size > 1]
    kind = layout.mesh.devices.flat[0].device_kind
    return f"{layout.mesh.size} {kind} device(s) {' '.join(axes)}".rstrip()


def _begin(
    config: Config,
    optimizer: optax.GradientTransformation,
    ids: SpecialIds,
    layout: Layout,
    checkpoints: Checkpoints,
    workdir: epath.Path,
) -> TrainState:
    """The newest checkpoint; else fresh parameters, or those that `init.from` names."""
    abstract = abstract_state(config, optimizer, layout)
    latest = checkpoints.latest()
    if latest is not None:
        return checkpoint.restore_state(checkpoints, latest, abstract)
    if not config.init.source:
        return create_state(config, optimizer, layout)
    origin = open_origin(config.init.source)
    params = origin.params(config.model, abstract.params, layout, command.warn)
    how = config.init.slack_row
    if how == "auto":
        how = "keep" if origin.knows_slack else "mean"
    params = with_slack_row(params, how, ids, layout, config.train.seed)
    if jax.process_index() == 0:
        origin.keep_files(workdir)
    return create_state(config, optimizer, layout, params)
