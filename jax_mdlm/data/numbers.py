"""Numbers with repeated digits and trailing zeros: copied, joined, multiplied, added.

Text in which equal neighbours matter: under the collapse map `merge` a "100" that is decoded
without slack between its zeros is read as "10". The rows are generated, the same on every machine
and in every run (only `random.random()` of a fixed seed is used, whose sequence Python promises);
nothing is downloaded or written. `evaluation/repeats` scores the answers.
"""

import hashlib
import random
from collections.abc import Callable
from typing import NamedTuple

from jax_mdlm.config import ConfigError

PROMPT = 13  # characters of the longest prompt
RESPONSE = 15  # characters of the longest response
VALIDATION_ROWS = 1000
TEST_ROWS = 2000

_SEED = 0
_ROWS = {"copy": 14_000, "join": 8_000, "product": 4_500, "sum": 4_500}  # distinct prompts
_CHAT = {
    "copy": "Repeat this number and write nothing else: {}",
    "join": "Write the digits {} without the space between them and write nothing else.",
    "product": "Complete this equation and write only the whole equation: {}=",
    "sum": "Complete this equation and write only the whole equation: {}=",
}


class Number(NamedTuple):
    """One row.

    Attributes:
      kind: "copy", "join", "product" or "sum".
      prompt: "copy 1100720", "join 31 00", "25*1000", "7000+40".
      response: "1100720", "3100", "25*1000=25000", "7000+40=7040".
    """

    kind: str
    prompt: str
    response: str

    @property
    def chat_prompt(self) -> str:
        """The same task in words, for a model that was not trained on these rows."""
        return _CHAT[self.kind].format(self.prompt.removeprefix(f"{self.kind} "))


def load_numbers(split: str, flag: str = "the split") -> list[Number]:
    """The rows of a split: 28,000 in train, 1,000 in validation, 2,000 in test.

    No prompt is in two splits: a prompt's SHA-256 decides. 60% of the responses have equal
    neighbours, 25% end with two zeros or more.

    Args:
      split: "train", "validation" or "test".
      flag: What an error names as the setting.

    Raises:
      ConfigError: no such split.
    """
    borders = {
        "train": slice(VALIDATION_ROWS + TEST_ROWS, None),
        "validation": slice(VALIDATION_ROWS),
        "test": slice(VALIDATION_ROWS, VALIDATION_ROWS + TEST_ROWS),
    }
    if split not in borders:
        raise ConfigError(
            f"{flag} must be a split of numbers, one of {', '.join(borders)}, got {split}"
        )
    # Of the generator only `random()` is used: Python promises its sequence for a seed, not that
    # of `choice` or `randrange`.
    draw = random.Random(_SEED).random
    rows: dict[str, Number] = {}
    for kind, count in _ROWS.items():
        found = 0
        while found < count:
            row = Number(kind, *_KINDS[kind](draw))
            found += row.prompt not in rows
            rows[row.prompt] = row
    ranked = sorted(rows.values(), key=lambda row: hashlib.sha256(row.prompt.encode()).digest())
    return ranked[borders[split]]


_Draw = Callable[[], float]  # uniform in [0, 1)


def _copy(draw: _Draw) -> tuple[str, str]:
    """1 to 8 digits; half of them plain, half with runs, of these half with zeros at the end."""
    length = 1 + _below(draw, 8)
    if draw() < 0.5:
        number = _digits(draw, length, repeat=0.0)
    else:
        zeros = _below(draw, min(length, 5)) if draw() < 0.5 else 0
        number = _digits(draw, length - zeros, repeat=0.4) + "0" * zeros
    return f"copy {number}", number


def _join(draw: _Draw) -> tuple[str, str]:
    """1 to 4 digits, then 1 to 3; half of the second ones zeros."""
    first = _digits(draw, 1 + _below(draw, 4), repeat=0.25)
    length = 1 + _below(draw, 3)
    second = "0" * length if draw() < 0.5 else _digits(draw, length, repeat=0.25)
    return f"join {first} {second}", first + second


def _product(draw: _Draw) -> tuple[str, str]:
    """A number below 10,000 times 10, 100 or 1000; the product has at most six digits."""
    mantissa = 1 + _below(draw, 999)
    number = mantissa * 10 ** _below(draw, 2)
    largest = min(3, 6 - len(str(number)))
    factor = 10 ** (1 + _below(draw, largest))
    return f"{number}*{factor}", f"{number}*{factor}={number * factor}"


def _sum(draw: _Draw) -> tuple[str, str]:
    """A digit that takes the place of a zero: "7000+40=7040"; nothing is carried."""
    zeros = 1 + _below(draw, 3)
    first = (1 + _below(draw, 99)) * 10**zeros
    second = (1 + _below(draw, 9)) * 10 ** _below(draw, zeros)
    return f"{first}+{second}", f"{first}+{second}={first + second}"


_KINDS: dict[str, Callable[[_Draw], tuple[str, str]]] = {
    "copy": _copy,
    "join": _join,
    "product": _product,
    "sum": _sum,
}


def _below(draw: _Draw, count: int) -> int:
    return int(draw() * count)


def _digits(draw: _Draw, length: int, repeat: float) -> str:
    """Digits, the first not 0; each equals the one before it with probability `repeat`."""
    digits = [1 + _below(draw, 9)]
    while len(digits) < length:
        again = draw() < repeat
        digits.append(digits[-1] if again else (digits[-1] + 1 + _below(draw, 9)) % 10)
    return "".join(map(str, digits))
