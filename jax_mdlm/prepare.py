"""Rows prepared once: `python -m jax_mdlm.prepare --config FILE --output DIR`.

`train --config.data.prepared=DIR` then opens them in seconds, however many there are.
"""

import argparse
from collections.abc import Sequence

from jax_mdlm import command


def main(argv: Sequence[str]) -> None:
    """Runs the command; raises ConfigError for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m jax_mdlm.prepare",
        description="Tokenises rows once, with all cores; train --config.data.prepared=DIR opens "
        "them. The same command goes on where it was interrupted.",
    )
    parser.add_argument("--config", required=True, help="FILE[:PRESET], as for train")
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder, or gs://...")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 = one for each core")
    parser.add_argument(
        "--inspect", action="store_true", help="print what is in DIR instead: counts, lengths, rows"
    )
    args, overrides = command.split_overrides(parser, argv)
    command.run_of("jax_mdlm.training.preparation")(args, overrides)


if __name__ == "__main__":
    command.run(main)
