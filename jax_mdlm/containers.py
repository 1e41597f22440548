"""What flows between the rooms, and the letters of array axes.

`B` batch · `L` canvas length, queries · `S` canvas length, keys · `U` labels (response tokens
without slack) · `V` vocabulary · `D` embed · `N` heads · `K` kv heads · `H` head_dim · `F` mlp.
Layers are scanned and have no letter. (Optax's CTC calls our L and U "T" and "N".)
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

Params = dict[str, Any]  # a plain nested dict of arrays; paths as in model/table


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens that mean something to the program; static under `jit`.

    Attributes:
      mask: The absorbing state `[MASK]`.
      slack: `<SLACK>`, the blank of CTC.
      pad: Fills slots that are not valid.
      eos: End of text; fills the supervised end padding.
      terminator: Closes a response (LLaDA: `<|eot_id|>`; may equal `eos`).
      never_merged: Special tokens that the merge step leaves alone (bos, headers, the above).
    """

    mask: int
    slack: int
    pad: int
    eos: int
    terminator: int
    never_merged: tuple[int, ...] = ()

    @property
    def special(self) -> tuple[int, ...]:
        """Every id named here, once, sorted: tokens that are no text and are never merged."""
        named = (self.mask, self.slack, self.pad, self.eos, self.terminator, *self.never_merged)
        return tuple(sorted(set(named)))


@dataclasses.dataclass(frozen=True)
class ParamRow:
    """One line of the parameter table; drives init shapes, sharding and conversion.

    Attributes:
      path: Keys in the nested dict, e.g. ("blocks", "q_proj").
      axes: Logical axis names, one per array axis, e.g. ("layers", "embed", "heads", "head_dim").
      torch_name: Name in the published checkpoint; `{layer}` stands for the block's number.
      num_inputs: Input axes of a matrix, counted after "layers" (0: a vector or a lookup table).
    """

    path: tuple[str, ...]
    axes: tuple[str, ...]
    torch_name: str
    num_inputs: int

    @property
    def stacked(self) -> bool:
        """Whether its array has a "layers" axis, the first."""
        return self.axes[0] == "layers"

    @property
    def is_vector(self) -> bool:
        """Whether it has one axis in each layer: a norm's."""
        return len(self.axes) == 1 + self.stacked


@flax.struct.dataclass
class Batch:
    """Clean rows: prompt, response, end padding, then slots that are not valid.

    The response is contiguous: `labels` stand at the first `label_count` response slots, the
    remaining response slots are end padding (EOS).

    Attributes:
      tokens: int32 [B, L].
      response: bool [B, L]; slots to learn, end padding included.
      valid: bool [B, L]; slots that exist (attended, in the loss where `response`).
      labels: int32 [B, U]; the response without slack, padded with `pad` at the right.
      label_count: int32 [B]; 0 for a row that only fills up a batch.
    """

    tokens: jax.Array
    response: jax.Array
    valid: jax.Array
    labels: jax.Array
    label_count: jax.Array


@flax.struct.dataclass
class Corruption:
    """What the step makes of a `Batch`: slack inserted, noise drawn.

    Attributes:
      inputs: int32 [B, L]; targets with masks, what the denoiser reads.
      targets: int32 [B, L]; the slack-augmented row.
      masked: bool [B, L]; slots that are masked in `inputs`.
      response: bool [B, L]; supervised slots of the augmented row, end padding included.
      valid: bool [B, L]; slots of the augmented row that exist.
      frames: bool [B, L]; response slots up to the terminator: where CTC aligns. Contiguous.
      labels: int32 [B, U]; the batch's.
      label_count: int32 [B]; the batch's.
      level: float32 [B]; noise level t in (0, 1].
      weight: float32 [B]; 1 / p, the weight of a masked slot in CE.
    """

    inputs: jax.Array
    targets: jax.Array
    masked: jax.Array
    response: jax.Array
    valid: jax.Array
    frames: jax.Array
    labels: jax.Array
    label_count: jax.Array
    level: jax.Array
    weight: jax.Array


@flax.struct.dataclass
class TrainState:
    """What a run carries from step to step; donated.

    Attributes:
      step: int32 []; updates made.
      params: what is trained: master weights, or with LoRA the adapters.
      opt_state: optax state.
      key: typed PRNG key []; step s draws from `fold_in(key, s)`.
      frozen: with LoRA the parameters beside the adapters, which no step changes; else None.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    key: jax.Array
    frozen: Params | None = None


@dataclasses.dataclass(frozen=True)
class Region:
    """The part of a canvas that is decoded; static under `jit`.

    Attributes:
      start: Its first column; blocks are counted from here.
      length: Slots that are there from the beginning.
      limit: Slots at most; blocks after `length` are appended when they are needed.
    """

    start: int
    length: int
    limit: int

    def of(self, slots: jax.Array) -> jax.Array:
        """The region's columns of `slots` [B, L]."""
        return slots[:, self.start : self.start + self.limit]


@flax.struct.dataclass
class Trace:
    """What every call did, for viewers that replay a generation.

    Attributes:
      frames: int32 [C + 1, B, R]; the region before the first call and after each. C: the most
        calls there can be; rows after the last call are 0.
      confidence: float32 [C, B, R]; probability of the token offered at each slot that was masked
        before the call and in its block; 0 elsewhere.
    """

    frames: jax.Array
    confidence: jax.Array


@flax.struct.dataclass
class SampleState:
    """The carry of the sampler's loop.

    Attributes:
      step: int32 []; model calls made.
      block: int32 []; the block being decoded.
      block_step: int32 []; model calls made in this block.
      canvas: int32 [B, L]; left padding, prompt, then the slots to fill.
      given: bool [B, L]; slots that the caller gave: prompt, and text around gaps.
      committed_at: int32 [B, L]; the call that fixed the slot, from 0; -1 = given or still masked.
      done: bool [B]; rows that have no mask left.
      key: typed PRNG keys [B]; one a row, so that a row's draws do not depend on its batch.
      region: What is decoded; static.
      score: float32 [B, L], the strategy's score of each committed slot; None without remasking.
      cache: what `Denoise.full` left for later calls of the block; None without a cache.
      trace: `Trace`; None where it was not asked for.
      own: what the strategy keeps from call to call (`Strategy.begin`); None: nothing.
    """

    step: jax.Array
    block: jax.Array
    block_step: jax.Array
    canvas: jax.Array
    given: jax.Array
    committed_at: jax.Array
    done: jax.Array
    key: jax.Array
    region: Region = flax.struct.field(pytree_node=False)
    score: jax.Array | None = None
    cache: Any = None
    trace: Trace | None = None
    own: Any = None


@flax.struct.dataclass
class Mean:
    """A mean whose parts are added across microbatches and hosts, and divided once.

    Attributes:
      total: float32 []; the sum.
      count: float32 []; what it is divided by.
    """

    total: jax.Array
    count: jax.Array

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> jax.Array:
        """total / count; 0 where nothing was counted."""
        return jnp.where(self.count > 0, self.total / jnp.maximum(self.count, 1e-30), 0.0)

    @classmethod
    def of(cls, values: jax.Array, where: jax.Array | None = None) -> "Mean":
        """The mean of `values` [...], only `where` (bool, same shape) is true."""
        keep = jnp.ones_like(values, bool) if where is None else where
        total = jnp.sum(jnp.where(keep, values, 0), dtype=jnp.float32)
        return cls(total, jnp.sum(keep, dtype=jnp.float32))
