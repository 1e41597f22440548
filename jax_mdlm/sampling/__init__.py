"""The sampler: canvases, commits, the loop on device, and decoding with the model."""

from jax_mdlm.sampling.canvas import (
    Canvas,
    batches,
    bucket_length,
    check_prompts,
    make_canvas,
    response_end,
    response_tokens,
    why_too_long,
)
from jax_mdlm.sampling.commit import (
    AboveThreshold,
    AtRandom,
    ByConfidence,
    ByEntropy,
    ByFactor,
    ByMargin,
    Call,
    Strategy,
)
from jax_mdlm.sampling.denoise import Guided
from jax_mdlm.sampling.generate import Answer, generate, read_answers, sample, stream
from jax_mdlm.sampling.interventions import Boundary, Displace, Intervention
from jax_mdlm.sampling.loop import Denoise, decode, init_state
from jax_mdlm.sampling.options import SampleOptions, options_from
from jax_mdlm.sampling.program import lower

__all__ = [
    "AboveThreshold",
    "Answer",
    "AtRandom",
    "Boundary",
    "ByConfidence",
    "ByEntropy",
    "ByFactor",
    "ByMargin",
    "Call",
    "Canvas",
    "Denoise",
    "Displace",
    "Guided",
    "Intervention",
    "SampleOptions",
    "Strategy",
    "batches",
    "bucket_length",
    "check_prompts",
    "decode",
    "generate",
    "init_state",
    "lower",
    "make_canvas",
    "options_from",
    "read_answers",
    "response_end",
    "response_tokens",
    "sample",
    "stream",
    "why_too_long",
]
