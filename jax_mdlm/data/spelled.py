"""Strings of special tokens that a user writes: text, refused, or the tokens that they name.

`data.special_in_text` says which. Both kinds of tokenizers encode through this, and a run opens its
tokenizer with the setting: rows and prompts have no other way to ids, so that no door can forget
it. Templates write ids, which no reading changes.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence

from jax_mdlm.config import SpecialInText
from jax_mdlm.data.examples import BadRowError
from jax_mdlm.data.special import shorten

IN_TEXT = "a special token in the text"  # a kind of bad rows


@dataclasses.dataclass(frozen=True)
class SpelledTokens:
    """How a tokenizer reads the strings of its special tokens.

    Attributes:
      ids: String -> id, of the special tokens that a text can spell.
      mask: Id of the mask. It is never kept: a prompt ends where the first mask stands.
      reading: `data.special_in_text`.
    """

    ids: Mapping[str, int]
    mask: int
    reading: SpecialInText = "text"

    def encode_batch(
        self, texts: Sequence[str], encode: Callable[[Sequence[str]], list[list[int]]]
    ) -> list[list[int]]:
        """Ids of every text.

        Args:
          texts: What a user wrote, and what a template wrote around it.
          encode: Ids of texts in which every such string is only text.

        Raises:
          BadRowError: a text spells a special token that is refused.
          ConfigError: as `encode`.
        """
        if self.reading == "text":
            return encode(texts)
        cut = [self._cut(text) for text in texts]
        plain = [piece for pieces in cut for piece in pieces if isinstance(piece, str)]
        encoded = iter(encode(plain))
        return [
            [
                index
                for piece in pieces
                for index in (next(encoded) if isinstance(piece, str) else [piece])
            ]
            for pieces in cut
        ]

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.ids, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    def _cut(self, text: str) -> list[int | str]:
        """Text, and ids of what it spells."""
        pieces = self._pattern.split(text)  # every second one is a string of a special token
        for spelled in pieces[1::2]:
            kept = self.reading == "keep"
            if kept and self.ids[spelled] != self.mask:
                continue
            token = "mask token" if kept else "special token"
            raise BadRowError(
                f"text {shorten(text.strip())!r} must hold no {token}, got {spelled!r}; take it "
                "out or train with data.special_in_text=text",
                IN_TEXT,
            )
        return [self.ids[one] if at % 2 else one for at, one in enumerate(pieces) if one]
