"""What a task asks of a generation, as options of the sampler.

Tasks of lm-evaluation-harness carry `generation_kwargs`, written for models that append token after
token. Enters: such a mapping. Leaves: `SampleOptions`, the strings that end an answer, and how many
tokens it may have. What a masked-diffusion sampler has no counterpart for is an error. The canvas
is a setting, not a bound: a longer one changes the answer, and a task's `max_gen_toks` decides it
only where no flag or preset does.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jax_mdlm.config import ConfigError
from jax_mdlm.sampling import SampleOptions

# Names of one thing, in the order in which lm-eval prefers them.
_MOST_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_UNDERSTOOD = ("until", *_MOST_TOKENS, "do_sample", "temperature", "top_k", "top_p")
# Has no counterpart here, but at this value it asks for nothing.
_NEUTRAL = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1,
    "length_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "no_repeat_ngram_size": 0,
    "min_p": 0,
}


@dataclasses.dataclass(frozen=True)
class DecodingPlan:
    """How one request is answered.

    Attributes:
      options: How its canvas is decoded.
      until: The answer ends before the first of these strings; they are no part of it.
      limit: Tokens of the answer at most; None = as many as the canvas holds.
    """

    options: SampleOptions
    until: tuple[str, ...]
    limit: int | None = None


def plan(
    options: SampleOptions, wishes: Mapping[str, Any], *, fixed: frozenset[str], origin: str
) -> DecodingPlan:
    """Reads the generation settings of a request.

    The length of a canvas is a setting of a masked-diffusion model, not a bound that the model may
    stop below at no cost. So a task's `max_gen_toks` decides only where nobody chose a length.
    The canvas then has that many slots, in whole blocks, with as many calls a slot as `options`
    has; where it may grow (`sample.limit`), it grows to there.

    `do_sample: false` is temperature 0; `do_sample: true` without a temperature is 1, as in
    transformers. At temperature 0 `top_k` and `top_p` choose nothing and are left out.

    Args:
      options: The run's.
      wishes: `generation_kwargs` of the task.
      fixed: Fields of the `sample` section that were chosen, by flags or a preset: they win.
      origin: The task, for messages.

    Raises:
      ConfigError: a setting that the sampler does not have, or a value that cannot be.
    """
    _refuse(wishes, origin)
    until = wishes.get("until") or ()
    until = (until,) if isinstance(until, str) else tuple(until)
    options = _drawn(options, wishes, fixed, origin)
    named = [name for name in _MOST_TOKENS if wishes.get(name) is not None]
    if not named or "length" in fixed:
        return DecodingPlan(options, until)
    most = _number(wishes[named[0]], named[0], origin, least=1, whole=True)
    return DecodingPlan(_sized(options, int(most)), until, int(most))


def cut(text: str, until: tuple[str, ...]) -> str:
    """`text` before the first of `until` that it holds."""
    ends = [text.find(stop) for stop in until if stop]
    return text[: min((end for end in ends if end >= 0), default=len(text))]


def _refuse(wishes: Mapping[str, Any], origin: str) -> None:
    for name, value in wishes.items():
        if name in _UNDERSTOOD or value is None or value == _NEUTRAL.get(name):
            continue
        if name in _NEUTRAL:
            reason = f"which a masked-diffusion sampler cannot do; only {_NEUTRAL[name]} is taken"
        else:
            reason = f"which is not known here; known are {', '.join(_UNDERSTOOD)}"
        raise ConfigError(
            f"{origin}: generation_kwargs has {name}={value!r}, {reason}; take it out of the task"
        )


def _drawn(
    options: SampleOptions, wishes: Mapping[str, Any], fixed: frozenset[str], origin: str
) -> SampleOptions:
    """With the task's temperature, `top_k` and `top_p`."""
    changes: dict[str, Any] = {}
    draws, temperature = wishes.get("do_sample"), wishes.get("temperature")
    if draws is False:
        temperature = 0.0
    elif draws and temperature is None:
        temperature = 1.0
    if temperature is not None and "temperature" not in fixed:
        changes["temperature"] = _number(temperature, "temperature", origin)
    if changes.get("temperature", options.settings.temperature) == 0:
        return options.with_settings(**changes, top_k=0, top_p=1.0)
    top_k, top_p = wishes.get("top_k"), wishes.get("top_p")
    if top_k is not None and "top_k" not in fixed:  # -1 is how some say "all"
        changes["top_k"] = max(0, int(_number(top_k, "top_k", origin, least=-1, whole=True)))
    if top_p is not None and "top_p" not in fixed:
        changes["top_p"] = _number(top_p, "top_p", origin)
    return options.with_settings(**changes)


def _sized(options: SampleOptions, most: int) -> SampleOptions:
    """A canvas for `most` tokens, in whole blocks; calls a slot stay as they are."""
    old, width = options.settings, options.settings.block_length
    slots = -(-most // width) * width
    length = min(old.length, slots) if old.limit else slots
    steps = max(length // width, -(-old.steps * length // old.length))
    return options.with_settings(length=length, steps=steps, limit=slots if old.limit else 0)


def _number(value: Any, name: str, origin: str, *, least: float = 0, whole: bool = False) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not least <= number < math.inf or (whole and number != int(number)):
        kind = "whole number" if whole else "number"
        raise ConfigError(
            f"{origin}: {name} of generation_kwargs must be a {kind} of at least {least}, got "
            f"{value!r}; correct the task"
        )
    return number
