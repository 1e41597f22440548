"""Every setting of a run.

A file in `configs/` returns one `Config`; `command.py` applies `--config.section.field=value` to it
and calls `validate()` once. Everything behind that border receives finished values.
"""

from jax_mdlm.config.captures import profile_steps
from jax_mdlm.config.checks import check_sample, validate
from jax_mdlm.config.record import differences, from_json, to_json
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
    TokenizerConfig,
    TrainConfig,
)

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
    "TokenizerConfig",
    "TrainConfig",
    "check_sample",
    "differences",
    "from_json",
    "profile_steps",
    "to_json",
    "validate",
]
