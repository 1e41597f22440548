"""Special tokens: found once, by id or by string, and put into one `SpecialIds`."""

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
    roles = (ids.mask, ids.slack, ids.pad, ids.eos, ids.terminator)
    return dataclasses.replace(ids, never_merged=tuple(sorted({*vocabulary.special, *roles})))


def _check_apart(ids: SpecialIds) -> None:
    """Every pair of roles differs, but pad and terminator may be eos."""
    roles = ("mask", "slack", "eos", "pad", "terminator")
    for position, first in enumerate(roles):
        for second in roles[position + 1 :]:
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
