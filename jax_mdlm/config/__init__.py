"""Every setting of a run.

A file in `configs/` returns one `Config`; `command.py` applies `--config.section.field=value` to it
and calls `validate()` once. Everything after that border receives finished values.
"""

from jax_mdlm.config.checks import check_sample, profile_steps, validate
from jax_mdlm.config.sections import (
    Collapse,
    Config,
    ConfigError,
    DataConfig,
    InitConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    SampleConfig,
    SpecialInText,
    TokenizerConfig,
    TrainConfig,
    first_line,
)
from jax_mdlm.config.text import config_to_json, differences, from_json

__all__ = [
    "Collapse",
    "Config",
    "ConfigError",
    "DataConfig",
    "InitConfig",
    "LoraConfig",
    "MeshConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "SampleConfig",
    "SpecialInText",
    "TokenizerConfig",
    "TrainConfig",
    "check_sample",
    "config_to_json",
    "differences",
    "first_line",
    "from_json",
    "profile_steps",
    "validate",
]
