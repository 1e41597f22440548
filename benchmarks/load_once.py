"""A model opened and asked in a fresh process, which `benchmarks.eight_billion` starts and watches.

The canvas has exactly `--length` slots: random tokens, and `--tokens` masks in its first block that
are filled in with a threshold of 0.9. A trained model agrees with itself and fills several a call;
random weights never do, and fill one. The same gaps are filled twice: the first time compiles.

The lower bound of a call is what its products take at the rate of one large product, [128, 4096] x
[4096, 12288] into float32, measured here with bfloat16 and with float32 inputs (medians of five,
the faster counts). Of the parameters it counts those that a slot is multiplied with: no embedding,
the head for the slots of a block only, and so in the last layer all but keys and values.
"""

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_mdlm
from benchmarks.printing import print_result
from jax_mdlm.config import ModelConfig
from jax_mdlm.model import table
from jax_mdlm.sampling import Answer

BLOCK = 32  # slots
_THRESHOLD = 0.9
_PRODUCT = (128, 4096, 12288)
_PRODUCTS = 5  # timed ones


def main(argv: Sequence[str] | None = None) -> None:
    """Loads, asks and prints the figures, one JSON object, on stdout."""
    print_result("load_once", __doc__, add_flags, run, argv)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Gives the parser this benchmark's flags."""
    parser.add_argument("path", help="what `jax_mdlm.load` opens")
    parser.add_argument("--weights", default="full", help="sample.weights (full)")
    parser.add_argument("--length", type=int, default=128, help="slots of the canvas (128)")
    parser.add_argument("--tokens", type=int, default=4, help="masks among them (4)")


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures one model; moments are seconds of `time.monotonic`."""
    length, tokens = arguments.length, arguments.tokens
    if length < BLOCK or length % BLOCK:
        parser.error(f"--length must be a multiple of {BLOCK}, got {length}")
    if not 0 < tokens <= BLOCK:
        parser.error(f"--tokens must be 1 to {BLOCK}, the slots of a block, got {tokens}")
    started = time.monotonic()
    model = jax_mdlm.load(
        arguments.path,
        weights=arguments.weights,
        length=length,
        block_length=BLOCK,
        steps=length,
        threshold=_THRESHOLD,
    )
    jax.block_until_ready(model.params)
    loaded = time.monotonic()
    network = model.config.model
    canvas = np.random.default_rng(0).integers(0, min(256, network.vocab_size // 2), length)
    canvas[:tokens] = model.tokenizer.ids.mask

    def ask() -> tuple[Answer, float]:
        begin = time.perf_counter()
        (answer,) = model.answers([canvas.tolist()])
        return answer, time.perf_counter() - begin

    _, first = ask()
    answer, seconds = ask()
    answered = time.monotonic()
    slots = answer.response.size
    parameters = table.num_parameters(network)
    rates = {dtype: _rate(dtype) for dtype in ("bfloat16", "float32")}
    fastest = max(rates.values())
    bound = _arithmetic(network, slots, BLOCK) / fastest
    return {
        "loaded_at": loaded,
        "answered_at": answered,
        "weights_gb": round(sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)) / 1e9, 3),
        "load_seconds": round(loaded - started, 3),
        "first_seconds": round(first, 3),
        "second_seconds": round(seconds, 3),
        "slots": slots,
        "calls": answer.calls,
        "seconds_per_call": round(seconds / answer.calls, 4),
        "tokens_per_call": round(tokens / answer.calls, 3),
        "tokens_per_second": round(tokens / seconds, 4),
        "gigaflops": {dtype: round(rate / 1e9, 1) for dtype, rate in rates.items()},
        "bound_seconds_per_call": round(bound, 4),
        "times_bound": round(seconds / answer.calls / bound, 3),
        # What is often quoted: every parameter counts for every slot.
        "all_parameters_seconds_per_call": round(2 * parameters * slots / fastest, 4),
    }


def _arithmetic(config: ModelConfig, slots: int, block: int) -> int:
    """Counts the operations of a call's products with parameters; those of attention are few."""
    total = 0
    for row in table.rows(config):
        if not row.num_inputs:
            continue
        size = math.prod(table.shape(row, config))
        if row.axes[0] != "layers":
            total += block * size
            continue
        layer = size // config.layers
        in_last = slots if "kv_heads" in row.axes else block
        total += ((config.layers - 1) * slots + in_last) * layer
    return 2 * total


def _rate(dtype: str) -> float:
    """Measures operations a second of one large product."""
    rows, inner, columns = _PRODUCT
    left, right = (
        jax.random.normal(jax.random.key(seed), shape, dtype)
        for seed, shape in enumerate([(rows, inner), (inner, columns)])
    )
    product = jax.jit(lambda x, y: jnp.matmul(x, y, preferred_element_type=jnp.float32))
    jax.block_until_ready(product(left, right))
    seconds = []
    for _ in range(_PRODUCTS):
        begin = time.perf_counter()
        jax.block_until_ready(product(left, right))
        seconds.append(time.perf_counter() - begin)
    return 2 * math.prod(_PRODUCT) / statistics.median(seconds)


if __name__ == "__main__":
    main()
