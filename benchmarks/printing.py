"""The edge of every benchmark: flags in, one JSON object on stdout."""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any


def print_result(
    name: str,
    about: str | None,
    add_flags: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.ArgumentParser, argparse.Namespace], dict[str, Any]],
    argv: Sequence[str] | None,
) -> None:
    """Parses, measures and prints.

    Args:
      name: Of the module in `benchmarks`.
      about: What `--help` says of it.
      add_flags: Gives a parser the benchmark's flags.
      run: Measures; a flag that cannot be used ends through `parser.error`.
      argv: Arguments; None = those of the process.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser)
    print(json.dumps(run(parser, parser.parse_args(argv)), indent=2))
