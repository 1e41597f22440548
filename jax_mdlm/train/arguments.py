"""Trains: `python -m jax_mdlm.train --config configs/pronounce.py --workdir runs/pronounce`.

The same command again resumes where the work directory stands; SIGTERM or Ctrl-C saves and exits 0.
"""

import argparse
from collections.abc import Sequence

from etils import epath

from jax_mdlm import command
from jax_mdlm.config import Config, ConfigError
from jax_mdlm.sharding import Layout, make_layout
from jax_mdlm.train.claim import claim
from jax_mdlm.train.loop import train


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
    config, corpus = claim(config, workdir)
    train(config, corpus, layout, workdir)


def _check_batch(config: Config, layout: Layout) -> None:
    rows = config.train.batch_size // config.train.microbatches
    if rows % layout.batch_shards:
        raise ConfigError(
            "train.batch_size / train.microbatches must be a multiple of the mesh's "
            f"{layout.batch_shards} batch shards, got {rows}; change the batch size or the mesh"
        )
