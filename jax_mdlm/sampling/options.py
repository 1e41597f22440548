"""A decoding as one static value, and the one place where settings become it.

It holds the `sample` section itself. What settings must hold together is asked in `config/checks`,
what a strategy needs of them by the strategy.
"""

import dataclasses
from typing import Any

from jax_mdlm.config import Collapse, SampleConfig, check_sample
from jax_mdlm.containers import Region, SpecialIds
from jax_mdlm.sampling.commit import Strategy, strategy_of

# Settings that no program reads: the strategy says the first three, callers read the others. At
# their defaults, two decodings that differ in nothing else are one program.
_SAID_ELSEWHERE = (
    *("strategy", "threshold", "factor"),
    *("weights", "weights_group", "batch_size", "seed"),
)


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """How a canvas is decoded; hashable, static under `jit`: another value is another program.

    Attributes:
      settings: The `sample` section as `options_from` leaves it: `strategy`, `threshold`, `factor`,
        `weights`, `weights_group`, `batch_size` and `seed` stand at their defaults and say nothing.
      ids: Special tokens.
      collapse: `merge` merges in the loop, after each commit; both apply to the final text. The map
        that the model was trained with.
      strategy: Which slots are fixed by a call.
      trace: Whether the final state has a `Trace`.
    """

    settings: SampleConfig
    ids: SpecialIds
    collapse: Collapse
    strategy: Strategy
    trace: bool = False

    def __post_init__(self) -> None:
        """Refuses what cannot work, before anything is compiled."""
        check_sample(self.settings)
        self.strategy.refuse(self.settings)

    @property
    def num_blocks(self) -> int:
        """Blocks in `length`."""
        return self.settings.length // self.settings.block_length

    def region(self, start: int) -> Region:
        """The part of a canvas that is decoded after prompts of `start` columns."""
        length = self.settings.length
        return Region(start, length, max(self.settings.limit, length))

    def with_settings(self, **changes: Any) -> "SampleOptions":
        """The same with other values in `settings`."""
        settings = dataclasses.replace(self.settings, **changes)
        return dataclasses.replace(self, settings=settings)


def options_from(
    config: SampleConfig,
    collapse: Collapse,
    ids: SpecialIds,
    *,
    strategy: Strategy | None = None,
    trace: bool = False,
) -> SampleOptions:
    """Makes the options of a run from its settings.

    Args:
      config: The `sample` section.
      collapse: From `objective.collapse`; the map that the model was trained with.
      ids: Special tokens.
      strategy: Which slots are fixed by a call, instead of what `config` names.
      trace: Whether the final state has a `Trace`.

    Returns:
      Options for `sample` and `generate`.

    Raises:
      ConfigError: settings that cannot work together.

    Examples:
      >>> from jax_mdlm.config import SampleConfig
      >>> from jax_mdlm.containers import SpecialIds
      >>> ids = SpecialIds(mask=1, slack=2, pad=0, eos=0, terminator=3)
      >>> options = options_from(SampleConfig(length=64, steps=16), "slack_only", ids)
      >>> options.strategy, options.num_blocks
      (ByConfidence(), 2)
    """
    check_sample(config)
    default = SampleConfig()
    settings = dataclasses.replace(
        config, **{name: getattr(default, name) for name in _SAID_ELSEWHERE}
    )
    strategy = strategy_of(config) if strategy is None else strategy
    return SampleOptions(settings, ids, collapse, strategy, trace)
