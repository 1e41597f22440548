"""The sampler: canvases, commits, the loop on device, and decoding with the model."""

from jax_mdlm.sampling.canvas import bucket_length, make_canvas, response_end, response_tokens
from jax_mdlm.sampling.commit import (
    AboveThreshold,
    AtRandom,
    ByConfidence,
    ByEntropy,
    ByMargin,
    Strategy,
)
from jax_mdlm.sampling.generate import Answer, generate, sample
from jax_mdlm.sampling.loop import Denoise, decode, init_state
from jax_mdlm.sampling.options import SampleOptions, options_from

__all__ = [
    "AboveThreshold",
    "Answer",
    "AtRandom",
    "ByConfidence",
    "ByEntropy",
    "ByMargin",
    "Denoise",
    "SampleOptions",
    "Strategy",
    "bucket_length",
    "decode",
    "generate",
    "init_state",
    "make_canvas",
    "options_from",
    "response_end",
    "response_tokens",
    "sample",
]
