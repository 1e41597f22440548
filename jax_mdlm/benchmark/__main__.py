"""Measures a part of the package and prints JSON: `python -m jax_mdlm.benchmark PART ...`.

loss       memory and time of the training objective, and of its dense form
lattice    time and memory of CTC through our lattice, and through optax
convert    import and export of published weights: time beside `cp`, memory
sampler    decoding: time, calls and tokens, beside another sampler in the same process
buckets    training with and without length buckets: tokens per second that are no padding
"""

import argparse
import json
from collections.abc import Sequence

from jax_mdlm import command
from jax_mdlm.benchmark import buckets, convert, lattice, loss, sampler


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one benchmark and prints its result, one JSON object, on stdout."""
    parser = argparse.ArgumentParser(prog="python -m jax_mdlm.benchmark", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    loss.add_command(commands)
    lattice.add_command(commands)
    convert.add_command(commands)
    sampler.add_command(commands)
    buckets.add_command(commands)
    arguments = parser.parse_args(argv)
    print(json.dumps(arguments.run(parser, arguments), indent=2))


if __name__ == "__main__":
    command.run(main)
