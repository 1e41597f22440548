"""Special ids: LLaDA's two tokenizers, explicit ids, and every error."""

from typing import Any

import pytest

from jax_mdlm.config import ConfigError, TokenizerConfig
from jax_mdlm.data.special import Vocabulary, resolve_special_ids

# Ids of the published tokenizers.
INSTRUCT = {
    "<|startoftext|>": 126080,
    "<|endoftext|>": 126081,
    "<|reserved_token_0|>": 126084,
    "<|mdm_mask|>": 126336,
    "<|start_header_id|>": 126346,
    "<|end_header_id|>": 126347,
    "<|eot_id|>": 126348,
}
BASE = {token: index for token, index in INSTRUCT.items() if index < 126346}


def vocabulary(tokens: dict[str, int], **changes: Any) -> Vocabulary:
    values: dict[str, Any] = {"find": tokens.get, "size": 126349, "special": tuple(tokens.values())}
    return Vocabulary(**(values | changes))


def test_llada_instruct() -> None:
    ids = resolve_special_ids(TokenizerConfig(), vocabulary(INSTRUCT))
    assert (ids.mask, ids.slack, ids.pad) == (126336, 126084, 126081)
    assert (ids.eos, ids.terminator) == (126081, 126348)
    assert ids.never_merged == tuple(sorted(INSTRUCT.values()))


def test_llada_base_ends_a_response_with_end_of_text() -> None:
    ids = resolve_special_ids(TokenizerConfig(), vocabulary(BASE))
    assert ids.terminator == ids.eos == 126081


def test_a_slack_token_comes_before_the_reserved_one() -> None:
    ids = resolve_special_ids(TokenizerConfig(), vocabulary(INSTRUCT | {"<SLACK>": 7}))
    assert ids.slack == 7


def test_the_tokenizers_own_names_decide_about_eos_and_pad() -> None:
    tokens = INSTRUCT | {"</s>": 2, "<pad>": 3}
    ids = resolve_special_ids(TokenizerConfig(), vocabulary(tokens, eos="</s>", pad="<pad>"))
    assert (ids.eos, ids.pad) == (2, 3)


def test_an_id_of_the_config_wins_and_is_never_merged() -> None:
    config = TokenizerConfig(mask_id=10, slack_id=11, pad_id=12, eos_id=13, terminator_id=14)
    ids = resolve_special_ids(config, vocabulary(INSTRUCT))
    assert (ids.mask, ids.slack, ids.pad, ids.eos, ids.terminator) == (10, 11, 12, 13, 14)
    assert set(range(10, 15)) <= set(ids.never_merged)


@pytest.mark.parametrize(
    ("missing", "role"),
    [("<|mdm_mask|>", "mask"), ("<|reserved_token_0|>", "slack"), ("<|endoftext|>", "eos")],
)
def test_a_missing_role_names_its_flag(missing: str, role: str) -> None:
    tokens = {token: index for token, index in INSTRUCT.items() if token != missing}
    message = rf"the tokenizer has no {role} token .*--config\.data\.tokenizer\.{role}_id=\.\.\."
    with pytest.raises(ConfigError, match=message):
        resolve_special_ids(TokenizerConfig(), vocabulary(tokens))


@pytest.mark.parametrize("role", ["mask", "slack", "pad", "eos", "terminator"])
@pytest.mark.parametrize("index", [126349, -2])
def test_an_id_outside_of_the_vocabulary(role: str, index: int) -> None:
    changes: dict[str, Any] = {f"{role}_id": index}
    config = TokenizerConfig(**changes)
    message = (
        rf"data\.tokenizer\.{role}_id must be an id of the tokenizer, 0 to 126348, got {index}"
    )
    with pytest.raises(ConfigError, match=message):
        resolve_special_ids(config, vocabulary(INSTRUCT))


@pytest.mark.parametrize(
    ("changes", "first", "second"),
    [
        ({"mask_id": 126084}, "mask", "slack"),
        ({"mask_id": 126081}, "mask", "eos"),
        ({"slack_id": 126081}, "slack", "eos"),
        ({"slack_id": 126348}, "slack", "terminator"),
        ({"pad_id": 126336}, "mask", "pad"),
        ({"pad_id": 126348}, "pad", "terminator"),
    ],
)
def test_a_clash_names_both_flags(changes: dict, first: str, second: str) -> None:
    message = (
        rf"{first} and {second} must be different tokens, both have id \d+; set "
        rf"--config\.data\.tokenizer\.{first}_id=\.\.\. or --config\.data\.tokenizer\.{second}_id"
    )
    with pytest.raises(ConfigError, match=message):
        resolve_special_ids(TokenizerConfig(**changes), vocabulary(INSTRUCT))
