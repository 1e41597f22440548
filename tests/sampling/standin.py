"""A denoiser made of tables, the same bits in NumPy and in JAX, and other stand-ins for the model.

A network of two layers in miniature. Layer one gives each slot a code, a whole number made of its
token and its two neighbours'. The logits of a slot are the sum of table rows: for the token at its
left, its own, the one at its right, its place, the codes two slots before and behind, and the sum
of all tokens that are seen. Only whole numbers and float32 additions in a fixed order, so both
sides agree exactly and a disagreement of the samplers is a disagreement of their rules.

What a cache keeps is the tokens and codes of all slots: a later call takes those of slots it does
not run on as they were. Tokens outside the window do not change while a block is decoded, but the
code of a slot beside the block does, and a slot inside reads it two slots away: a cached call gives
other logits than a full one.
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import ParamRow, Params, SpecialIds
from jax_mdlm.model import table
from jax_mdlm.sampling import SampleOptions

VOCABULARY = 12  # text 0-5, a header 6, then the special tokens
IDS = SpecialIds(mask=11, slack=10, pad=9, eos=8, terminator=7, never_merged=(6,))
NOBODY = VOCABULARY  # the token of a slot that is not seen; one more row in tables of neighbours
CODES = 16
UNSEEN = 0  # the code of such a slot


@flax.struct.dataclass
class Tables:
    left: np.ndarray  # [V + 1, V]
    own: np.ndarray  # [V + 1, V]
    right: np.ndarray  # [V + 1, V]
    place: np.ndarray  # [L, V]; counted from the region's start, negative before it
    before: np.ndarray  # [CODES + 1, V]; for the code two slots before
    behind: np.ndarray  # [CODES + 1, V]
    whole: np.ndarray  # [CODES, V]; for the sum of the tokens


def tables(seed: int, length: int = 64) -> Tables:
    rng = np.random.default_rng(seed)

    def draw(rows: int, scale: float) -> np.ndarray:
        return (scale * rng.normal(size=(rows, VOCABULARY))).astype(np.float32)

    made = Tables(
        draw(VOCABULARY + 1, 0.7),
        draw(VOCABULARY + 1, 0.7),
        draw(VOCABULARY + 1, 0.7),
        draw(length, 1),
        draw(CODES + 1, 1.5),
        draw(CODES + 1, 1.5),
        draw(CODES, 0.3),
    )
    # Neighbours like to be equal, so that merging happens; terminators are not rare.
    made.left[np.arange(6), np.arange(6)] += 2
    made.place[:, IDS.terminator] += 0.6
    # The mask would often win: that it never does is a rule of the sampler.
    made.place[:, IDS.mask] += 2
    return made


@dataclasses.dataclass
class InNumpy:
    """The oracle's denoiser, slot after slot."""

    table: Tables
    valid: np.ndarray  # [B, L]
    start: int  # of the region

    def full(self, canvas: np.ndarray, end: int) -> tuple[np.ndarray, list]:
        """Every slot is run on; the tokens and codes of each row are kept."""
        memory = [([NOBODY] * len(row), [UNSEEN] * len(row)) for row in canvas]
        logits, memory = self._run(memory, canvas, range(canvas.shape[1]), end)
        return logits, memory

    def cached(self, memory: list, canvas: np.ndarray, window: range, end: int) -> np.ndarray:
        """The slots of `window` are run on, the others are what they were."""
        return self._run(memory, canvas, window, end)[0]

    def _run(
        self, memory: list, canvas: np.ndarray, window: range, end: int
    ) -> tuple[np.ndarray, list]:
        logits, table = np.zeros((*canvas.shape, VOCABULARY), np.float32), self.table
        kept = []
        for row, (tokens, codes) in enumerate(memory):
            tokens, codes = list(tokens), list(codes)
            for slot in window:
                seen = self.valid[row, slot] and slot < end
                tokens[slot] = int(canvas[row, slot]) if seen else NOBODY
            for slot in window:
                left, right = at(tokens, slot - 1, NOBODY), at(tokens, slot + 1, NOBODY)
                code = (left + 3 * tokens[slot] + 5 * right) % CODES
                codes[slot] = UNSEEN if tokens[slot] == NOBODY else 1 + code
            whole = sum(token for token in tokens if token != NOBODY) % CODES
            for slot in window:
                total = table.left[at(tokens, slot - 1, NOBODY)] + table.own[tokens[slot]]
                total = total + table.right[at(tokens, slot + 1, NOBODY)]
                total = total + table.before[at(codes, slot - 2, UNSEEN)]
                total = total + table.behind[at(codes, slot + 2, UNSEEN)]
                logits[row, slot] = total + table.place[slot - self.start] + table.whole[whole]
            kept.append((tokens, codes))
        return logits, kept


def at(values: list[int], slot: int, outside: int) -> int:
    return values[slot] if 0 <= slot < len(values) else outside


@dataclasses.dataclass(frozen=True)
class InJax:
    """The same for the sampler; see `sampling.loop.Denoise`."""

    table: Tables
    valid: jax.Array  # [B, L]
    start: int
    options: SampleOptions

    def full(
        self, canvas: jax.Array, start: jax.Array, end: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        nothing = jnp.zeros_like(canvas)
        window = jnp.ones(canvas.shape[1], bool)
        logits, memory = self._run((nothing, nothing), canvas, window, start, end)
        return logits, None if self.options.settings.cache == "none" else memory

    def cached(
        self,
        cache: tuple[jax.Array, jax.Array],
        canvas: jax.Array,
        start: jax.Array,
        end: jax.Array,
    ) -> jax.Array:
        slots = jnp.arange(canvas.shape[1])
        settings = self.options.settings
        stop = end if settings.cache == "prefix" else start + settings.block_length
        return self._run(cache, canvas, (start <= slots) & (slots < stop), start, end)[0]

    def _run(self, memory, canvas, window, start, end):
        tokens, codes = memory
        # Guidance asks for both views at once: a batch of twice the rows.
        valid = jnp.tile(self.valid, (canvas.shape[0] // self.valid.shape[0], 1))
        seen = valid & (jnp.arange(canvas.shape[1]) < end)
        tokens = jnp.where(window, jnp.where(seen, canvas, NOBODY), tokens)
        left, right = _beside(tokens, 1, NOBODY)
        code = 1 + (left + 3 * tokens + 5 * right) % CODES
        codes = jnp.where(window, jnp.where(tokens == NOBODY, UNSEEN, code), codes)
        before, behind = _beside(codes, 2, UNSEEN)
        whole = jnp.sum(jnp.where(tokens == NOBODY, 0, tokens), axis=1, keepdims=True) % CODES
        place = jnp.arange(canvas.shape[1]) - self.start

        table, width = self.table, self.options.settings.block_length
        block = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=width)
        total = table.left[block(left, axis=1)] + table.own[block(tokens, axis=1)]
        total = total + table.right[block(right, axis=1)]
        total = total + table.before[block(before, axis=1)]
        total = total + table.behind[block(behind, axis=1)]
        logits = total + table.place[block(place, axis=0)] + table.whole[whole]
        return logits, (tokens, codes)


def _beside(values: jax.Array, away: int, outside: int) -> tuple[jax.Array, jax.Array]:
    """What stands `away` slots before and behind each slot."""
    padded = jnp.pad(values, ((0, 0), (away, away)), constant_values=outside)
    return padded[:, : -2 * away], padded[:, 2 * away :]


@flax.struct.dataclass
class Fixed:
    """Offers the same at each slot in every call, whatever stands in the canvas."""

    logits: np.ndarray  # [B, L, V]
    options: SampleOptions = flax.struct.field(pytree_node=False)

    def full(
        self, canvas: jax.Array, start: jax.Array, end: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        width = self.options.settings.block_length
        logits = jax.lax.dynamic_slice_in_dim(jnp.asarray(self.logits), start, width, axis=1)
        return logits, None if self.options.settings.cache == "none" else jnp.zeros((), jnp.int32)

    def cached(
        self, cache: jax.Array, canvas: jax.Array, start: jax.Array, end: jax.Array
    ) -> jax.Array:
        return self.full(canvas, start, end)[0]


def random_params(config: ModelConfig, seed: int = 0) -> Params:
    """Parameters for the model itself; compiling `model.init` takes longer than a test."""
    rng = np.random.default_rng(seed)

    def draw(row: ParamRow) -> np.ndarray:
        shape = table.shape(row, config)
        return rng.normal(size=shape).astype(np.float32) * (0.2 if row.num_inputs else 1.0)

    return table.tree({row.path: jnp.asarray(draw(row)) for row in table.rows(config)})
