"""The tokenizer of an exported folder: PyTorch users decode with it, slack stays special.

`skip_special_tokens=True` drops what the tokenizer marks as special; slack that it does not know
as special would end up in the text.
"""

import json
from typing import Any

from etils import epath

from jax_mdlm.config import Config
from jax_mdlm.conversion import published
from jax_mdlm.conversion.published import TokenIds
from jax_mdlm.data.corpus import open_tokenizer, tokenizer_folder
from jax_mdlm.data.tokenizer import MANIFEST, Tokenizer, is_kept

_FAST = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"


def token_ids_of(config: Config, workdir: epath.Path) -> TokenIds:
    """Special ids of a run; slack and its map only where it was trained with slack."""
    given = config.data.tokenizer
    trained = config.objective.slack_max > 0
    known = {"mask": given.mask_id, "eos": given.eos_id, "pad": given.pad_id}
    slack = given.slack_id
    if is_kept(tokenizer_folder(workdir)) and (
        -1 in known.values() or (trained and given.slack_id == -1)
    ):
        ids = _open(config, workdir).ids
        known = {"mask": ids.mask, "eos": ids.eos, "pad": ids.pad}
        slack = ids.slack
    mask, eos, pad = (None if index == -1 else index for index in known.values())
    if not trained or slack == -1:
        return TokenIds(mask, eos, pad)
    return TokenIds(mask, eos, pad, slack, config.objective.collapse)


def write_tokenizer(config: Config, workdir: epath.Path, ids: TokenIds, folder: epath.Path) -> None:
    """Completes the tokenizer's files in an exported folder.

    Files that came with the source are there already and stay as they are, byte by byte, unless
    they do not mark slack as special.

    Args:
      config: Of the run.
      workdir: Its directory.
      ids: As from `token_ids_of`.
      folder: The exported one.
    """
    kept = tokenizer_folder(workdir)
    if not (folder / _FAST).exists() and kept.exists():
        for path in kept.iterdir():
            if path.name != MANIFEST:
                (folder / path.name).write_bytes(path.read_bytes())
    if (folder / _FAST).exists() and not (folder / _SETTINGS).exists():
        _write_settings(_open(config, workdir), folder)
    if ids.slack is not None and (folder / _FAST).exists():
        _mark_special(folder / _FAST, ids.slack)
        if (folder / _SETTINGS).exists():
            _mark_special_in_settings(folder / _SETTINGS, ids.slack)


def _open(config: Config, workdir: epath.Path) -> Tokenizer:
    return open_tokenizer(config.data, workdir)


def _write_settings(tokenizer: Tokenizer, folder: epath.Path) -> None:
    """What a tokenizer that was trained here needs to be loaded by transformers."""
    roles = {"mask_token": "mask", "eos_token": "eos", "pad_token": "pad"}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{key: tokenizer.token(getattr(tokenizer.ids, role)) for key, role in roles.items()},
    }
    (folder / _SETTINGS).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _mark_special(path: epath.Path, slack_id: int) -> None:
    content = published.parse(path.read_bytes(), path.name)
    added = content.get("added_tokens") or []
    entry = next((entry for entry in added if entry["id"] == slack_id), None)
    if entry is None:
        token = _token_of(content.get("model", {}).get("vocab"), slack_id)
        if token is None:
            return  # an id without a token decodes to nothing
        entry = {"id": slack_id, "content": token, "special": False} | dict.fromkeys(
            ("single_word", "lstrip", "rstrip", "normalized"), False
        )
        added.append(entry)
    if entry["special"]:
        return
    entry["special"] = True
    content["added_tokens"] = sorted(added, key=lambda entry: entry["id"])
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False))


def _mark_special_in_settings(path: epath.Path, slack_id: int) -> None:
    settings = published.parse(path.read_bytes(), path.name)
    entry = (settings.get("added_tokens_decoder") or {}).get(str(slack_id))
    if entry is not None and not entry.get("special"):
        entry["special"] = True
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _token_of(vocabulary: Any, index: int) -> str | None:
    """BPE and word vocabularies map tokens to ids, unigram ones list (token, score)."""
    if isinstance(vocabulary, dict):
        return next((token for token, number in vocabulary.items() if number == index), None)
    if isinstance(vocabulary, list) and 0 <= index < len(vocabulary):
        return vocabulary[index][0]
    return None
