"""A training run from its flags to its last step."""

import argparse
import time
from collections.abc import Sequence

import jax
from etils import epath

from jax_mdlm import command
from jax_mdlm.config import Config
from jax_mdlm.data.corpus import reading
from jax_mdlm.model.lora import target_rows
from jax_mdlm.sharding import make_layout
from jax_mdlm.training.claim import claim
from jax_mdlm.training.loop import MakeEvaluation, train
from jax_mdlm.training.step import fit_batch
from jax_mdlm.training.stop import Peers
from jax_mdlm.training.timing import Goodput
from jax_mdlm.workdir import newest_step, save_config


def run(
    args: argparse.Namespace, overrides: Sequence[str], make_evaluation: MakeEvaluation
) -> None:
    """Trains, or goes on training; raises ConfigError for what the user can mend."""
    watch = Goodput(time.perf_counter)
    config = command.parse_config(args.config, overrides)
    workdir = epath.Path(args.workdir or f"runs/{config.name}")

    command.start_processes()
    command.use_compilation_cache(workdir / "compilation_cache")
    with Peers():
        _run(config, workdir, watch, make_evaluation)


def _run(
    config: Config, workdir: epath.Path, watch: Goodput, make_evaluation: MakeEvaluation
) -> None:
    layout = make_layout(config.mesh)
    fit_batch(config, layout)  # before anything is read
    if config.lora.rank:
        target_rows(
            config.model, config.lora
        )  # paths that are none are refused before a directory is claimed
    if jax.process_index() == 0:
        command.note(f"{reading(config.data, workdir)} ...")
    config, corpus = claim(config, workdir)
    if (made := newest_step(workdir)) > config.train.steps:
        if jax.process_index() == 0:
            command.note(
                f"nothing to do: {workdir} has made {made} steps, more than "
                f"train.steps={config.train.steps}; nothing was changed"
            )
        return
    if jax.process_index() == 0:
        save_config(workdir, config)
    if jax.process_index() == 0:
        for line in corpus.read:
            command.note(line)
    if corpus.note and jax.process_index() == 0:
        command.warn(corpus.note)
    train(fit_batch(config, layout), corpus, layout, workdir, watch, make_evaluation)
