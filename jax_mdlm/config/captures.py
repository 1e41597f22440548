"""Ranges of steps, as `profile` is written."""

import re

from jax_mdlm.config.sections import ConfigError


def profile_steps(text: str) -> range:
    """The updates that are profiled, counted from 1 as in the log.

    Args:
      text: `FIRST:LAST` (both included), `FIRST+COUNT`, or nothing.

    Raises:
      ConfigError: anything else.
    """
    if not text:
        return range(0)
    found = re.fullmatch(r"(\d+)([:+])(\d+)", text)
    if found:
        first, number = int(found[1]), int(found[3])
        steps = range(first, first + number if found[2] == "+" else number + 1)
        if first >= 1 and steps:
            return steps
    raise ConfigError(
        f"profile must read FIRST:LAST or FIRST+COUNT, in steps from 1 on, got {text!r}; write "
        "e.g. 10:12 or 10+3"
    )
