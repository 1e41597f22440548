"""Training with and without length buckets: tokens per second that are no padding.

A small model is trained on real rows, both ways in one process: in each round some steps on each of
the canvases, in turn. A program takes the same time whatever the rows, so an epoch takes the sum
over canvases of (its steps in the epoch) * (seconds of one); the rate is the epoch's tokens divided
by that. A token is one of a prompt or a response, the terminator included, not slack and not end
padding. The steps are a run's (optimizer, CTC, copy to the device); assembly, which a run does
ahead in a thread, and compilation are not in the time.

On a CPU a small model spends more of a step on attention, whose cost grows with the square of the
canvas, and on CTC, whose cost grows with frames times labels, than an 8B model on a TPU does; there
the gain is nearer to that of the slots, `tokens_per_slot`, which is counted over the epoch and
needs no run (`--rounds 0`, e.g. with `--length 4096`).
"""

import argparse
import contextlib
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from benchmarks.printing import print_result
from jax_mdlm.config import (
    Config,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    TokenizerConfig,
    TrainConfig,
    validate,
)
from jax_mdlm.data.corpus import Corpus, load_corpus
from jax_mdlm.data.draws import draw_epochs
from jax_mdlm.sharding import Layout, make_layout
from jax_mdlm.training.optimizer import make_optimizer
from jax_mdlm.training.state import create_state
from jax_mdlm.training.step import make_train_step


class Epoch(NamedTuple):
    """The steps of an epoch, counted.

    Attributes:
      tokens: Tokens of prompts and responses.
      slots: Slots of all batches.
      steps_on: Length of a canvas -> the steps that are on it.
    """

    tokens: int
    slots: int
    steps_on: dict[int, list[int]]

    def show(self) -> dict[str, Any]:
        """For the result; slack takes some of the padding."""
        return {
            "steps": sum(map(len, self.steps_on.values())),
            "padding": round(1 - self.tokens / self.slots, 4),
            "steps_on": {str(length): len(steps) for length, steps in self.steps_on.items()},
        }


def count_epoch(config: Config, corpus: Corpus) -> Epoch:
    """The first epoch of a run."""
    order = corpus.order(config)
    tokens, slots = 0, 0
    steps_on: dict[int, list[int]] = {bucket.length: [] for bucket in order.buckets}
    for step in range(order.num_steps(1)):
        bucket, epochs, rows = order.at(step)
        drawn = draw_epochs(corpus.train, config.data, epochs, rows)
        spans = corpus.train.spans(drawn.pairs, drawn.lengths)
        tokens += int((spans.begin + spans.labels).sum())
        slots += bucket.rows * bucket.length
        steps_on[bucket.length].append(step)
    return Epoch(tokens, slots, {length: steps for length, steps in steps_on.items() if steps})


class Run:
    """A run whose steps on one canvas are timed."""

    def __init__(self, config: Config, corpus: Corpus, layout: Layout) -> None:
        ids = corpus.tokenizer.ids
        optimizer = make_optimizer(config, ids)
        self._config, self._corpus, self._layout = config, corpus, layout
        self._step = make_train_step(
            config, optimizer, ids, layout, mean_rows=corpus.order(config).mean_rows
        )
        self._state = create_state(config, optimizer, layout)

    def seconds(self, steps: Sequence[int]) -> float:
        """Mean seconds of the updates with the rows of these steps."""
        batches = []
        for step in steps:
            with contextlib.closing(
                self._corpus.batches(self._config, step, self._layout.share())
            ) as stream:
                batches.append(next(stream))
        begin = time.perf_counter()
        for batch in batches:
            self._state, _ = self._step(self._state, self._layout.place_rows(batch))
        jax.block_until_ready(self._state)
        return (time.perf_counter() - begin) / len(steps)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark and prints its result, one JSON object, on stdout."""
    print_result("buckets", __doc__, add_flags, run, argv)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Gives the parser this benchmark's flags."""
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


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures training with and without length buckets."""
    if arguments.steps < 1 or arguments.rounds < 0:
        parser.error("--steps must be at least 1 and --rounds at least 0")
    bucketed = _config(parser, arguments)
    with tempfile.TemporaryDirectory() as folder:
        corpus = load_corpus(bucketed, epath.Path(folder))
        vocab = dataclasses.replace(bucketed.model, vocab_size=corpus.tokenizer.vocab_size)
        bucketed = dataclasses.replace(bucketed, model=vocab)
        full = dataclasses.replace(bucketed, data=dataclasses.replace(bucketed.data, buckets=()))
        epochs = {"full": count_epoch(full, corpus), "buckets": count_epoch(bucketed, corpus)}
        density = {name: epoch.tokens / epoch.slots for name, epoch in epochs.items()}
        result = {
            "rows": len(corpus.train),
            "length": arguments.length,
            "batch": arguments.batch,
            "buckets": list(bucketed.data.buckets),
            "backend": jax.default_backend(),
            "epoch": {name: epoch.show() for name, epoch in epochs.items()},
            "tokens_per_slot": round(density["buckets"] / density["full"], 3),
        }
        if arguments.rounds:
            configs = {"full": full, "buckets": bucketed}
            result |= _measure(configs, epochs, corpus, arguments)
        return result


def _measure(
    configs: dict[str, Config],
    epochs: dict[str, Epoch],
    corpus: Corpus,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    layout = make_layout(configs["full"].mesh)
    runs = {name: Run(config, corpus, layout) for name, config in configs.items()}
    programs = [(name, length) for name in runs for length in epochs[name].steps_on]
    for name, length in programs:  # compiles
        runs[name].seconds(epochs[name].steps_on[length][:1])
    seconds: dict[tuple[str, int], list[float]] = {program: [] for program in programs}
    for _ in range(arguments.rounds):
        for name, length in programs:
            steps = epochs[name].steps_on[length][: arguments.steps]
            seconds[name, length].append(runs[name].seconds(steps))

    def rates(name: str) -> list[float]:
        """Tokens per second in each round."""
        return [
            epochs[name].tokens
            / sum(len(steps) * seconds[name, k][i] for k, steps in epochs[name].steps_on.items())
            for i in range(arguments.rounds)
        ]

    full, buckets = rates("full"), rates("buckets")
    ratios = [after / before for before, after in zip(full, buckets, strict=True)]
    return {
        "programs": {name: len(epoch.steps_on) for name, epoch in epochs.items()},
        "seconds_per_step": {
            name: {
                str(length): round(statistics.median(seconds[name, length]), 4)
                for length in epochs[name].steps_on
            }
            for name in runs
        },
        "tokens_per_second": {
            "full": round(statistics.median(full)),
            "buckets": round(statistics.median(buckets)),
        },
        "times_full": round(statistics.median(ratios), 2),
        "times_full_of_rounds": [round(ratio, 2) for ratio in ratios],
    }


def _config(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Config:
    try:
        found = tuple(int(part) for part in arguments.buckets.split(","))
    except ValueError:
        parser.error(f"--buckets must be numbers with commas between, got {arguments.buckets!r}")
    return validate(
        Config(
            model=ModelConfig(
                vocab_size=0,
                embed=arguments.embed,
                layers=arguments.layers,
                heads=arguments.heads,
                kv_heads=arguments.heads,
                head_dim=arguments.embed // arguments.heads,
                mlp=arguments.mlp,
                max_length=arguments.length,
                compute_dtype="float32",
            ),
            objective=ObjectiveConfig(),
            data=DataConfig(
                source=arguments.source,
                files=arguments.files,
                template=arguments.template,
                length=arguments.length,
                buckets=found,
                max_labels=arguments.length // 2,
                end_padding=arguments.end_padding,
                draw_end_padding=True,
                tokenizer=TokenizerConfig(kind="bpe", vocab_size=arguments.vocab),
            ),
            train=TrainConfig(batch_size=arguments.batch),
        )
    )


if __name__ == "__main__":
    main()
