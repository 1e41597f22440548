"""How a model wants to be prompted, in `config.json` beside what the network is.

Published LLaDA has one chat template and any canvas. A model that was trained here with another
template, or with prompts of a fixed width, answers nothing sensible when it is prompted otherwise:
its export says how (`jax_mdlm_prompting`), and an import takes it over. PyTorch ignores the key.
"""

import json
from collections.abc import Mapping
from typing import Any

from jax_mdlm.config import Config, ConfigError, DataConfig, config_to_json, from_json

KEY = "jax_mdlm_prompting"
_DATA = ("template", "prompt_slots", "pretraining")
_SAMPLE = ("length", "block_length", "steps")


def describe(config: Config) -> dict[str, dict[str, Any]]:
    """What `config.json` says of a run's prompts.

    Returns:
      Fields by section, `data` and `sample`; empty for LLaDA's template, which needs no word.
    """
    data = {name: getattr(config.data, name) for name in _DATA}
    if data == {name: getattr(DataConfig(), name) for name in _DATA}:
        return {}
    return {"data": data, "sample": {name: getattr(config.sample, name) for name in _SAMPLE}}


def prompted(config: Config, settings: Mapping[str, Any], origin: str) -> Config:
    """The config of an import, with what `describe` wrote.

    Args:
      config: Without it.
      settings: The folder's `config.json`.
      origin: Its path, for errors.

    Raises:
      ConfigError: the key holds anything else.
    """
    told = settings.get(KEY)
    if told is None:
        return config
    known = {"data": set(_DATA), "sample": set(_SAMPLE)}
    if not (
        isinstance(told, dict)
        and told.keys() <= known.keys()
        and all(isinstance(told[name], dict) and told[name].keys() <= known[name] for name in told)
    ):
        raise ConfigError(
            f"{origin}: {KEY} must hold fields of data ({', '.join(_DATA)}) and of sample "
            f"({', '.join(_SAMPLE)}), got {str(told)[:200]}; correct or remove it"
        )
    whole = json.loads(config_to_json(config))
    for section, fields in told.items():
        whole[section] |= fields
    return from_json(json.dumps(whole), f"{origin}: {KEY}")
