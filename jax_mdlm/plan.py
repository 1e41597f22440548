"""Plans: `python -m jax_mdlm.plan --config configs/llada_ctc.py --topology v5e:4x4`.

Compiles the step of `train` (with `--sample`: the generation of `sample`) with the real TPU
compiler for machines that need not be there, and prints memory, work and the bound per chip. Needs
libtpu (`pip install 'jax[tpu]'`) and neither a TPU nor data. Exit code 3: something does not fit.
"""

import argparse
from collections.abc import Sequence

from jax_mdlm import command
from jax_mdlm.config import ConfigError


def main(argv: Sequence[str]) -> None:
    """Runs the command; raises ConfigError for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m jax_mdlm.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="FILE[:preset] or a shipped name")
    parser.add_argument(
        "--topology",
        required=True,
        nargs="+",
        metavar="NAME",
        help="e.g. v5e:4x4 v4:2x2x4, or an accelerator type such as v5litepod-16",
    )
    parser.add_argument("--slices", type=int, default=1, help="such machines, over the network")
    parser.add_argument("--sample", action="store_true", help="the sampler instead of the step")
    parser.add_argument(
        "--search", action="store_true", help="look for a mesh, microbatches and a remat policy"
    )
    parser.add_argument("--tries", type=int, default=6, help="compiles of --search, a topology")
    parser.add_argument(
        "--rows", type=int, help="training rows: updates, hours and chip-hours at best, too"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per topology")
    args, overrides = command.split_overrides(parser, argv)
    for name in ("slices", "tries"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.search and args.sample:
        raise ConfigError("--search looks for a training step's choices; drop it or --sample")
    if args.rows is not None:
        if args.rows < 1:
            raise ConfigError(f"--rows must be at least 1, got {args.rows}")
        if args.sample:
            raise ConfigError("--rows counts the updates of a training run; drop it or --sample")
    command.run_of("jax_mdlm.planning.run")(args, overrides)


if __name__ == "__main__":
    command.run(main)
