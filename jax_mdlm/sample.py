"""Samples: `python -m jax_mdlm.sample --workdir runs/pronounce alignment slacken`.

Prompts come as arguments, from `--file` (text lines, or rows as training reads them), or from
stdin (text lines, or JSON objects). Answers go to stdout as `prompt -> answer`, or as JSON
lines with `--json`; with `--output` they go to a file, and the same command goes on where it
stopped.
`--show slack` also prints the final canvas, slack visible, and the call that fixed each slot.
`--response 'text [MASK*8] text'` fills gaps in. `--chat` is a conversation in the terminal.
`--html` writes a page that replays every generation, beside those of another run with `--beside`.
`--web` is a conversation in the browser (extra `colab`), with `--share` at a public address.
"""

import argparse
from collections.abc import Sequence

from jax_mdlm import command
from jax_mdlm.config import ConfigError


def main(argv: Sequence[str]) -> None:
    """Runs the command; raises ConfigError for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m jax_mdlm.sample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompts", nargs="*", metavar="TEXT", help="prompts; none: read stdin")
    parser.add_argument(
        "--workdir", required=True, help="of a run (sh launch/quickstart.sh), or published weights"
    )
    parser.add_argument(
        "--file", help="prompts from files: text lines, or rows in JSON, tables, Parquet"
    )
    parser.add_argument(
        "--response", metavar="TEXT", help="response with gaps, e.g. 'a [MASK*3] b'"
    )
    parser.add_argument("--output", metavar="FILE", help="JSON lines, one a prompt; resumable")
    parser.add_argument("--json", action="store_true", help="one JSON object per answer")
    parser.add_argument("--show", choices=["slack"], help="print the canvas and the commit order")
    parser.add_argument("--trace", metavar="FILE", help="JSON lines to replay the generations from")
    parser.add_argument("--html", metavar="FILE", help="a page that replays the generations")
    parser.add_argument("--beside", metavar="FILE", help="--trace of another run, for --html")
    parser.add_argument("--chat", action="store_true", help="a conversation in the terminal")
    parser.add_argument("--web", action="store_true", help="a conversation in the browser")
    parser.add_argument("--share", action="store_true", help="--web at a public address, too")
    args, overrides = command.split_overrides(parser, argv)
    if args.html and args.output:
        raise ConfigError(
            "--html holds all generations in one page, and --output is for long lists; drop one"
        )
    if args.beside and not args.html:
        raise ConfigError("--beside names what --html shows beside the run; give --html FILE, too")
    if args.share and not args.web:
        raise ConfigError("--share gives --web a public address; give --web, too")
    command.run_of("jax_mdlm.viewing.run")(args, overrides)


if __name__ == "__main__":
    command.run(main)
