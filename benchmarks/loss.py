"""The training objective against the dense form of it: memory and time.

Temporary memory of the compiled value-and-gradient (with respect to hidden states and head), and
of the form that materialises logits `[B, L, V]` and gives optax the full vocabulary.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.printing import print_result
from jax_mdlm.config import ObjectiveConfig
from jax_mdlm.containers import Batch, Corruption, SpecialIds
from jax_mdlm.diffusion import corrupt, objective
from tests.reference.dense import dense_loss

IDS = SpecialIds(mask=0, slack=1, pad=2, eos=3, terminator=4, never_merged=(0, 1, 2, 3, 4))
FIRST_TEXT_ID = 5  # ids below are special


def loss_programs(
    vocab: int, length: int, labels: int, batch: int, embed: int, config: ObjectiveConfig
) -> tuple[dict[str, Callable[..., Any]], tuple[Any, ...]]:
    """The compact and the dense loss as value-and-gradient functions, and abstract inputs.

    Args:
      vocab: V.
      length: L.
      labels: U.
      batch: B.
      embed: D.
      config: Objective; static.

    Returns:
      Functions of (hidden [B, L, D], head [D, V], Corruption), float32, by name, and the shapes of
      their arguments.
    """

    def compact(hidden: jax.Array, head: jax.Array, corruption: Corruption) -> jax.Array:
        return objective(hidden, head, corruption, IDS, config)[0]

    def dense(hidden: jax.Array, head: jax.Array, corruption: Corruption) -> jax.Array:
        return dense_loss(hidden, head, corruption, IDS, config)

    functions = {
        name: jax.value_and_grad(function, argnums=(0, 1))
        for name, function in (("compact", compact), ("dense", dense))
    }
    hidden = jax.ShapeDtypeStruct((batch, length, embed), jnp.float32)
    head = jax.ShapeDtypeStruct((embed, vocab), jnp.float32)
    rows = jax.eval_shape(lambda: _random_rows(vocab, length, labels, batch, config))
    return functions, (hidden, head, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark and prints its result, one JSON object, on stdout."""
    print_result("loss", __doc__, add_flags, run, argv)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Gives the parser this benchmark's flags."""
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


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures the objective, and its dense form."""
    sizes = {
        name: getattr(arguments, name) for name in ("vocab", "length", "labels", "batch", "embed")
    }
    for name, least in (
        ("vocab", FIRST_TEXT_ID + 2),
        ("length", 1),
        ("labels", 1),
        ("batch", 1),
        ("embed", 1),
    ):
        if sizes[name] < least:
            parser.error(f"--{name} must be at least {least}, got {sizes[name]}")
    if arguments.labels > arguments.length:
        parser.error(
            f"--labels must be at most --length={arguments.length}, got {arguments.labels}"
        )
    if arguments.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {arguments.repeats}")
    config = ObjectiveConfig(collapse=arguments.collapse, observed=arguments.observed)
    functions, shapes = loss_programs(**sizes, config=config)
    if arguments.collapse == "slack_only":
        del functions["dense"]  # optax on the full vocabulary knows `merge` only
    compiled = {name: jax.jit(f).lower(*shapes).compile() for name, f in functions.items()}
    result: dict[str, Any] = {
        **sizes,
        "collapse": arguments.collapse,
        "observed": arguments.observed,
        "backend": jax.default_backend(),
        "temp_bytes": {name: temp_bytes(program) for name, program in compiled.items()},
    }
    if "dense" in compiled:
        temp = result["temp_bytes"]
        result["compact_to_dense"] = round(temp["compact"] / temp["dense"], 4)
    if arguments.time:
        inputs = jax.jit(lambda: _random_inputs(**sizes, config=config))()
        result["median_seconds"] = {
            name: _median_seconds(program, inputs, arguments.repeats)
            for name, program in compiled.items()
        }
    return result


def temp_bytes(program: jax.stages.Compiled) -> int:
    """Temporary memory of a compiled program, in bytes."""
    analysis = program.memory_analysis()
    if analysis is None:
        raise RuntimeError(
            f"backend {jax.default_backend()} must report the memory of compiled programs, it "
            "reports none; run with JAX_PLATFORMS=cpu"
        )
    return analysis.temp_size_in_bytes


def _random_rows(
    vocab: int, length: int, labels: int, batch: int, config: ObjectiveConfig
) -> Corruption:
    """Rows that are all response: `labels` random tokens, end padding, slack where it fits."""
    tokens = jax.random.randint(jax.random.key(0), (batch, labels), FIRST_TEXT_ID, vocab)
    tokens = tokens.at[:, -1].set(IDS.terminator)
    rows = Batch(
        tokens=jnp.pad(tokens, ((0, 0), (0, length - labels)), constant_values=IDS.eos),
        response=jnp.ones((batch, length), bool),
        valid=jnp.ones((batch, length), bool),
        labels=tokens,
        label_count=jnp.full((batch,), labels, jnp.int32),
    )
    return corrupt(jax.random.key(1), rows, IDS, config)


def _random_inputs(
    vocab: int, length: int, labels: int, batch: int, embed: int, config: ObjectiveConfig
) -> tuple[jax.Array, jax.Array, Corruption]:
    hidden = jax.random.normal(jax.random.key(2), (batch, length, embed), jnp.float32)
    head = jax.random.normal(jax.random.key(3), (embed, vocab), jnp.float32) / embed**0.5
    return hidden, head, _random_rows(vocab, length, labels, batch, config)


def _median_seconds(program: Callable[..., Any], inputs: tuple[Any, ...], repeats: int) -> float:
    jax.block_until_ready(program(*inputs))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(program(*inputs))
        seconds.append(time.perf_counter() - start)
    return round(statistics.median(seconds), 4)


if __name__ == "__main__":
    main()
