"""Options of the sampler from keywords: settings, and what is none of them, in one list."""

import dataclasses
from typing import Any

from jax_mdlm.config import SampleConfig
from jax_mdlm.sampling import SampleOptions, options_from

_SETTINGS = {field.name for field in dataclasses.fields(SampleConfig)} - {"strategy"}


def make_options(*, ids, collapse="merge", strategy=None, trace=False, **settings) -> SampleOptions:
    """Without early stop, unless it is asked for; `strategy` is an object."""
    config = SampleConfig(**{"early_stop": False, **settings})
    return options_from(config, collapse, ids, strategy=strategy, trace=trace)


def changed(options: SampleOptions, **changes: Any) -> SampleOptions:
    """`options` with other settings, or another strategy, trace, ids or collapse."""
    settings = {name: value for name, value in changes.items() if name in _SETTINGS}
    others = {name: value for name, value in changes.items() if name not in _SETTINGS}
    settings = dataclasses.replace(options.settings, **settings)
    return dataclasses.replace(options, settings=settings, **others)
