"""Evaluates a work directory: `python -m jax_mdlm.evaluate pronunciations --workdir DIR`.

pronunciations   phoneme and word error rate of decoded words, the nearest pronunciation counted
"""

import argparse
import json
from collections.abc import Sequence

import jax
from etils import epath

from jax_mdlm import command
from jax_mdlm.config import ConfigError
from jax_mdlm.data.chat import make_template
from jax_mdlm.data.corpus import open_references
from jax_mdlm.evaluation.tasks import evaluate_pronunciations
from jax_mdlm.sampling import options_from
from jax_mdlm.sharding import make_layout
from jax_mdlm.training.run import load_for_sampling
from jax_mdlm.workdir import load_config


def main(argv: Sequence[str]) -> None:
    """Runs the command; raises ConfigError for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m jax_mdlm.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    task = tasks.add_parser("pronunciations", help="phoneme and word error rate")
    task.add_argument("--workdir", required=True, help="work directory of a training run")
    task.add_argument("--split", choices=["validation", "test"], default="validation")
    task.add_argument("--limit", type=int, default=0, help="words at most; 0 = all")
    task.add_argument("--json", action="store_true", help="one JSON object instead of text")
    args, overrides = command.split_overrides(parser, argv)
    pronunciations(args, overrides)


def pronunciations(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Decodes every word of a split and prints the error rates and the slack share."""
    workdir = epath.Path(args.workdir)
    config = command.apply_overrides(load_config(workdir), overrides, section="sample")
    if config.data.source != "pronunciations":
        raise ConfigError(
            f"work directory {workdir} must be trained on pronunciations, its data.source is "
            f"{config.data.source}"
        )
    command.use_compilation_cache(workdir / "compilation_cache")
    layout = make_layout(config.mesh)
    run = load_for_sampling(workdir, config, layout)
    words = open_references(config.data, workdir, args.split)[: args.limit or None]
    scores = evaluate_pronunciations(
        run.params,
        config.model,
        words,
        run.tokenizer,
        make_template(config.data.template, run.tokenizer, config.data.prompt_slots),
        options_from(config.sample, config.objective.collapse, run.tokenizer.ids),
        jax.random.key(config.sample.seed),
        batch_size=config.sample.batch_size,
        layout=layout,
    )
    if args.json:
        record = {
            "split": args.split,
            "words": len(words),
            "step": run.step,
            "slack_share": scores.slack_share,
            "calls_per_word": scores.calls_per_word,
            "phoneme_error_rate": scores.rates.phoneme,
            "word_error_rate": scores.rates.word,
        }
        print(json.dumps(record))
        return
    print(f"{len(words):,} {args.split} words, {run.step:,} training steps")
    print(
        f"slack share {100 * scores.slack_share:.1f} % of the decoded slots before the terminator"
    )
    print(f"{scores.calls_per_word:.1f} model calls a word")
    print(f"phoneme error rate {100 * scores.rates.phoneme:.1f} %")
    print(f"word error rate {100 * scores.rates.word:.1f} %")


if __name__ == "__main__":
    command.run(main)
