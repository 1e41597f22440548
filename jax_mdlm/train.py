"""Trains: `python -m jax_mdlm.train --config configs/pronounce.py --workdir runs/pronounce`.

One page, in order: settings, data, mesh, state, loop, evaluation, saves. The same command again
resumes where the work directory stands; SIGTERM or Ctrl-C saves and exits 0.
"""

import argparse
import contextlib
import dataclasses
import math
import os
import signal
import sys
from collections.abc import Mapping, Sequence

import jax
import optax
from etils import epath
from jax.experimental import multihost_utils

from jax_mdlm import command
from jax_mdlm.config import Config, ConfigError, differences, from_json, to_json
from jax_mdlm.containers import SpecialIds, TrainState
from jax_mdlm.conversion import open_origin
from jax_mdlm.data.corpus import Corpus, load_corpus
from jax_mdlm.evaluation.periodic import make_evaluation
from jax_mdlm.model import table
from jax_mdlm.progress import Progress
from jax_mdlm.sharding import Layout, make_layout
from jax_mdlm.storage import Checkpoints, open_checkpoints
from jax_mdlm.training import checkpoint
from jax_mdlm.training.metrics import Log, Throughput, Window
from jax_mdlm.training.optimizer import make_optimizer
from jax_mdlm.training.state import abstract_state, create_state, with_slack_row
from jax_mdlm.training.step import make_train_step
from jax_mdlm.workdir import check_finished, check_place, checkpoint_folder, save_config

# What may change between the parts of one run; everything else would make it another run.
MAY_CHANGE = (
    "train.steps",
    "train.epochs",
    "train.log_every",
    "train.evaluate",
    "train.save_every",
    "train.keep_checkpoints",
    "train.tensorboard",
    "mesh.",
    "sample.",
    "init.",
    "data.data_dir",
    "model.remat",
    "name",
)


def main(argv: Sequence[str]) -> None:
    """Runs the command; raises ConfigError for what the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m jax_mdlm.train", description=__doc__)
    parser.add_argument("--config", required=True, help="FILE[:preset] or a shipped name")
    parser.add_argument("--workdir", help="folder or gs:// path; default: runs/<config's name>")
    args, overrides = command.split_overrides(parser, argv)
    config = command.parse_config(args.config, overrides)
    workdir = epath.Path(args.workdir or f"runs/{config.name}")

    command.start_processes()
    command.use_compilation_cache(workdir / "compilation_cache")
    layout = make_layout(config.mesh)
    _check_batch(config, layout)
    config, corpus = _load(config, workdir)
    train(config, corpus, layout, workdir)


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


class Stop:
    """Turns SIGTERM and SIGINT into a request that the loop answers between two steps.

    With several processes the preemption service of `jax.distributed` makes all of them stop at
    the same step; a second Ctrl-C ends the process at once.
    """

    def __init__(self) -> None:
        self._requested = False

    def __enter__(self) -> "Stop":
        """Installs the handlers."""
        wanted = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
        self._old = {number: signal.signal(number, self._note) for number in wanted}
        return self

    def __exit__(self, *_: object) -> None:
        """Puts the old handlers back."""
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> bool:
        """Whether to stop before `step`; the same answer in every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    def _note(self, number: int, _: object) -> None:
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)
        elif self._requested:
            raise KeyboardInterrupt
        self._requested = True


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


def _check_batch(config: Config, layout: Layout) -> None:
    rows = config.train.batch_size // config.train.microbatches
    if rows % layout.batch_shards:
        raise ConfigError(
            "train.batch_size / train.microbatches must be a multiple of the mesh's "
            f"{layout.batch_shards} batch shards, got {rows}; change the batch size or the mesh"
        )


def _load(config: Config, workdir: epath.Path) -> tuple[Config, Corpus]:
    """Data and tokenizer, the vocabulary size filled in, and the work directory claimed."""
    check_place(workdir)
    check_finished(workdir)
    recorded = workdir / "config.json"
    if recorded.exists():
        old = from_json(recorded.read_text(), str(recorded))
        asked = config
        if config.model.vocab_size == 0:
            asked = _with_vocabulary(asked, old.model.vocab_size)
        if _lacks_tokenizer(config):
            asked = config = _with_tokenizer(asked, old.data.tokenizer.path)
        if found := differences(old, asked, MAY_CHANGE):
            raise ConfigError(
                f"work directory {workdir} was made by another config: {'; '.join(found[:4])}; "
                "use another --workdir or the same settings"
            )
    origin = None
    if config.init.source and not recorded.exists():
        origin = open_origin(config.init.source)
        if _lacks_tokenizer(config):
            config = _with_tokenizer(config, os.fspath(origin.tokenizer))
        if config.model.vocab_size == 0:
            config = _with_vocabulary(config, origin.vocab_size)  # 0: it has no config either
    corpus = load_corpus(config, workdir)
    if config.train.steps == 0:
        steps = math.ceil(config.train.epochs * len(corpus.train) / config.train.batch_size)
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))
    if config.model.vocab_size == 0:
        config = _with_vocabulary(config, corpus.tokenizer.vocab_size)
    elif config.model.vocab_size < corpus.tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size must hold the tokenizer's {corpus.tokenizer.vocab_size} ids, got "
            f"{config.model.vocab_size}; raise it or set it to 0"
        )
    if origin is not None:
        origin.check(config.model)  # before the directory is claimed for these settings
    if jax.process_index() == 0:
        save_config(workdir, config)
    return config, corpus


def _lacks_tokenizer(config: Config) -> bool:
    return config.data.tokenizer.kind == "huggingface" and not config.data.tokenizer.path


def _with_tokenizer(config: Config, path: str) -> Config:
    tokenizer = dataclasses.replace(config.data.tokenizer, path=path)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=tokenizer))


def _with_vocabulary(config: Config, size: int) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


if __name__ == "__main__":
    command.run(main)
    sys.exit(0)
