"""The program that a run would execute, lowered and compiled for devices that need not exist.

The step is the one of `train` and the sampler the one of `sample`: nothing is rebuilt here, only
their arguments are abstract. Devices of any platform will do; tests take CPU devices.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_mdlm import model
from jax_mdlm.config import Config, ConfigError
from jax_mdlm.containers import Batch, SpecialIds
from jax_mdlm.data.special import EOS, MASK, SLACK, TERMINATOR, TRAINED_TOKENS
from jax_mdlm.planning.cost import Turns
from jax_mdlm.sampling import lower as lower_sampler
from jax_mdlm.sampling import options_from
from jax_mdlm.sampling.loop import max_calls
from jax_mdlm.sharding import Layout, make_layout
from jax_mdlm.training.optimizer import make_optimizer
from jax_mdlm.training.state import abstract_state
from jax_mdlm.training.step import fit_batch, make_train_step

# LLaDA's published ids: without a tokenizer the numbers matter to nobody, only that there are some.
_PUBLISHED = {"mask": 126336, "slack": 126084, "pad": 126081, "eos": 126081, "terminator": 126348}
_TRAINED = {"mask": MASK, "slack": SLACK, "pad": EOS, "eos": EOS, "terminator": TERMINATOR}
_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_TOO_LARGE = (
    re.compile(r"Used ([\d.]+)([BKMGT]) of [\d.]+[BKMGT] hbm"),
    re.compile(r"\(([\d.]+)([BKMGT])\) exceeds available HBM"),
)


@dataclasses.dataclass(frozen=True)
class Argument:
    """One array that the program takes.

    Attributes:
      part: `parameters`, `optimizer`, `batch`, ...
      path: Its place there, e.g. `blocks/q_proj`.
      dtype: Of its elements.
      shape: Whole.
      shard: What a chip holds.
      itemsize: Bytes of an element; a half of int4.
    """

    part: str
    path: str
    dtype: str
    shape: tuple[int, ...]
    shard: tuple[int, ...]
    itemsize: float

    @property
    def bytes(self) -> int:
        """Of the shard."""
        return int(math.prod(self.shard) * self.itemsize)


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A program before it is compiled.

    Attributes:
      lowered: For the devices of `layout`.
      layout: Mesh and rules.
      arguments: What it takes.
      tokens: Slots that it works through: those of the batch, or those that it decodes.
      turns: Of its loops that data ends, at most.
    """

    lowered: Any
    layout: Layout
    arguments: list[Argument]
    tokens: int
    turns: Turns = Turns()


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes per chip, as the compiler gives them.

    Attributes:
      peak: Most that is held at once.
      temporaries: Of that, what is neither argument nor result: activations, gradients, buffers.
      text: The compiled program; "" where it did not fit.
    """

    peak: int
    temporaries: int
    text: str


def train_step(config: Config, devices: Sequence[Any]) -> Lowered:
    """The step of `train` with this config.

    Raises:
      ConfigError: mesh, batch or vocabulary cannot be used.
    """
    layout = make_layout(config.mesh, devices)
    config = fit_batch(config, layout)
    ids = special_ids(config)
    if config.train.steps == 0:
        # From epochs: known when the data is. The schedule's length is a constant of the program.
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=1000))
    optimizer = make_optimizer(config, ids)
    state = abstract_state(config, optimizer, layout)
    batch = abstract_batch(config, layout)
    parts = {
        "parameters": state.params,
        "frozen": state.frozen,
        "optimizer": state.opt_state,
        "batch": batch,
    }
    return Lowered(
        make_train_step(config, optimizer, ids, layout).lower(state, batch),
        layout,
        _arguments(parts),
        config.train.batch_size * config.data.length,
    )


def sampler(config: Config, devices: Sequence[Any]) -> Lowered:
    """The sampler of `sample` with this config, prompts as long as the canvas leaves room.

    Raises:
      ConfigError: mesh or options cannot be used.
    """
    layout = make_layout(config.mesh, devices)
    options = options_from(config.sample, config.objective.collapse, special_ids(config))
    limit = options.region(0).limit
    prompt_slots = config.data.prompt_slots or config.model.max_length - limit
    if prompt_slots < 1 or prompt_slots + limit > config.model.max_length:
        raise ConfigError(
            f"sample.length (or sample.limit) must leave room for a prompt in model.max_length="
            f"{config.model.max_length}, got {limit}; lower it or data.prompt_slots"
        )
    rows = config.sample.batch_size
    form = model.Form.of(config.sample)
    lowered = lower_sampler(
        config.model, options, layout, form=form, prompt_slots=prompt_slots, rows=rows
    )
    parts = {"parameters": model.abstract_prepared(config.model, form, layout)}
    region = options.region(prompt_slots)
    calls, blocks = max_calls(options, region), limit // options.settings.block_length
    turns = Turns(calls)
    if options.settings.cache != "none":
        # One call on the whole canvas, then the block's others (or those until the next refresh).
        parts_per_block = (
            math.ceil(calls / blocks / options.settings.refresh) if options.settings.refresh else 1
        )
        runs = blocks * parts_per_block
        turns = Turns(runs, (1, math.ceil(calls / runs) - 1))
    return Lowered(lowered, layout, _arguments(parts), rows * limit, turns)


def compile_job(job: Lowered) -> Memory:
    """Compiles; a program that the compiler refuses for its size is an answer too.

    Raises:
      ConfigError: the compiler refuses it for another reason.
    """
    try:
        compiled = job.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        held = sum(argument.bytes for argument in job.arguments)
        for pattern in _TOO_LARGE:
            if found := pattern.search(str(error)):
                peak = round(float(found[1]) * _UNITS[found[2]])
                return Memory(peak, max(peak - held, 0), "")
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"the TPU compiler refuses this program: {reason}; try another mesh or shape"
        ) from error
    memory = compiled.memory_analysis()
    # Not arguments + temporaries: those are summed over the chip's memories, its VMEM too.
    peak = memory.peak_memory_in_bytes
    return Memory(peak, peak - memory.argument_size_in_bytes, compiled.as_text())


def abstract_batch(config: Config, layout: Layout) -> Batch:
    """A batch of `train.batch_size` rows in its place; allocates nothing."""
    rows = config.train.batch_size

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=layout.rows)

    return Batch(
        tokens=array(jnp.int32, config.data.length),
        response=array(jnp.bool_, config.data.length),
        valid=array(jnp.bool_, config.data.length),
        labels=array(jnp.int32, config.data.max_labels),
        label_count=array(jnp.int32),
    )


def special_ids(config: Config) -> SpecialIds:
    """Ids of the config, else LLaDA's, or those of a vocabulary that is trained here.

    Raises:
      ConfigError: the vocabulary's size is not known, or too small for them.
    """
    size, tokenizer = config.model.vocab_size, config.data.tokenizer
    if size == 0:
        raise ConfigError(
            "model.vocab_size must be known to plan, got 0 (from the tokenizer); "
            "set --config.model.vocab_size"
        )
    if tokenizer.kind == "huggingface":
        ids = dict(_PUBLISHED)
    else:
        ids = {role: TRAINED_TOKENS.index(token) for role, token in _TRAINED.items()}
    for role in ids:
        chosen = getattr(tokenizer, f"{role}_id")
        ids[role] = chosen if chosen != -1 else ids[role]
        if ids[role] >= size:
            raise ConfigError(
                f"model.vocab_size must be above the id of {role}, {ids[role]}, got {size}; "
                f"raise it or set --config.data.tokenizer.{role}_id"
            )
    return SpecialIds(
        mask=ids["mask"],
        slack=ids["slack"],
        pad=ids["pad"],
        eos=ids["eos"],
        terminator=ids["terminator"],
    )


def _arguments(parts: dict[str, Any]) -> list[Argument]:
    found = []
    for part, tree in parts.items():
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            shard = leaf.sharding.shard_shape(leaf.shape)
            size = jax.dtypes.itemsize_bits(leaf.dtype) / 8
            found.append(Argument(part, name, str(leaf.dtype), leaf.shape, shard, size))
    return found
