"""Phoneme and word error rate of decoded words, the nearest pronunciation counted."""

import argparse
import json
from collections.abc import Sequence

from jax_mdlm.config import ConfigError
from jax_mdlm.evaluation.tasks import Task, open_task, slack_share
from jax_mdlm.mdlm import Mdlm
from jax_mdlm.opening import open_model, with_progress


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
    task = open_task(config, model.path, split=args.split, limit=args.limit)
    words, found = len(task.conversations), score_words(model, task)
    if args.json:
        print(json.dumps({"split": args.split, "words": words, "step": model.step} | found))
        return
    print(f"{words:,} {args.split} words, {model.step:,} training steps")
    print(
        f"slack share {100 * found['slack_share']:.1f} % of the decoded slots before the terminator"
    )
    print(f"{found['calls_per_word']:.1f} model calls a word")
    print(f"phoneme error rate {100 * found['phoneme_error_rate']:.1f} %")
    print(f"word error rate {100 * found['word_error_rate']:.1f} %")


def score_words(model: Mdlm, task: Task) -> dict[str, float]:
    """Decodes words and scores them.

    Returns:
      The slack share, the model calls that a word takes when it is decoded alone (mean), and the
      scores of the task.

    Raises:
      ConfigError: a word that the model cannot take.
    """
    prompts = [model.encode(word) for word in task.conversations]
    answers = with_progress(model.decode(prompts), len(prompts), "word")
    texts = [model.tokenizer.decode(answer.tokens) for answer in answers]
    return {
        "slack_share": slack_share(answers, model.options),
        "calls_per_word": sum(answer.own_calls for answer in answers) / len(answers),
        **{score.name: score.value(texts, task.references) for score in task.scores},
    }
