"""Phoneme and word error rate of decoded words, the nearest pronunciation counted."""

import argparse
import json
from collections.abc import Sequence

from jax_mdlm.config import ConfigError
from jax_mdlm.data.corpus import open_references
from jax_mdlm.evaluation.tasks import evaluate_pronunciations
from jax_mdlm.opening import console, open_model


def run(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Decodes every word of a split and prints the error rates and the slack share."""
    model = open_model(args.workdir, overrides)
    config = model.config
    if config.data.source != "pronunciations":
        raise ConfigError(
            f"work directory {model.path} must be trained on pronunciations, its data.source "
            f"is {config.data.source}; score its rows with evaluate likelihood or evaluate "
            "intervention"
        )
    words = open_references(config.data, model.path, args.split)[: args.limit or None]
    with console(len(words), "word") as progress:
        scores = evaluate_pronunciations(model, words, progress.advance)
    if args.json:
        record = {
            "split": args.split,
            "words": len(words),
            "step": model.step,
            "slack_share": scores.slack_share,
            "calls_per_word": scores.calls_per_word,
            "phoneme_error_rate": scores.rates.phoneme,
            "word_error_rate": scores.rates.word,
        }
        print(json.dumps(record))
        return
    print(f"{len(words):,} {args.split} words, {model.step:,} training steps")
    print(
        f"slack share {100 * scores.slack_share:.1f} % of the decoded slots before the terminator"
    )
    print(f"{scores.calls_per_word:.1f} model calls a word")
    print(f"phoneme error rate {100 * scores.rates.phoneme:.1f} %")
    print(f"word error rate {100 * scores.rates.word:.1f} %")
