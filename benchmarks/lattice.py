"""The CTC lattice beside `optax.ctc_loss`: time and memory of value and gradient.

Both get the log-probabilities of each row's own classes, [B, L, 1 + U]; `--vocab` adds optax on
all V classes, as one would first write it. Forms are timed in turn, so that a busy machine slows
all of them.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.loss import temp_bytes
from benchmarks.printing import print_result
from jax_mdlm.diffusion import ctc_loss
from tests.reference.ctc_optax import optax_ctc


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark and prints its result, one JSON object, on stdout."""
    print_result("lattice", __doc__, add_flags, run, argv)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Gives the parser this benchmark's flags."""
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


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures CTC through our lattice, and through optax."""
    for name in ("frames", "labels", "batch", "repeats"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.labels > arguments.frames:
        parser.error(
            f"--labels must be at most --frames={arguments.frames}, got {arguments.labels}"
        )
    if arguments.vocab and arguments.collapse != "merge":
        parser.error("--vocab must come with --collapse merge: optax knows no other")
    if arguments.vocab and arguments.vocab <= arguments.labels:
        parser.error(f"--vocab must be above --labels={arguments.labels}, got {arguments.vocab}")

    forms, log_probs = _forms(arguments)
    programs = {
        name: jax.jit(form).lower(log_probs[name]).compile() for name, form in forms.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(1 + arguments.repeats):  # the first is not counted
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(log_probs[name]))
            if turn:
                seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        **{name: getattr(arguments, name) for name in ("frames", "labels", "batch", "collapse")},
        "backend": jax.default_backend(),
        "median_seconds": {name: round(value, 4) for name, value in median.items()},
        "temp_bytes": {name: temp_bytes(program) for name, program in programs.items()},
        "times_faster": {
            name: round(value / median["lattice"], 2)
            for name, value in median.items()
            if name != "lattice"
        },
    }


def _forms(arguments: argparse.Namespace) -> tuple[dict[str, Callable], dict[str, jax.Array]]:
    """Value-and-gradient functions by name, and what each takes."""
    rows, length, num_labels = arguments.batch, arguments.frames, arguments.labels
    frames = jnp.ones((rows, length), bool)
    count = jnp.full(rows, num_labels)
    labels = jnp.broadcast_to(1 + jnp.arange(num_labels), (rows, num_labels))

    def summed(ctc: Callable[..., Any]) -> Callable[..., Any]:
        def loss(log_probs: jax.Array) -> jax.Array:
            nll, _ = ctc(log_probs, frames, labels, count, collapse=arguments.collapse)
            return jnp.sum(nll)

        return jax.value_and_grad(loss)

    def draw(classes: int) -> jax.Array:
        logits = jax.random.normal(jax.random.key(0), (rows, length, classes))
        return jax.nn.log_softmax(logits)

    forms = {"lattice": summed(ctc_loss), "optax": summed(optax_ctc)}
    own = draw(1 + num_labels)
    inputs = {"lattice": own, "optax": own}
    if arguments.vocab:

        def whole(log_probs: jax.Array) -> jax.Array:
            none = jnp.zeros((rows, length))
            return jnp.sum(
                optax.ctc_loss(log_probs, none, labels, none[:, :num_labels], log_epsilon=-1e30)
            )

        forms["optax_all_classes"] = jax.value_and_grad(whole)
        inputs["optax_all_classes"] = draw(arguments.vocab)
    return forms, inputs


if __name__ == "__main__":
    main()
