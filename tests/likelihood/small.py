"""A model small enough to enumerate, and what it says, asked without any of the code under test."""

import functools

import jax
import numpy as np

from jax_mdlm import model
from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import SpecialIds
from tests.reference.quantized import rounded
from tests.sampling.standin import random_params

CONFIG = ModelConfig(
    vocab_size=10,
    embed=16,
    layers=2,
    heads=2,
    kv_heads=2,
    head_dim=8,
    mlp=24,
    max_length=64,
    compute_dtype="float32",
    remat="none",
)
IDS = SpecialIds(mask=9, slack=8, pad=7, eos=6, terminator=5, never_merged=(4, 5, 6, 7, 8, 9))
PARAMS = random_params(CONFIG)
# Surer of itself than it is drawn. LLaDA's greedy filling may write a mask, and this model would.
PARAMS["head"] = (3 * PARAMS["head"]).at[:, IDS.mask].set(0.0)
LENGTH = 16  # slots of the canvas on which the model is asked


@functools.cache
def logits(tokens: tuple[int, ...], params_of: str = "full") -> np.ndarray:
    """Logits of a whole text, [len(tokens), V]; nothing stands before it."""
    padded = np.array([[*tokens, *[IDS.pad] * (LENGTH - len(tokens))]], np.int32)
    valid = np.arange(LENGTH)[None] < len(tokens)
    return np.asarray(_apply(_PARAMS[params_of], padded, valid))[0, : len(tokens)]


def predict(prompt, response, *, guidance=0.0, params_of="full"):
    """`predict` of `tests.reference.likelihood` for a row."""

    def log_probs(masked: np.ndarray) -> np.ndarray:
        noisy = [IDS.mask if hidden else token for token, hidden in zip(response, masked)]
        found = logits((*prompt, *noisy), params_of).astype(np.float64)
        if guidance:
            blind = logits((*[IDS.mask] * len(prompt), *noisy), params_of).astype(np.float64)
            found = blind + (guidance + 1) * (found - blind)
        found = found - np.logaddexp.reduce(found, axis=-1, keepdims=True)
        return found[len(prompt) + np.arange(len(response)), list(response)]

    return log_probs


_PARAMS = {"full": PARAMS, "int8": rounded(PARAMS, CONFIG)}
_apply = jax.jit(lambda params, tokens, valid: model.apply(params, tokens, CONFIG, valid))
