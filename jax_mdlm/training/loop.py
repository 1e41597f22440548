"""The loop: state, steps, evaluation, saves, in one page."""

import contextlib
from collections.abc import Callable, Mapping, Sequence

import jax
from etils import epath

from jax_mdlm.config import Config, config_to_json, profile_steps
from jax_mdlm.containers import Params, TrainState
from jax_mdlm.data.corpus import Corpus
from jax_mdlm.diffusion import TERMS, Term
from jax_mdlm.model import table
from jax_mdlm.progress import Progress
from jax_mdlm.sharding import Layout
from jax_mdlm.storage import open_checkpoints
from jax_mdlm.training.begin import begin, save_state
from jax_mdlm.training.log import SHOWN, Log, Measured, StepMetrics
from jax_mdlm.training.optimizer import make_optimizer
from jax_mdlm.training.state import network_params
from jax_mdlm.training.step import make_train_step, shown_metrics
from jax_mdlm.training.stop import Stop
from jax_mdlm.training.timing import Capture, Goodput, Throughput, goodput_line
from jax_mdlm.workdir import checkpoint_folder

# What is measured on the validation rows; the command brings it, for it also decodes.
MakeEvaluation = Callable[
    [Config, Corpus, Layout, epath.Path, Sequence[Term], Callable[[str], None]],
    Callable[[Params], Measured],
]


def train(
    config: Config,
    corpus: Corpus,
    layout: Layout,
    workdir: epath.Path,
    watch: Goodput,
    make_evaluation: MakeEvaluation,
    terms: Sequence[Term] = TERMS,
) -> TrainState:
    """Trains, or goes on training, in `workdir`; returns the last state."""
    ids = corpus.tokenizer.ids
    optimizer = make_optimizer(config, ids)
    checkpoints = open_checkpoints(
        checkpoint_folder(workdir),
        keep=config.train.keep_checkpoints,
        keep_every=config.train.keep_every,
    )
    state = begin(config, optimizer, ids, layout, checkpoints, workdir)
    step = first_step = int(state.step)

    order = corpus.order(config)
    train_step = make_train_step(
        config, optimizer, ids, layout, mean_rows=order.mean_rows, terms=terms
    )
    progress = Progress(config.train.steps, start=step, active=jax.process_index() == 0)
    evaluation = make_evaluation(config, corpus, layout, workdir, terms, progress.note)
    shown = (*shown_metrics(terms), *Throughput.SHOWN)
    batches = corpus.batches(config, step, layout.share())
    log = Log(workdir, resumed_at=step, tensorboard=config.train.tensorboard)
    window, throughput = StepMetrics(), Throughput(config.model, config.data.length)
    capture = Capture(profile_steps(config.profile), workdir)
    stop = Stop()
    compiled: set[tuple[int, ...]] = set()
    resolved = config_to_json(config)

    def save() -> None:
        window.check()  # never save what is not finite
        with watch.doing("save"):
            save_state(checkpoints, state, resolved)
        log.write(step, "goodput", account())

    def evaluate() -> None:
        window.check()  # its steps end before, so that the evaluation's time is its own
        with watch.doing("evaluate"):
            found = evaluation(network_params(state.params, state.frozen, config, ids))
        log.write(step, "validation", found.values)
        progress.line(step, "validation", found.values)
        some = found.samples[:SHOWN]
        log.write_samples(
            step,
            [sample.record() for sample in found.samples],
            [sample.markdown() for sample in some],
        )
        for sample in some:
            for line in sample.lines():
                progress.note(line)
        throughput.restart()

    def account() -> dict[str, float]:
        return watch.report() | {"lost_steps": log.lost_steps}

    def report(number: int, *, running: int) -> None:
        values = window.report(running)
        if values:
            values |= throughput.read(values.pop("tokens"), running)
            values |= term_health(values, config, progress, terms)
            log.write(number, "train", values)
            progress.line(number, "train", values, shown)

    counts = corpus.train.counts
    progress.note(f"training rows: {counts.line(config.data)}")
    for warning in counts.warnings(config.data, max(config.sample.length, config.sample.limit)):
        progress.note(f"warning: {warning}")
    if config.data.buckets:
        shapes = ", ".join(f"{bucket.rows:,} x {bucket.length:,}" for bucket in order.buckets)
        progress.note(f"batches (rows x slots): {shapes}; mean rows {order.mean_rows:,.1f}")
    trained = ""
    if state.frozen is not None:
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        trained = f"frozen; {count:,} of adapters are trained (LoRA, rank {config.lora.rank}), "
    num_parameters = table.num_parameters(config.model)
    progress.note(f"{num_parameters:,} parameters, {trained}{_describe(layout)}")
    if 0 < step < config.train.steps:
        again = f"; {log.lost_steps:,} steps after it are made again" if log.lost_steps else ""
        progress.note(f"going on from step {step:,}{again}")
    # Closed in reverse: a save that is under way is finished, whatever ends the loop.
    closing = contextlib.closing
    with (
        closing(checkpoints),
        closing(log),
        closing(batches),
        closing(capture),
        progress,
        stop,
    ):
        watch.enter("steps")
        while step < config.train.steps and not stop.requested(step):
            # A silent copy in here would cost every step.
            with jax.transfer_guard("disallow"), capture.step(step + 1):
                with watch.doing("data"):
                    batch = layout.place_rows(next(batches))
                shape = batch.tokens.shape
                if shape not in compiled:
                    progress.note(f"compiling the step for {shape[0]:,} x {shape[1]:,} slots ...")
                with watch.doing("steps" if shape in compiled else "compile"):
                    state, metrics = train_step(state, batch)
            if shape not in compiled:
                compiled.add(shape)
                throughput.restart()  # what is compiled is in no step's time
            step += 1
            window.add(step, metrics)
            window.keep_up()
            capture.done(step, metrics)
            throughput.step(shape[1])
            progress.advance(step)
            last = step == config.train.steps
            evaluates = last or is_due(step, config.train.evaluate_every)
            saves = last or is_due(step, config.train.save_every)
            if is_due(step - 1, config.train.log_every):
                report(step - 1, running=1)
            if is_due(step, config.train.log_every) and (evaluates or saves):
                report(step, running=0)  # what follows waits for this step anyway
            if evaluates:
                evaluate()
            if saves:
                save()
        if step == first_step == config.train.steps:
            progress.note(f"nothing to do: {workdir} has made its {step} steps")
        elif step < config.train.steps:
            if is_due(step, config.train.log_every):
                report(step, running=0)
            if checkpoints.latest() != step:
                save()
            with watch.doing("save"):
                checkpoints.wait()
            progress.note(f"stopped by a signal and saved at step {step}; run again to go on")
        if step > first_step:
            progress.note(goodput_line(account()))
    return state


def is_due(step: int, every: int) -> bool:
    """Whether something that is done every so many steps is done after this one; 0 = never."""
    return bool(every) and step % every == 0


def term_health(
    values: Mapping[str, float],
    config: Config,
    progress: Progress,
    terms: Sequence[Term] = TERMS,
) -> dict[str, float]:
    """How heavy each weighted term is beside CE (`ctc_to_ce`); says what a term warns of."""
    heavy = {}
    for term in terms:
        if term.name not in values:
            continue
        if warning := term.warning(values, config):
            progress.note(f"warning: {warning}")
        if term.weight is not None:
            weighted = values[f"{term.name}_weight"] * values[term.name]
            heavy[f"{term.name}_to_ce"] = weighted / max(values["ce"], 1e-9)
    return heavy


def _describe(layout: Layout) -> str:
    """The mesh and its devices, for the log."""
    axes = [f"{name}={size}" for name, size in layout.mesh.shape.items() if size > 1]
    kind, count = layout.mesh.devices.flat[0].device_kind, layout.mesh.size
    devices = "device" if count == 1 else "devices"
    return f"{count} {kind} {devices} {' '.join(axes)}".rstrip()
