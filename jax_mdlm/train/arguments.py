"""Trains: `python -m jax_mdlm.train --config configs/pronounce.py --workdir runs/pronounce`.

The same command again resumes where the work directory stands; SIGTERM or Ctrl-C saves and exits 0,
a second one ends at once. Where another process of a pod is lost it exits with 75: start it again.
"""

import argparse
import time
from collections.abc import Sequence

import jax
from etils import epath

from jax_mdlm import command
from jax_mdlm.config import Config
from jax_mdlm.model.lora import target_rows
from jax_mdlm.sharding import make_layout
from jax_mdlm.train.claim import claim
from jax_mdlm.train.goodput import Goodput
from jax_mdlm.train.loop import train
from jax_mdlm.train.peers import Peers
from jax_mdlm.training.parts import fit_batch
from jax_mdlm.workdir import newest_step, save_config


def main(argv: Sequence[str]) -> None:
    """Runs the command; raises ConfigError for what the user can mend."""
    watch = Goodput(time.perf_counter)
    parser = argparse.ArgumentParser(prog="python -m jax_mdlm.train", description=__doc__)
    parser.add_argument("--config", required=True, help="FILE[:preset] or a name, e.g. pronounce")
    parser.add_argument("--workdir", help="folder or gs:// path; default: runs/<config's name>")
    args, overrides = command.split_overrides(parser, argv)
    config = command.parse_config(args.config, overrides)
    workdir = epath.Path(args.workdir or f"runs/{config.name}")

    command.start_processes()
    command.use_compilation_cache(workdir / "compilation_cache")
    with Peers():
        _run(config, workdir, watch)


def _run(config: Config, workdir: epath.Path, watch: Goodput) -> None:
    layout = make_layout(config.mesh)
    fit_batch(config, layout)  # before anything is read
    if config.lora.rank:
        target_rows(config.lora)  # paths that are none are refused before a directory is claimed
    config, corpus = claim(config, workdir)
    if (made := newest_step(workdir)) > config.train.steps:
        command.say(
            f"nothing to do: {workdir} has made {made} steps, more than "
            f"train.steps={config.train.steps}; nothing was changed"
        )
        return
    if jax.process_index() == 0:
        save_config(workdir, config)
    if corpus.note and jax.process_index() == 0:
        command.warn(corpus.note)
    train(fit_batch(config, layout), corpus, layout, workdir, watch)
