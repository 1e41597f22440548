"""Trains: `python -m jax_mdlm.train --config configs/pronounce.py --workdir runs/pronounce`.

The same command again resumes where the work directory stands; SIGTERM or Ctrl-C saves and exits 0,
a second one ends at once. Where another process of a pod is lost it exits with 75: start it again.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from jax_mdlm import command
from jax_mdlm.config import Config, text

_EPILOG = """\
settings: --config.SECTION.FIELD=VALUE; --settings lists all of them, with --config FILE as that
file has them"""


def main(argv: Sequence[str]) -> None:
    """Runs the command; raises ConfigError for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m jax_mdlm.train",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        required="--settings" not in argv,
        help="FILE[:preset], a name, e.g. pronounce, or the config.json of another run",
    )
    parser.add_argument("--workdir", help="folder or gs:// path; default: runs/<config's name>")
    parser.add_argument(
        "--settings",
        nargs="?",
        const="text",
        choices=["text", "markdown"],
        help="list every setting with its value, type and a sentence, and train nothing",
    )
    args, overrides = command.split_overrides(parser, argv)
    if args.settings:
        config = command.parse_config(args.config, overrides) if args.config else Config()
        as_text, as_table = text.settings_as_text, text.settings_as_markdown
        print({"text": as_text, "markdown": as_table}[args.settings](config), end="")
        return
    command.run_of("jax_mdlm.training.run")(args, overrides, _make_evaluation)


def _make_evaluation(*given: Any) -> Any:
    """What training measures is decoded and scored by rooms that training does not know."""
    from jax_mdlm.evaluation.periodic import make_evaluation

    return make_evaluation(*given)


if __name__ == "__main__":
    command.run(main)
