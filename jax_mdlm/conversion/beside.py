"""Files beside the weights: kept by an import, so that an export loads as its source did.

PyTorch users decode with the tokenizer of an exported folder. `skip_special_tokens=True` drops what
the tokenizer marks as special; slack that it does not know as special would end up in the text.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from jax_mdlm.config import Config
from jax_mdlm.conversion.published import TokenIds, read_settings
from jax_mdlm.data.corpus import open_tokenizer, tokenizer_folder
from jax_mdlm.data.tokenizer import MANIFEST, is_kept
from jax_mdlm.workdir import source_folder

# Tokenizer, generation settings, chat template, code that PyTorch users run.
KEPT_ENDINGS = (".json", ".py", ".model", ".txt", ".jinja", ".tiktoken")
KEPT_NAMES = ("LICENSE", "LICENCE", "NOTICE")
_FAST = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"


def kept_files(folder: epath.Path) -> list[epath.Path]:
    """Lists the files beside the weights that are kept; none where there is no folder."""
    return sorted(
        path
        for path in (folder.iterdir() if folder.exists() else ())
        if (path.name.endswith(KEPT_ENDINGS) or path.name.startswith(KEPT_NAMES))
        and not path.name.endswith(".index.json")
        and not path.is_dir()
    )


def copy_files(files: Sequence[epath.Path], folder: epath.Path) -> None:
    """Copies small files, local or remote, byte by byte."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        (folder / path.name).write_bytes(path.read_bytes())


def token_ids_of(config: Config, workdir: epath.Path) -> TokenIds:
    """Gives a run's special ids; slack and its map only where it was trained with slack."""
    given = config.data.tokenizer
    trained = config.objective.slack_max > 0
    known = [given.mask_id, given.eos_id, given.pad_id, given.slack_id]
    asked = known if trained else known[:3]
    if -1 in asked and is_kept(tokenizer_folder(workdir)):
        ids = open_tokenizer(config.data, workdir).ids
        known = [ids.mask, ids.eos, ids.pad, ids.slack]
    mask, eos, pad, slack = (None if index == -1 else index for index in known)
    if not trained or slack is None:
        return TokenIds(mask, eos, pad)
    return TokenIds(mask, eos, pad, slack, config.objective.collapse)


def write_beside(
    config: Config,
    workdir: epath.Path,
    ids: TokenIds,
    folder: epath.Path,
    wanted: Callable[[str], bool],
) -> None:
    """Writes an exported folder's files beside the weights, its tokenizer completed.

    Files that came with the source stay as they are, byte by byte, unless they do not mark slack
    as special.

    Args:
      config: Of the run.
      workdir: Its directory.
      ids: As from `token_ids_of`.
      folder: The exported one.
      wanted: Which of the source's files, by name.
    """
    files = kept_files(source_folder(workdir))
    copy_files([path for path in files if wanted(path.name)], folder)
    fast, settings = folder / _FAST, folder / _SETTINGS
    kept = tokenizer_folder(workdir)
    if not fast.exists() and kept.exists():
        copy_files([path for path in kept.iterdir() if path.name != MANIFEST], folder)
    if not fast.exists():
        return
    if not settings.exists():  # what transformers needs of a tokenizer that was trained here
        tokenizer = open_tokenizer(config.data, workdir)
        roles = {f"{role}_token": getattr(tokenizer.ids, role) for role in ("mask", "eos", "pad")}
        described = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **{key: tokenizer.token(index) for key, index in roles.items()},
        }
        settings.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n")
    if ids.slack is not None:
        _mark_special(fast, ids.slack)
        _mark_special_in_settings(settings, ids.slack)


def _mark_special(path: epath.Path, slack_id: int) -> None:
    content = read_settings(path.read_bytes(), path.name)
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
    settings = read_settings(path.read_bytes(), path.name)
    entry = (settings.get("added_tokens_decoder") or {}).get(str(slack_id))
    if entry is not None and not entry.get("special"):
        entry["special"] = True
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _token_of(vocabulary: Any, index: int) -> str | None:
    """Looks up a token: BPE and words are mapped to ids, unigram lists (token, score)."""
    if isinstance(vocabulary, dict):
        return next((token for token, number in vocabulary.items() if number == index), None)
    if isinstance(vocabulary, list) and 0 <= index < len(vocabulary):
        return vocabulary[index][0]
    return None
