"""The settings of a generation as one static value, and the one place where config becomes it."""

import dataclasses

from jax_mdlm.config import Collapse, ConfigError, SampleConfig
from jax_mdlm.containers import SpecialIds
from jax_mdlm.sampling.commit import (
    AboveThreshold,
    AtRandom,
    ByConfidence,
    ByEntropy,
    ByMargin,
    Strategy,
)

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
        A threshold strategy does not use it.
      ids: Special tokens.
      collapse: `merge` merges in the loop, after each commit; both apply to the final text.
      strategy: Which slots are fixed by a call.
      temperature: Of the Gumbel noise; 0 = argmax.
      early_stop: A row ends at its terminator; the masks behind it become EOS at once.
    """

    length: int
    block_length: int
    steps: int
    ids: SpecialIds
    collapse: Collapse = "merge"
    strategy: Strategy = ByConfidence()
    temperature: float = 0.0
    early_stop: bool = False

    def __post_init__(self) -> None:
        """Refuses counts that do not divide, before anything is compiled."""
        if self.block_length < 1 or self.length < 1 or self.length % self.block_length:
            raise ConfigError(
                f"sample.block_length must be positive and divide sample.length={self.length}, "
                f"got {self.block_length}"
            )
        if self.steps < self.num_blocks:
            raise ConfigError(
                f"sample.steps must give each of the {self.num_blocks} blocks a step, got "
                f"{self.steps}; raise sample.steps or sample.block_length"
            )
        if self.temperature < 0:
            raise ConfigError(f"sample.temperature must be 0 or more, got {self.temperature}")

    @property
    def num_blocks(self) -> int:
        """Blocks in a response."""
        return self.length // self.block_length


def options_from(config: SampleConfig, collapse: Collapse, ids: SpecialIds) -> SampleOptions:
    """Makes the options of a run from its settings.

    Args:
      config: The `sample` section.
      collapse: From `objective.collapse`; the map that the model was trained with.
      ids: Special tokens.

    Returns:
      Options for `sample` and `generate`.

    Raises:
      ConfigError: settings that cannot work together.
    """
    strategy = _STRATEGIES[config.strategy]
    if config.threshold > 0:
        strategy = AboveThreshold(config.threshold, order=strategy)
    return SampleOptions(
        length=config.length,
        block_length=config.block_length,
        steps=config.steps,
        ids=ids,
        collapse=collapse,
        strategy=strategy,
        temperature=config.temperature,
        early_stop=config.early_stop,
    )
