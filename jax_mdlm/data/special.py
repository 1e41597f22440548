"""Special tokens: found once, by id or by string, and put into one `SpecialIds`.

And which ids no text may give, whatever it spells.
"""

import dataclasses
from collections.abc import Callable, Iterable

from jax_mdlm.config import ConfigError, TokenizerConfig
from jax_mdlm.containers import SpecialIds

START = "<|startoftext|>"
EOS = "<|endoftext|>"
HEADER_START = "<|start_header_id|>"
HEADER_END = "<|end_header_id|>"
TERMINATOR = "<|eot_id|>"
MASK = "<|mdm_mask|>"
SLACK = "<SLACK>"
# LLaDA's tokenizers do not know <SLACK>: it takes this reserved id (126084), so that embedding and
# head keep their size.
RESERVED = "<|reserved_token_0|>"

_ROLES = ("mask", "slack", "eos", "pad", "terminator")

# What a tokenizer that is trained here begins with; the order is the order of the ids.
TRAINED_TOKENS = (START, EOS, HEADER_START, HEADER_END, TERMINATOR, MASK, SLACK)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What the search for special ids needs to know of a tokenizer.

    Attributes:
      find: Token string -> id, or None where the string is not one token.
      size: Ids are below it.
      special: Ids of all tokens that the tokenizer itself marks as special.
      eos: The tokenizer's own end-of-text string, "" if it names none.
      pad: The tokenizer's own padding string, "" if it names none.
    """

    find: Callable[[str], int | None]
    size: int
    special: Iterable[int] = ()
    eos: str = ""
    pad: str = ""


def resolve_special_ids(config: TokenizerConfig, vocabulary: Vocabulary) -> SpecialIds:
    """Finds the special ids: an id of the config, else the first known string in the vocabulary.

    `pad` falls back to `eos`, as in LLaDA. `terminator` falls back to `eos` where `<|eot_id|>` is
    not one token (LLaDA's Base tokenizer): a response then ends with end of text.

    Raises:
      ConfigError: a role has no token, an id lies outside of the vocabulary, or two roles that must
        differ share an id; the text names the flag to set.
    """

    def search(role: str, *strings: str) -> int | None:
        chosen = getattr(config, f"{role}_id")
        if chosen != -1:
            if not 0 <= chosen < vocabulary.size:
                raise ConfigError(
                    f"data.tokenizer.{role}_id must be an id of the tokenizer, 0 to "
                    f"{vocabulary.size - 1}, got {chosen}; set --config.data.tokenizer.{role}_id"
                )
            return chosen
        found = (vocabulary.find(string) for string in strings if string)
        return next((index for index in found if index is not None), None)

    def need(role: str, *strings: str) -> int:
        found = search(role, *strings)
        if found is None:
            shown = ", ".join(string for string in strings if string)
            raise ConfigError(
                f"the tokenizer has no {role} token (looked for {shown}); set an id that is free "
                f"for it, --config.data.tokenizer.{role}_id=..."
            )
        return found

    mask = need("mask", MASK, "[MASK]", "<mask>", "<|mask|>")
    slack = need("slack", SLACK, RESERVED)
    eos = need("eos", vocabulary.eos, EOS, "</s>", "<eos>")
    pad = search("pad", vocabulary.pad, EOS, "<pad>", "[PAD]")
    terminator = search("terminator", TERMINATOR)
    ids = SpecialIds(
        mask=mask,
        slack=slack,
        pad=eos if pad is None else pad,
        eos=eos,
        terminator=eos if terminator is None else terminator,
    )
    _check_apart(ids)
    return dataclasses.replace(ids, never_merged=tuple(sorted({*vocabulary.special, *_named(ids)})))


def control_ids(
    ids: SpecialIds, find: Callable[[str], int | None], unknown: int | None
) -> frozenset[int]:
    """Ids that stand in a row only where the program or a template writes them.

    Args:
      ids: As from `resolve_special_ids`.
      find: Token string -> id, or None.
      unknown: What the tokenizer gives for text that it cannot write; it is the tokenizer's own,
        unless it has a role. None = it has no such token.
    """
    written = {index for index in map(find, TRAINED_TOKENS) if index is not None}
    return frozenset({*ids.never_merged} - {unknown} | {*_named(ids)} | written)


def refusal(ids: SpecialIds, index: int, token: str, text: str) -> ConfigError:
    """Says that a text holds an ordinary entry of the vocabulary that was given a role.

    Args:
      ids: The special ids.
      index: Of the entry.
      token: The entry as the vocabulary writes it.
      text: What was to be encoded.
    """
    role = next((role for role in _ROLES if getattr(ids, role) == index), None)
    remedy = f" or choose another id with --config.data.tokenizer.{role}_id" if role else ""
    return ConfigError(
        f"text {shorten(text.strip())!r} must hold no special token, but the tokenizer writes a "
        f"part of it as {token!r} (id {index}), the {role or 'special'} token; take that part "
        f"out{remedy}"
    )


def shorten(text: str, length: int = 40) -> str:
    """The beginning of a text, for messages."""
    return text if len(text) <= length else text[: length - 3] + "..."


def _named(ids: SpecialIds) -> tuple[int, ...]:
    return tuple(getattr(ids, role) for role in _ROLES)


def _check_apart(ids: SpecialIds) -> None:
    """Every pair of roles differs, but pad and terminator may be eos."""
    for position, first in enumerate(_ROLES):
        for second in _ROLES[position + 1 :]:
            shared = getattr(ids, first)
            both_eos = first not in ("mask", "slack") and shared == ids.eos
            if shared == getattr(ids, second) and not both_eos:
                flags = " or ".join(
                    f"--config.data.tokenizer.{role}_id=..." for role in (first, second)
                )
                raise ConfigError(
                    f"{first} and {second} must be different tokens, both have id {shared}; "
                    f"set {flags}"
                )
