"""The settings of a generation as one static value, and the one place where config becomes it."""

import dataclasses
from typing import Literal

from jax_mdlm.config import Collapse, ConfigError, SampleConfig
from jax_mdlm.containers import Region, SpecialIds
from jax_mdlm.sampling.commit import (
    AboveThreshold,
    AtRandom,
    ByConfidence,
    ByEntropy,
    ByFactor,
    ByMargin,
    Quota,
    Strategy,
)
from jax_mdlm.sampling.interventions import Boundary, Intervention

_STRATEGIES: dict[str, Strategy] = {
    "confidence": ByConfidence(),
    "entropy": ByEntropy(),
    "margin": ByMargin(),
    "random": AtRandom(),
}


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """How a canvas is decoded; hashable, static under `jit`: another value is another program.

    Attributes:
      length: New slots per prompt.
      block_length: Slots that are decoded before the next block starts; divides `length`.
      steps: Model calls at most, split evenly over the blocks, the remainder to the first ones.
        A threshold or a factor does not use it.
      ids: Special tokens.
      collapse: `merge` merges in the loop, after each commit; both apply to the final text.
      strategy: Which slots are fixed by a call.
      temperature: Of the Gumbel noise; 0 = argmax.
      early_stop: Calls that cannot matter are spared. A row ends at its terminator: the masks
        behind it become EOS at once. With a cache and a threshold or factor, a block ends with the
        call that fills it; the published code makes one more, and so does this one without.
      limit: Slots per prompt at most: a row without a terminator gets another block when its last
        one is over; 0 = `length`.
      top_k: The draw is among so many tokens; 0 = all.
      top_p: The draw is among the most probable tokens of this mass; 1 = all.
      guidance: Scale of classifier-free guidance; 0 = none.
      suppress_eos: EOS is never offered.
      defer_eos: EOS and terminator are committed when nothing else is left in the block.
      remask: A call may turn committed slots of its block into masks again.
      cache: Keys and values that the later calls of a block take from its first one: `none`, of the
        slots before the block (`prefix`), or of all slots outside it (`dual`).
      refresh: Calls of a block after which the cache is made anew; 0 = never.
      trace: Whether the final state has a `Trace`.
      intervention: Disturbs the generation on purpose (`interventions`); None = no.
    """

    length: int
    block_length: int
    steps: int
    ids: SpecialIds
    collapse: Collapse = "merge"
    strategy: Strategy = ByConfidence()
    temperature: float = 0.0
    early_stop: bool = False
    limit: int = 0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 0.0
    suppress_eos: bool = False
    defer_eos: bool = False
    remask: bool = False
    cache: Literal["none", "prefix", "dual"] = "none"
    refresh: int = 0
    trace: bool = False
    intervention: Intervention | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot work, before anything is compiled."""

        def require(holds: bool, message: str) -> None:
            if not holds:
                raise ConfigError(message)

        width = self.block_length
        require(
            width >= 1 and self.length >= 1 and self.length % width == 0,
            f"sample.block_length must be positive and divide sample.length={self.length}, "
            f"got {width}",
        )
        require(
            self.limit == 0 or (self.limit >= self.length and self.limit % width == 0),
            f"sample.limit must be 0 or a multiple of sample.block_length={width} and at least "
            f"sample.length={self.length}, got {self.limit}",
        )
        require(
            self.steps >= self.num_blocks,
            f"sample.steps must give each of the {self.num_blocks} blocks a step, got "
            f"{self.steps}; raise sample.steps or sample.block_length",
        )
        require(
            self.temperature >= 0,
            f"sample.temperature must be 0 or more, got {self.temperature}",
        )
        require(self.top_k >= 0, f"sample.top_k must be 0 or more, got {self.top_k}")
        require(
            0 < self.top_p <= 1, f"sample.top_p must lie above 0 and at most at 1, got {self.top_p}"
        )
        require(
            self.temperature > 0 or (self.top_k == 0 and self.top_p == 1),
            "sample.top_k and sample.top_p choose among drawn tokens and need "
            "sample.temperature above 0, got 0; raise it, or leave them at 0 and 1",
        )
        require(self.guidance >= 0, f"sample.guidance must be 0 or more, got {self.guidance}")
        require(
            not self.remask or isinstance(self.strategy, Quota),
            "sample.remask counts what stays committed and needs a quota; set sample.threshold "
            "and sample.factor to 0, or sample.remask to false",
        )
        require(
            self.refresh >= 0 and (self.refresh == 0 or self.cache != "none"),
            f"sample.refresh must be 0 or more, and 0 without a cache, got {self.refresh} with "
            f"sample.cache={self.cache}",
        )
        require(
            not self.remask or self.intervention is None,
            "an intervention moves what was committed and sample.remask takes commits back; set "
            "sample.remask to false",
        )
        if isinstance(self.intervention, Boundary):
            share = self.intervention.share
            require(0 <= share < 1, f"the share of a boundary must lie in [0, 1), got {share}")
            require(
                not isinstance(self.strategy, Quota) or self.steps >= 2 * self.num_blocks,
                f"a shifted boundary opens a mask that a later call of the block fills: "
                f"sample.steps must give each of the {self.num_blocks} blocks two, got "
                f"{self.steps}; raise sample.steps or sample.block_length",
            )

    @property
    def num_blocks(self) -> int:
        """Blocks in `length`."""
        return self.length // self.block_length

    def region(self, start: int) -> Region:
        """The part of a canvas that is decoded behind prompts of `start` columns."""
        return Region(start, self.length, max(self.limit, self.length))


def options_from(
    config: SampleConfig, collapse: Collapse, ids: SpecialIds, *, trace: bool = False
) -> SampleOptions:
    """Makes the options of a run from its settings.

    Args:
      config: The `sample` section.
      collapse: From `objective.collapse`; the map that the model was trained with.
      ids: Special tokens.
      trace: As in `SampleOptions`.

    Returns:
      Options for `sample` and `generate`.

    Raises:
      ConfigError: settings that cannot work together.
    """
    strategy = _STRATEGIES[config.strategy]
    if config.threshold > 0 and config.factor > 0:
        raise ConfigError(
            f"sample.threshold={config.threshold} and sample.factor={config.factor} are two rules "
            "for one choice; set one of them to 0"
        )
    if config.threshold > 0:
        strategy = AboveThreshold(config.threshold, order=strategy)
    elif config.factor > 0:
        strategy = ByFactor(config.factor, order=strategy)
    return SampleOptions(
        length=config.length,
        block_length=config.block_length,
        steps=config.steps,
        ids=ids,
        collapse=collapse,
        strategy=strategy,
        temperature=config.temperature,
        early_stop=config.early_stop,
        limit=config.limit,
        top_k=config.top_k,
        top_p=config.top_p,
        guidance=config.guidance,
        suppress_eos=config.suppress_eos,
        defer_eos=config.defer_eos,
        remask=config.remask,
        cache=config.cache,
        refresh=config.refresh,
        trace=trace,
    )
