"""Measures a part of the package and prints JSON: `python -m jax_mdlm.benchmark PART ...`.

loss       memory and time of the training objective, and of its dense form
lattice    time and memory of CTC through our lattice, and through optax
convert    import and export of published weights: time beside `cp`, memory
sampler    decoding: time, calls and tokens, beside another sampler in the same process
buckets    training with and without length buckets: tokens per second that are no padding
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from typing import Any, Literal

from jax_mdlm import command

# name -> (rule of the commits, cache)
SETTINGS: dict[str, tuple[str, Literal["none", "prefix", "dual"]]] = {
    "quota": ("quota", "none"),
    "prefix": ("quota", "prefix"),
    "dual": ("quota", "dual"),
    "threshold": ("threshold", "none"),
    "threshold+prefix": ("threshold", "prefix"),
    "threshold+dual": ("threshold", "dual"),
    "factor": ("factor", "none"),
    "factor+prefix": ("factor", "prefix"),
    "factor+dual": ("factor", "dual"),
}
_DEFAULT = ",".join(name for name in SETTINGS if not name.startswith("factor"))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one benchmark and prints its result, one JSON object, on stdout."""
    parser = argparse.ArgumentParser(prog="python -m jax_mdlm.benchmark", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_loss, _lattice, _convert, _sampler, _buckets):
        add(commands)
    arguments = parser.parse_args(argv)
    print(json.dumps(arguments.run(parser, arguments), indent=2))


def _loss(commands: Any) -> None:
    """Adds `loss` to the benchmark's commands."""
    parser = commands.add_parser(
        "loss", help="memory and time of the objective, and of its dense form"
    )
    for name, default, meaning in (
        ("vocab", 126464, "V, columns of the head"),
        ("length", 1024, "L, slots of the canvas"),
        ("labels", 512, "U, response tokens without slack"),
        ("batch", 1, "B, rows"),
        ("embed", 256, "D, width of the hidden states"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} ({default})")
    parser.add_argument("--collapse", choices=["merge", "slack_only"], default="merge")
    parser.add_argument("--observed", choices=["clamp", "model"], default="clamp")
    parser.add_argument("--time", action="store_true", help="run both forms as well")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each form (5)")
    parser.set_defaults(run=command.run_of("jax_mdlm.benchmark.loss"))


def _lattice(commands: Any) -> None:
    """Adds `lattice` to the benchmark's commands."""
    parser = commands.add_parser("lattice", help="CTC through our lattice and through optax")
    for name, default, meaning in (
        ("frames", 1024, "T, slots that are aligned"),
        ("labels", 512, "U, labels of a row"),
        ("batch", 8, "B, rows"),
        ("repeats", 5, "timed rounds"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} ({default})")
    parser.add_argument("--collapse", choices=["merge", "slack_only"], default="merge")
    parser.add_argument(
        "--vocab", type=int, default=0, help="V, to time optax on all classes as well (merge only)"
    )
    parser.set_defaults(run=command.run_of("jax_mdlm.benchmark.lattice"))


def _convert(commands: Any) -> None:
    """Adds `convert` to the benchmark's commands."""
    parser = commands.add_parser("convert", help="time and memory of import and export")
    for name, default, meaning in (
        ("layers", 17, "transformer blocks; 17 make 2.1 GB"),
        ("embed", 2048, "D, width"),
        ("mlp", 6144, "F, hidden width"),
        ("vocab", 32768, "V, rows of the embedding"),
        ("repeats", 3, "runs of each, the median counts"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} ({default})")
    parser.add_argument("--settle", type=float, default=5.0, help="seconds before each run (5)")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="on the disk to measure")
    parser.set_defaults(run=command.run_of("jax_mdlm.benchmark.convert"))


def _sampler(commands: Any) -> None:
    """Adds `sampler` to the benchmark's commands."""
    parser = commands.add_parser("sampler", help="time, calls and tokens of decoding")
    for name, default, meaning in (
        ("embed", 512, "D, width"),
        ("heads", 8, "N, query and key heads"),
        ("layers", 8, "transformer blocks"),
        ("mlp", 1536, "F, hidden width"),
        ("vocab", 32000, "V, rows of the embedding"),
        ("prompt", 64, "tokens of each prompt"),
        ("length", 128, "new slots"),
        ("block", 32, "slots decoded before the next block starts"),
        ("steps", 128, "model calls, where a quota decides"),
        ("refresh", 0, "calls between refreshes of a cache; 0 = at each block's start"),
        ("repeats", 3, "timed runs of each setting"),
        (
            "seed",
            0,
            "of weights and prompts; calls with a threshold vary much from one to the next",
        ),
        ("threads", 0, "cores that the process may use, the rival too; 0 = as it was started"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} ({default})")
    for name, default, meaning in (
        ("threshold", 0.9, "confidence that commits a slot, in settings of that name"),
        ("factor", 1.0, "in settings of that name"),
        ("head-scale", 1.0, "multiplies the head; a larger one makes the model more certain"),
        ("commits", 0.0, "search the head's scale until `threshold` commits so many a call"),
    ):
        parser.add_argument(f"--{name}", type=float, default=default, help=f"{meaning} ({default})")
    parser.add_argument("--batch", default="1,8", help="batch sizes (1,8)")
    parser.add_argument(
        "--settings", default=_DEFAULT, help=f"of {', '.join(SETTINGS)} (all without factor)"
    )
    parser.add_argument("--rival", help="a Python file that decodes as well: FILE or FILE:FUNCTION")
    parser.set_defaults(run=command.run_of("jax_mdlm.benchmark.sampler"))


def _buckets(commands: Any) -> None:
    """Adds `buckets` to the benchmark's commands."""
    parser = commands.add_parser(
        "buckets", help="tokens per second that are no padding, with and without length buckets"
    )
    parser.add_argument("--source", default="dialogues", help="data.source (dialogues)")
    parser.add_argument("--files", default="", help="data.files, with --source chat_jsonl")
    parser.add_argument("--template", choices=["llada", "plain"], default="llada")
    parser.add_argument("--buckets", default="256,512,1024", help="data.buckets (256,512,1024)")
    for name, default, meaning in (
        ("length", 1024, "L, slots of the full canvas"),
        ("batch", 8, "rows of a step on the full canvas"),
        ("end-padding", 64, "EOS slots at most, drawn per row"),
        ("vocab", 4096, "tokens of the byte-level BPE that is trained from the rows"),
        ("embed", 64, "D, width"),
        ("layers", 2, "transformer blocks"),
        ("heads", 2, "N, heads"),
        ("mlp", 192, "F, hidden width"),
        ("steps", 2, "steps on each canvas in a round"),
        ("rounds", 3, "rounds, of which the median counts; 0 = only the padding is counted"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} ({default})")
    parser.set_defaults(run=command.run_of("jax_mdlm.benchmark.buckets"))
