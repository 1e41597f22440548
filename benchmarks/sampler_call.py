"""Where the time of one model call goes: the layers, the head, and what is left for the loop.

The parts are compiled on their own and timed on the arrays that the sampler would give them. In
the sampler's program they stand in a loop and may be fused, so the parts are a guide, not a sum.
"""

import time
from collections.abc import Callable
from typing import Any

import jax

from jax_mdlm import model
from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import Params
from jax_mdlm.sampling import SampleOptions, make_canvas

_CALLS = 20  # timed calls of each part; a call takes milliseconds


def one_call(
    params: Params, config: ModelConfig, prompts: list[list[int]], options: SampleOptions
) -> dict[str, float]:
    """Milliseconds of the parts of a call on the whole canvas, without a cache.

    Args:
      params: As from `model.prepare`.
      config: The network.
      prompts: Of a batch.
      options: Of its decoding.

    Returns:
      Milliseconds of the fastest call by part: `layers` (embedding, all layers, the last one's
      queries for the block only) and `head` (logits of the block).
    """
    canvas = make_canvas(prompts, options, max_length=config.max_length)
    tokens, valid = jax.device_put((canvas.tokens, canvas.valid))
    window = model.Window(start=canvas.region.start, width=options.settings.block_length)

    layers = jax.jit(lambda p, t, v: model.encode_window(p, t, config, window, v)[0])
    head = jax.jit(model.project)
    block = layers(params, tokens, valid)
    return {
        "layers": _fastest(layers, params, tokens, valid),
        "head": _fastest(head, block, model.head(params)),
    }


def _fastest(program: Callable[..., Any], *inputs: Any) -> float:
    jax.block_until_ready(program(*inputs))
    seconds = []
    for _ in range(_CALLS):
        start = time.perf_counter()
        jax.block_until_ready(program(*inputs))
        seconds.append(time.perf_counter() - start)
    return round(1e3 * min(seconds), 3)
