"""Tokenizers: one interface, loaded or trained once, kept in the work directory.

`TokenizerConfig` enters, a `Tokenizer` with its `SpecialIds` leaves. `tokenizer_fast` and
`tokenizer_sentencepiece` hold the two implementations; this file decides between them.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import jax
from etils import epath

from jax_mdlm.config import ConfigError, SpecialInText, TokenizerConfig, first_line
from jax_mdlm.containers import SpecialIds
from jax_mdlm.processes import barrier
from jax_mdlm.storage import replace_text

MANIFEST = "kind.json"  # written last: a folder without it is unfinished and written again

# How slots are shown to people.
SLACK_SIGN = "·"
MASK_SIGN = "░"
# How vocabularies of bytes or SentencePiece write a space and a newline; blanks that take a line.
BLANKS = {"\u0120": "␣", "\u2581": "␣", "\u010a": "↵", "\n": "↵", "\r": "␍", "\t": "⇥"}
_SEEN = str.maketrans(BLANKS)


class Tokenizer(Protocol):
    """Text to ids and back."""

    @property
    def ids(self) -> SpecialIds:
        """The special ids."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows that embedding and head need at least."""
        ...

    @property
    def splits_lines(self) -> bool:
        """Whether what comes after an empty line has the ids that it has alone."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. What it spells is no special token, unless `reading` says so.

        Control tokens are ids from `ids` and `find`; see `chat`.

        Raises:
          BadRowError: the text spells a special token, which is refused (`spelled`).
          ConfigError: the text cannot be written without a special token, or not at all (kind
            "symbols").
        """
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, on all cores where the implementation can."""
        ...

    def reading(self, special_in_text: SpecialInText) -> "Tokenizer":
        """The same one, with what it makes of strings of special tokens (`spelled`)."""
        ...

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of `ids`; `skip_special` leaves out every id in `ids.never_merged`."""
        ...

    def find(self, token: str) -> int | None:
        """Id of the token with that string; None where it is not one token."""
        ...

    def token(self, index: int) -> str:
        """One token for displays, e.g. `" the"`, `"AH"`, `"<SLACK>"`."""
        ...

    def save(self, folder: epath.Path) -> None:
        """Writes the tokenizer's own files; local and gs:// folders alike."""
        ...


def load_tokenizer(
    config: TokenizerConfig,
    folder: epath.Path,
    texts: Callable[[], Iterable[str]] | None = None,
    special_in_text: SpecialInText = "text",
) -> Tokenizer:
    """Returns the tokenizer of a run and keeps it in `folder`.

    What `folder` holds wins, so that later runs and `sample` need neither the data nor the path.
    Otherwise process 0 loads it from `config.path`, or trains it from `texts` (same texts, same
    ids), while the others wait.

    Args:
      config: Kind, path, size and special ids; the ids are resolved again on every load.
      folder: `<workdir>/tokenizer`; all processes must see it.
      texts: Yields the texts to train from; None where nothing may be trained.
      special_in_text: That of `DataConfig`.

    Raises:
      ConfigError: see `special.resolve_special_ids`; the path cannot be read, the folder holds
        another kind, or training is needed but not possible.
    """
    folder = epath.Path(folder)
    if jax.process_index() == 0 and not (folder / MANIFEST).exists():
        tokenizer = _create(config, texts, folder)
        with _saving(folder):
            folder.mkdir(parents=True, exist_ok=True)
            tokenizer.save(folder)
            replace_text(folder / MANIFEST, json.dumps({"kind": config.kind}) + "\n")
    barrier("tokenizer")
    return _restore(config, folder).reading(special_in_text)


def read_tokenizer(
    config: TokenizerConfig,
    folder: epath.Path | None = None,
    special_in_text: SpecialInText = "text",
) -> Tokenizer:
    """A tokenizer, without writing anything.

    Args:
      config: Kind and special ids.
      folder: Of published weights, or where a run keeps its own; None = `config.path`.
      special_in_text: That of `DataConfig`.

    Raises:
      ConfigError: none is there, or one of another kind.
    """
    if folder is None:
        found = _create(config, None, epath.Path(config.path))
    elif is_kept(folder):
        found = _restore(config, folder)
    else:
        found = _create(dataclasses.replace(config, path=os.fspath(folder)), None, folder)
    return found.reading(special_in_text)


def same_tokens(left: Tokenizer, right: Tokenizer) -> bool:
    """Whether every id means the same to both."""
    size = left.vocab_size
    return size == right.vocab_size and all(left.token(i) == right.token(i) for i in range(size))


def is_kept(folder: epath.Path) -> bool:
    """Whether `folder` holds a tokenizer that `load_tokenizer` opens."""
    return (folder / MANIFEST).exists()


def forget(folder: epath.Path) -> None:
    """Makes `load_tokenizer` write the folder anew."""
    (folder / MANIFEST).unlink(missing_ok=True)


def holds_tokenizer(folder: epath.Path) -> bool:
    """Whether `keep_tokenizer` finds one there."""
    from jax_mdlm.data import tokenizer_fast

    return is_kept(folder) or (folder / tokenizer_fast.FILE).exists()


def keep_tokenizer(source: epath.Path, folder: epath.Path) -> bool:
    """Keeps the tokenizer of `source` as that of a work directory, byte by byte.

    Nothing is loaded: ids are resolved by whoever opens it.

    Args:
      source: A folder of published weights with a `tokenizer.json`, or the folder in which a work
        directory keeps its tokenizer.
      folder: `<workdir>/tokenizer`.

    Returns:
      Whether there is one.
    """
    from jax_mdlm.data import tokenizer_fast

    if not holds_tokenizer(source):
        return False
    kept = is_kept(source)
    manifest = (
        (source / MANIFEST).read_text() if kept else json.dumps({"kind": "huggingface"}) + "\n"
    )
    with _saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in source.iterdir():
            if path.name.startswith(tokenizer_fast.BEGINNINGS):
                (folder / path.name).write_bytes(path.read_bytes())
        replace_text(folder / MANIFEST, manifest)  # whole or not at all: it says that all is there
    return True


@contextlib.contextmanager
def _saving(folder: epath.Path) -> Iterator[None]:
    """Makes what a disk answers a ConfigError; packages raise bare exceptions for it."""
    try:
        yield
    except Exception as error:
        if "://" in os.fspath(folder) or isinstance(error, ConfigError):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ConfigError(
            f"{folder} must take the tokenizer, but writing failed ({reason}); make room or choose "
            "another folder, and run the same command again"
        ) from error


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


def _create(
    config: TokenizerConfig, texts: Callable[[], Iterable[str]] | None, folder: epath.Path
) -> Tokenizer:
    from jax_mdlm.data import tokenizer_fast, tokenizer_sentencepiece

    if config.kind == "huggingface":
        return tokenizer_fast.load_pretrained(config)
    if config.kind == "sentencepiece" and config.path:
        return tokenizer_sentencepiece.load_sentencepiece(config, epath.Path(config.path))
    if texts is None:
        raise ConfigError(
            f"{folder} must hold a trained tokenizer, got none; train in this work directory first"
        )
    train = {
        "bpe": tokenizer_fast.train_bpe,
        "symbols": tokenizer_fast.train_symbols,
        "sentencepiece": tokenizer_sentencepiece.train_sentencepiece,
    }[config.kind]
    return train(config, texts())


def _restore(config: TokenizerConfig, folder: epath.Path) -> Tokenizer:
    if not (folder / MANIFEST).exists():
        raise ConfigError(
            f"{folder} holds no tokenizer; every process must see the work directory, put it on a "
            "shared disk or on gs://"
        )
    kind = json.loads((folder / MANIFEST).read_text())["kind"]
    if kind != config.kind:
        raise ConfigError(
            f"{folder} holds a tokenizer of kind {kind}, data.tokenizer.kind is {config.kind}; set "
            f"--config.data.tokenizer.kind={kind} or use another --workdir"
        )
    if kind == "sentencepiece":
        from jax_mdlm.data import tokenizer_sentencepiece

        return tokenizer_sentencepiece.load_sentencepiece(
            config, folder / tokenizer_sentencepiece.FILE
        )
    from jax_mdlm.data import tokenizer_fast

    return tokenizer_fast.load_kept(config, folder)
