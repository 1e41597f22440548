"""Converts checkpoints: `python -m jax_mdlm.convert import|export|inspect ...`.

import SOURCE WORKDIR    published weights (folder, gs://, s3://, hf://ORG/NAME) -> work directory
export WORKDIR TARGET    work directory -> folder that PyTorch users load; a LoRA run's adapters are
                         merged, or with --adapter written alone, as PEFT loads them
inspect PATH             what is in there

Tensors are streamed: memory does not grow with the model. One process does it all, unless
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID name several: each does its part.
"""

import argparse
from collections.abc import Sequence

from jax_mdlm import command


def main(argv: Sequence[str]) -> None:
    """Runs the command; raises ConfigError for what the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m jax_mdlm.convert", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    into = commands.add_parser("import", help="published weights -> work directory")
    into.add_argument("source", help="folder, gs://..., s3://... or hf://ORG/NAME[@REVISION]")
    into.add_argument("workdir", help="new work directory, local or gs://")
    out = commands.add_parser("export", help="work directory -> folder for PyTorch users")
    out.add_argument("workdir", help="of a training run or an import")
    out.add_argument("target", help="new folder, local or gs:// or s3://")
    out.add_argument(
        "--dtype",
        choices=["bfloat16", "float32"],
        help="of the exported tensors (bfloat16; float32 with --adapter)",
    )
    out.add_argument("--step", type=int, help="which checkpoint (the newest)")
    out.add_argument(
        "--shard-bytes", type=int, help="of a file, at most (Hugging Face's default, 5 GB)"
    )
    out.add_argument(
        "--adapter", action="store_true", help="only the adapters of a LoRA run, as a PEFT folder"
    )
    out.add_argument(
        "--base",
        default="",
        help="with --adapter: published weights that it belongs on (those of init.from)",
    )
    look = commands.add_parser("inspect", help="format, parameters, dtypes, ids, steps")
    look.add_argument("path", help="folder of weights or work directory")
    look.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args(argv)
    command.run_of("jax_mdlm.conversion.run")(args)


if __name__ == "__main__":
    command.run(main)
