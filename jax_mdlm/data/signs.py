"""How slots are shown to people: tokens in words, slack and masks by a sign."""

from collections.abc import Sequence

from jax_mdlm.data.tokenizer import Tokenizer

SLACK_SIGN = "·"
MASK_SIGN = "░"
# How vocabularies of bytes or SentencePiece write a space and a newline; blanks that take a line.
BLANKS = {"\u0120": "␣", "\u2581": "␣", "\u010a": "↵", "\n": "↵", "\r": "␍", "\t": "⇥"}
_SEEN = str.maketrans(BLANKS)


def slot_texts(slots: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """The token of each slot; slack as a dot, masks as a shade."""
    signs = {tokenizer.ids.slack: SLACK_SIGN, tokenizer.ids.mask: MASK_SIGN}
    return [signs.get(slot) or tokenizer.token(slot) for slot in slots]


def without_end(slots: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Slots up to the last one that says something: no EOS and no padding after it."""
    kept = list(slots)
    while kept and kept[-1] in (tokenizer.ids.eos, tokenizer.ids.pad):
        kept.pop()
    return kept


def visible(token: str) -> str:
    """A token of one line in which something is seen: `↵` for a newline, `␣` for a lone space."""
    return (token if token.strip(" ") else token.replace(" ", "␣")).translate(_SEEN)
