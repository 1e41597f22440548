"""A denoiser made of tables, the same bits in NumPy and in JAX, and the bridge to the oracle.

The logits of a slot are the sum of four table rows: for the token at its left, its own, the one at
its right, and its place. Only float32 additions in a fixed order, so both sides agree exactly and
a disagreement of the samplers is a disagreement of their rules.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import ParamRow, Params, SampleState, SpecialIds
from jax_mdlm.model import table
from jax_mdlm.sampling import (
    AboveThreshold,
    AtRandom,
    ByConfidence,
    ByEntropy,
    ByMargin,
    SampleOptions,
    decode,
    init_state,
)
from tests.reference import sampler as reference

VOCABULARY = 12  # text 0-5, a header 6, then the special tokens
IDS = SpecialIds(mask=11, slack=10, pad=9, eos=8, terminator=7, never_merged=(6,))
QUICK_COMPILE = {"xla_backend_optimization_level": 0}
RULES = {
    "confidence": ByConfidence(),
    "entropy": ByEntropy(),
    "margin": ByMargin(),
    "random": AtRandom(),
}


@flax.struct.dataclass
class Tables:
    left: np.ndarray  # [V + 1, V]; row V: no neighbour
    own: np.ndarray  # [V, V]
    right: np.ndarray  # [V + 1, V]
    place: np.ndarray  # [L, V]; counted from the response's start, negative before it


def tables(seed: int, length: int = 64) -> Tables:
    rng = np.random.default_rng(seed)

    def draw(rows: int, scale: float) -> np.ndarray:
        return (scale * rng.normal(size=(rows, VOCABULARY))).astype(np.float32)

    made = Tables(
        draw(VOCABULARY + 1, 0.7), draw(VOCABULARY, 0.7), draw(VOCABULARY + 1, 0.7), draw(length, 1)
    )
    made.left[VOCABULARY] = made.right[VOCABULARY] = 0
    # Neighbours like to be equal, so that merging happens; terminators are not rare.
    made.left[np.arange(6), np.arange(6)] += 2
    made.place[:, IDS.terminator] += 0.5
    # The mask would often win: that it never does is a rule of the sampler.
    made.place[:, IDS.mask] += 1
    return made


def denoise_numpy(table: Tables, canvas: np.ndarray, valid: np.ndarray, prompt: int) -> np.ndarray:
    rows, length = canvas.shape
    logits = np.zeros((rows, length, VOCABULARY), np.float32)
    for row in range(rows):
        for slot in range(length):
            has_left = slot > 0 and valid[row, slot - 1]
            has_right = slot + 1 < length
            left = canvas[row, slot - 1] if has_left else VOCABULARY
            right = canvas[row, slot + 1] if has_right else VOCABULARY
            total = table.left[left] + table.own[canvas[row, slot]]
            logits[row, slot] = total + table.right[right] + table.place[slot - prompt]
    return logits


def denoise_jax(table: Tables, valid: jax.Array, options: SampleOptions):
    def denoise(canvas: jax.Array, start: jax.Array) -> jax.Array:
        edge = jnp.full((canvas.shape[0], 1), VOCABULARY, jnp.int32)
        left = jnp.concatenate([edge, jnp.where(valid, canvas, VOCABULARY)[:, :-1]], axis=1)
        right = jnp.concatenate([canvas[:, 1:], edge], axis=1)
        place = jnp.arange(canvas.shape[1]) - (canvas.shape[1] - options.length)
        logits = table.left[left] + table.own[canvas] + table.right[right] + table.place[place]
        return jax.lax.dynamic_slice_in_dim(logits, start, options.block_length, axis=1)

    return denoise


def run_jax(
    table: Tables,
    canvas: np.ndarray,
    valid: np.ndarray,
    options: SampleOptions,
    seed: int = 0,
    first_row: int = 0,
) -> SampleState:
    return _run(table, canvas, valid, row_keys(seed, len(canvas), first_row), options)


@functools.partial(jax.jit, static_argnames="options", compiler_options=QUICK_COMPILE)
def _run(
    table: Tables, canvas: jax.Array, valid: jax.Array, keys: jax.Array, options: SampleOptions
) -> SampleState:
    return decode(denoise_jax(table, valid, options), init_state(canvas, keys, options), options)


def run_reference(
    table: Tables,
    canvas: np.ndarray,
    valid: np.ndarray,
    options: SampleOptions,
    seed: int = 0,
) -> reference.Result:
    prompt = canvas.shape[1] - options.length
    keys = row_keys(seed, len(canvas))
    draws = functools.cache(lambda: _draws(keys, options.num_blocks, options.block_length))
    return reference.run(
        lambda canvas: denoise_numpy(table, canvas, valid, prompt),
        canvas,
        settings(options),
        lambda row, block, call: draws()[0][row, block, call],
        lambda row, block, call: draws()[1][row, block, call],
    )


def _draws(keys: jax.Array, num_blocks: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Every draw that any call could make: gumbel [B, blocks, W, W, V], uniform [B, blocks, W, W].

    The key schedule in the docstring of `sampling.loop`, written out once more.
    """
    gumbel, uniform = _draw_all(keys, jnp.arange(num_blocks * width), width)
    shape = (len(keys), num_blocks, width)
    return np.reshape(gumbel, (*shape, width, VOCABULARY)), np.reshape(uniform, (*shape, width))


@functools.partial(jax.jit, static_argnames="width", compiler_options=QUICK_COMPILE)
def _draw_all(keys: jax.Array, calls: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    def draw(key: jax.Array, call: jax.Array) -> tuple[jax.Array, jax.Array]:
        key = jax.random.fold_in(key, call)
        gumbel = jax.random.gumbel(jax.random.fold_in(key, 0), (width, VOCABULARY))
        return gumbel, jax.random.uniform(jax.random.fold_in(key, 1), (width,))

    return jax.vmap(lambda key: jax.vmap(lambda call: draw(key, call))(calls))(keys)


def row_keys(seed: int, rows: int, first_row: int = 0) -> jax.Array:
    key = jax.random.key(seed)
    return jnp.stack([jax.random.fold_in(key, first_row + row) for row in range(rows)])


def random_params(config: ModelConfig, seed: int = 0) -> Params:
    """Parameters for the model itself; compiling `model.init` takes longer than a test."""
    rng = np.random.default_rng(seed)

    def draw(row: ParamRow) -> np.ndarray:
        shape = table.shape(row, config)
        return rng.normal(size=shape).astype(np.float32) * (0.2 if row.num_inputs else 1.0)

    return table.tree({row.path: jnp.asarray(draw(row)) for row in table.ROWS})


def settings(options: SampleOptions) -> reference.Settings:
    """The options as the oracle's plain words."""
    strategy, threshold = options.strategy, 0.0
    if isinstance(strategy, AboveThreshold):
        strategy, threshold = strategy.order, strategy.threshold
    return reference.Settings(
        length=options.length,
        block_length=options.block_length,
        steps=options.steps,
        collapse=options.collapse,
        rule=next(name for name, rule in RULES.items() if rule == strategy),
        threshold=threshold,
        temperature=options.temperature,
        early_stop=options.early_stop,
        mask=IDS.mask,
        slack=IDS.slack,
        eos=IDS.eos,
        terminator=IDS.terminator,
        special=frozenset({6, 7, 8, 9, 10, 11}),
    )
