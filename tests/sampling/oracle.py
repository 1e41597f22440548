"""The sampler and its oracle on one canvas, with the same stand-in and the same draws."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jax_mdlm.containers import Region, SampleState
from jax_mdlm.sampling import (
    AboveThreshold,
    AtRandom,
    Boundary,
    ByConfidence,
    ByEntropy,
    ByFactor,
    ByMargin,
    Canvas,
    Denoise,
    Displace,
    Guided,
    SampleOptions,
    decode,
    init_state,
    make_canvas,
)
from tests.reference import sampler as reference
from tests.sampling.making import make_options
from tests.sampling.standin import IDS, VOCABULARY, Fixed, InJax, InNumpy, Tables

RULES = {
    "confidence": ByConfidence(),
    "entropy": ByEntropy(),
    "margin": ByMargin(),
    "random": AtRandom(),
}


def given_of(canvas: Canvas) -> np.ndarray:
    """bool [B, L]; text of the caller: not masked, not padding, not hidden."""
    visible = np.arange(canvas.tokens.shape[1]) < canvas.region.start + canvas.region.length
    return canvas.valid & (canvas.tokens != IDS.mask) & visible


def run_jax(
    table: Tables,
    canvas: Canvas,
    options: SampleOptions,
    seed: int = 0,
    first_row: int = 0,
    strength: float = 0.0,
) -> SampleState:
    keys = row_keys(seed, len(canvas.tokens), first_row)
    inputs = canvas.tokens, given_of(canvas), keys, np.float32(strength)
    return _run(table, canvas.valid, *inputs, options, canvas.region)


@functools.partial(jax.jit, static_argnames=("options", "region"))
def _run(
    table: Tables,
    valid: jax.Array,
    tokens: jax.Array,
    given: jax.Array,
    keys: jax.Array,
    strength: jax.Array,
    options: SampleOptions,
    region: Region,
) -> SampleState:
    settings = options.settings
    empty = jnp.zeros((len(tokens) * (2 if settings.guidance else 1), tokens.shape[1]), jnp.int32)
    cache = None if settings.cache == "none" else (empty, empty)
    state = init_state(tokens, given, keys, options, region, cache, strength)
    return advance(table, valid, state, options)


@functools.partial(jax.jit, static_argnames="options")
def advance(
    table: Tables,
    valid: jax.Array,
    state: SampleState,
    options: SampleOptions,
    until: jax.Array | None = None,
) -> SampleState:
    denoise = InJax(table, valid, state.region.start, options)
    if options.settings.guidance:
        denoise = Guided(denoise, state.given, options.settings.guidance, IDS.mask)
    return decode(denoise, state, options, until)


def run_with(denoise: Denoise, canvas: Canvas, options: SampleOptions) -> SampleState:
    """Decodes with a denoiser that is a pytree and whose cache, if any, is a whole number."""
    keys = row_keys(0, len(canvas.tokens))
    return _run_with(denoise, canvas.tokens, given_of(canvas), keys, options, canvas.region)


@functools.partial(jax.jit, static_argnames=("options", "region"))
def _run_with(
    denoise: Denoise,
    tokens: jax.Array,
    given: jax.Array,
    keys: jax.Array,
    options: SampleOptions,
    region: Region,
) -> SampleState:
    cache = None if options.settings.cache == "none" else jnp.zeros((), jnp.int32)
    return decode(denoise, init_state(tokens, given, keys, options, region, cache), options)


def run_reference(
    table: Tables,
    canvas: Canvas,
    options: SampleOptions,
    seed: int = 0,
    strength: float = 0.0,
) -> reference.Result:
    region = canvas.region
    keys = row_keys(seed, len(canvas.tokens))
    num_blocks = region.limit // options.settings.block_length
    draws = functools.cache(lambda: _draws(keys, num_blocks, options))
    disturb = Disturb(keys, options, strength, num_blocks)
    return reference.run(
        InNumpy(table, canvas.valid, region.start),
        canvas.tokens,
        given_of(canvas),
        settings(options, region),
        lambda row, block, call: draws()[0][row, block, call],
        lambda row, block, call: draws()[1][row, block, call],
        disturb.slips if isinstance(options.strategy, Displace) else None,
        disturb.boundary if isinstance(options.strategy, Boundary) else None,
        options.strategy.share if isinstance(options.strategy, Boundary) else 0.0,
    )


@dataclasses.dataclass
class Disturb:
    """The draws of an intervention, in the oracle's words."""

    keys: jax.Array
    options: SampleOptions
    strength: float
    num_blocks: int

    def slips(self, row: int, block: int, call: int) -> dict[int, int]:
        """Places in the block whose token wants to go away, and which way."""
        assert isinstance(self.options.strategy, Displace)
        slip, way = self._draws[0][row, self._number(block, call)]
        ways = {
            "right": lambda at: 1,
            "left": lambda at: -1,
            "both": lambda at: 1 if way[at] < 0.5 else -1,
        }[self.options.strategy.direction]
        return {at: ways(at) for at, draw in enumerate(slip) if draw < np.float32(self.strength)}

    def boundary(self, row: int, block: int, call: int) -> int:
        """The place in the block from which on everything moves; -1: nothing does."""
        whether, place = (draw[row, self._number(block, call)] for draw in self._draws[1:])
        return int(place) if whether < np.float32(self.strength) else -1

    def _number(self, block: int, call: int) -> int:
        return block * calls_at_most(self.options) + call

    @functools.cached_property
    def _draws(self) -> tuple[np.ndarray, ...]:
        numbers = jnp.arange(self.num_blocks * calls_at_most(self.options))
        found = _disturbances(self.keys, numbers, self.options.settings.block_length)
        return tuple(np.asarray(draw) for draw in found)


@functools.partial(jax.jit, static_argnames="width")
def _disturbances(keys: jax.Array, calls: jax.Array, width: int) -> tuple[jax.Array, ...]:
    """What every call could draw: slips [B, calls, 2, W]; whether and where a boundary shifts."""

    def draw(key: jax.Array, call: jax.Array) -> tuple[jax.Array, ...]:
        key = jax.random.fold_in(jax.random.fold_in(key, call), 2)
        whether, where = jax.random.split(key)
        return (
            jax.random.uniform(key, (2, width)),
            jax.random.uniform(whether),
            jax.random.randint(where, (), 0, width),
        )

    return jax.vmap(lambda key: jax.vmap(lambda call: draw(key, call))(calls))(keys)


def calls_at_most(options: SampleOptions) -> int:
    """Calls of a block."""
    return options.settings.block_length + isinstance(options.strategy, Boundary)


def _draws(
    keys: jax.Array, num_blocks: int, options: SampleOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Every draw that any call could make: gumbel [B, blocks, C, W, V], uniform [B, blocks, C, W].

    The key schedule in the docstring of `sampling.loop`, written out once more.
    """
    calls, width = calls_at_most(options), options.settings.block_length
    gumbel, uniform = _draw_all(keys, jnp.arange(num_blocks * calls), width)
    shape = (len(keys), num_blocks, calls)
    return np.reshape(gumbel, (*shape, width, VOCABULARY)), np.reshape(uniform, (*shape, width))


@functools.partial(jax.jit, static_argnames="width")
def _draw_all(keys: jax.Array, calls: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    def draw(key: jax.Array, call: jax.Array) -> tuple[jax.Array, jax.Array]:
        key = jax.random.fold_in(key, call)
        gumbel = jax.random.gumbel(jax.random.fold_in(key, 0), (width, VOCABULARY))
        return gumbel, jax.random.uniform(jax.random.fold_in(key, 1), (width,))

    return jax.vmap(lambda key: jax.vmap(lambda call: draw(key, call))(calls))(keys)


def row_keys(seed: int, rows: int, first_row: int = 0) -> jax.Array:
    numbers = first_row + np.arange(rows)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), numbers)


def settings(options: SampleOptions, region: Region) -> reference.Settings:
    """The options as the oracle's plain words."""
    strategy, threshold, factor = options.strategy, 0.0, 0.0
    if isinstance(strategy, Displace | Boundary):
        strategy = strategy.inner
    if isinstance(strategy, AboveThreshold):
        strategy, threshold = strategy.order, strategy.threshold
    elif isinstance(strategy, ByFactor):
        strategy, factor = strategy.order, strategy.factor
    own = vars(options.settings) | {"collapse": options.collapse}
    known = {field.name for field in dataclasses.fields(reference.Settings)}
    said = {"length", "limit", "threshold", "factor"}
    return reference.Settings(
        **{name: own[name] for name in own.keys() & known - said},
        first=region.start,
        length=region.length,
        limit=region.limit,
        steps_blocks=options.num_blocks,
        rule=next(name for name, rule in RULES.items() if rule == strategy),
        threshold=threshold,
        factor=factor,
        mask=IDS.mask,
        slack=IDS.slack,
        eos=IDS.eos,
        terminator=IDS.terminator,
        special=frozenset({6, 7, 8, 9, 10, 11}),
    )


def plain_settings(**changes) -> reference.Settings:
    """The oracle's words for options that are all off."""
    options = make_options(length=12, block_length=6, steps=7, ids=IDS, collapse="slack_only")
    return dataclasses.replace(settings(options, Region(0, 12, 12)), **changes)


def run_fixed(
    text: list[list[int]],  # [B, slots of the region]
    options: SampleOptions,
    strength: list[float] | None = None,  # of the slots; None: falling from left to right
    prompts: list[list[int]] | None = None,  # with masks; None: empty ones
) -> SampleState:
    """Decodes rows whose every slot offers its token of `text`, the strongest first."""
    canvas = make_canvas(prompts or [[]] * len(text), options, max_length=64, bucket=lambda n: n)
    size = canvas.region.limit
    logit = 8.0 - 0.1 * np.arange(size) if strength is None else np.asarray(strength)
    logits = np.zeros((*canvas.tokens.shape, VOCABULARY), np.float32)
    logits[:, canvas.region.start :] = np.eye(VOCABULARY)[np.asarray(text)] * logit[:, None]
    return run_with(Fixed(logits, options), canvas, options)
