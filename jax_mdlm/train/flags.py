"""Trains: `python -m jax_mdlm.train --config configs/pronounce.py --workdir runs/pronounce`.

The same command again resumes where the work directory stands; SIGTERM or Ctrl-C saves and exits 0,
a second one ends at once. Where another process of a pod is lost it exits with 75: start it again.
"""

import argparse
from collections.abc import Sequence

from jax_mdlm import command


def main(argv: Sequence[str]) -> None:
    """Runs the command; raises ConfigError for what the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m jax_mdlm.train", description=__doc__)
    parser.add_argument("--config", required=True, help="FILE[:preset] or a name, e.g. pronounce")
    parser.add_argument("--workdir", help="folder or gs:// path; default: runs/<config's name>")
    args, overrides = command.split_overrides(parser, argv)
    command.run_of("jax_mdlm.train.run")(args, overrides)
