"""Tokenizers on the `tokenizers` package: Hugging Face files, byte-level BPE, symbols."""

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence

import tokenizers
from etils import epath
from tokenizers import decoders, models, pre_tokenizers, trainers

from jax_mdlm.config import ConfigError, SpecialInText, TokenizerConfig, first_line
from jax_mdlm.containers import SpecialIds
from jax_mdlm.data.special import (
    TRAINED_TOKENS,
    Vocabulary,
    control_ids,
    refusal,
    resolve_special_ids,
    shorten,
)
from jax_mdlm.data.spelled import SpelledTokens

FILE = "tokenizer.json"
BEGINNINGS = ("tokenizer", "special_tokens", "chat_template")  # of the names of all its files
_BYTES = 256  # byte-level BPE needs a token for each


@dataclasses.dataclass(frozen=True)
class FastTokenizer:
    """A `Tokenizer` (see `tokenizer.py`) on a `tokenizers.Tokenizer`.

    Attributes:
      backend: Does the work; it reads special tokens in a text as letters.
      ids: The special ids.
      vocab_size: Largest id plus one.
      files: File name -> text; what `save` writes.
      controls: Special ids that are entries of the model itself, which might find them in a text.
      spelled: What a text's strings of special tokens become.
      splits_lines: Whether what comes after an empty line has the ids that it has alone.
    """

    backend: tokenizers.Tokenizer = dataclasses.field(repr=False)
    ids: SpecialIds
    vocab_size: int
    files: Mapping[str, str] = dataclasses.field(repr=False)
    controls: frozenset[int] = dataclasses.field(repr=False)
    spelled: SpelledTokens = dataclasses.field(repr=False)
    splits_lines: bool = False

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; as `encode_batch`."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, on all cores.

        Raises:
          BadRowError: a text spells a special token, which is refused.
          ConfigError: a symbol is not in a closed vocabulary (kind "symbols"), or a text holds an
            ordinary token that was given a role.
        """
        return self.spelled.encode_batch(texts, self._encode)

    def reading(self, special_in_text: SpecialInText) -> "FastTokenizer":
        """The same one, with what it makes of strings of special tokens."""
        spelled = dataclasses.replace(self.spelled, reading=special_in_text)
        return dataclasses.replace(self, spelled=spelled)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the package raises nothing narrower
            raise self._unknown_symbol(texts) or error from error
        ids = [encoding.ids for encoding in encodings]
        if self.controls:
            for text, own in zip(texts, ids, strict=True):
                if not self.controls.isdisjoint(own):
                    index = next(index for index in own if index in self.controls)
                    wrong = refusal(self.ids, index, self.token(index), text)
                    raise self._unknown_symbol([text]) or wrong
        return ids

    def _unknown_symbol(self, texts: Sequence[str]) -> ConfigError | None:
        """The first symbol that a closed vocabulary does not have; special tokens are none."""
        splitter = self.backend.pre_tokenizer
        if not isinstance(self.backend.model, models.WordLevel) or splitter is None:
            return None
        vocabulary = self.backend.get_vocab(with_added_tokens=True).items()
        known = {token for token, index in vocabulary if index not in self.controls}
        for text in texts:
            for symbol, _ in splitter.pre_tokenize_str(text):
                if symbol not in known:
                    own = shorten(text.strip())  # without what a template put around it
                    lower = f" ({symbol.lower()!r} is one)" if symbol.lower() in known else ""
                    return ConfigError(
                        f"text {own!r} holds {symbol!r}, which the tokenizer does not know; use "
                        f"symbols of the training data only{lower}"
                    )
        return None

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of `ids`; `skip_special` leaves out every id in `ids.never_merged`."""
        hidden = set(self.ids.never_merged) if skip_special else set()
        shown = [int(index) for index in ids if int(index) not in hidden]
        return self.backend.decode(shown, skip_special_tokens=False)

    def find(self, token: str) -> int | None:
        """Id of the token with that string; None where it is not one token."""
        return self.backend.token_to_id(token)

    def token(self, index: int) -> str:
        """One token for displays; parts of a character as the vocabulary writes them."""
        index = int(index)
        entry = self.backend.id_to_token(index)
        if entry is None:
            return f"<{index}>"
        if index in self.ids.never_merged:
            return entry
        text = self.backend.decode([index], skip_special_tokens=False)
        return entry if not text or "\ufffd" in text else text

    def save(self, folder: epath.Path) -> None:
        """Writes `tokenizer.json` and, for Hugging Face tokenizers, the files beside it."""
        for name, text in self.files.items():
            (folder / name).write_text(text)


def load_pretrained(config: TokenizerConfig) -> FastTokenizer:
    """A Hugging Face folder or hub repository with a `tokenizer.json`.

    `PreTrainedTokenizerFast`, not `AutoTokenizer`: that one asks on the terminal whether to run
    the code of a LLaDA folder, and nothing here runs remote code.

    Raises:
      ConfigError: the folder or repository cannot be read, or a special id is missing.
    """
    if not config.path:
        raise ConfigError(
            "data.tokenizer.path must name a folder or a hub id for kind=huggingface, got nothing; "
            "set --config.data.tokenizer.path=..."
        )
    folder = epath.Path(config.path).expanduser()
    if not folder.is_dir():
        folder = epath.Path(_download(config.path))
    if not (folder / FILE).exists():
        raise ConfigError(
            f"data.tokenizer.path={config.path} must hold {FILE}, it has none; save the tokenizer "
            "there with save_pretrained"
        )
    with _local_copy(folder) as local:
        return _from_pretrained(config, local)


def _download(repository: str) -> str:
    """The tokenizer's files of a hub repository; no weights, no code.

    Not `from_pretrained(repository)`: without a network it retries for minutes, file by file.
    """
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(
            repository, allow_patterns=[FILE, "tokenizer_config.json", "special_tokens_map.json"]
        )
    except Exception as error:  # no network, no such repository, no access, not a repository's name
        raise ConfigError(
            f"data.tokenizer.path={repository} is not a folder, and the hub does not give it "
            f"({first_line(error)}); correct it or name a folder made by save_pretrained"
        ) from error


def load_kept(config: TokenizerConfig, folder: epath.Path) -> FastTokenizer:
    """What `FastTokenizer.save` wrote.

    Raises:
      ConfigError: the file is damaged, or a special id is missing.
    """
    with _local_copy(folder) as local:
        if config.kind == "huggingface":
            return _from_pretrained(config, local)
        try:
            return _wrap(config, tokenizers.Tokenizer.from_file(f"{local}/{FILE}"))
        except ConfigError:
            raise
        except Exception as error:  # the package raises nothing narrower
            raise ConfigError(
                f"{folder / FILE} cannot be read ({first_line(error)}); delete the folder to "
                "train the tokenizer again"
            ) from error


def train_bpe(config: TokenizerConfig, texts: Iterable[str]) -> FastTokenizer:
    """Byte-level BPE: every text round-trips, unknown symbols do not exist.

    Raises:
      ConfigError: `vocab_size` is below the special tokens and the 256 bytes.
    """
    smallest = len(TRAINED_TOKENS) + _BYTES
    if config.vocab_size < smallest:
        raise ConfigError(
            f"data.tokenizer.vocab_size must be at least {smallest} for kind=bpe (special tokens "
            f"and bytes), got {config.vocab_size}"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(TRAINED_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _wrap(config, backend)


def train_symbols(config: TokenizerConfig, texts: Iterable[str]) -> FastTokenizer:
    """Every lowercase letter alone, every other word (between spaces) one token.

    "alignment" becomes nine tokens, "AH L AY N" four; `decode` puts spaces between tokens. The
    vocabulary is closed: the special tokens, a to z, and the words of the data, sorted.

    Raises:
      ConfigError: the data has more words than `vocab_size` has room for.
    """
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(tokenizers.Regex("[a-z]"), "isolated"),
        ]
    )
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    # A run of letters is one word here and is cut below: the splitter costs more than the set.
    words = set(itertools.chain.from_iterable(text.split() for text in texts))
    symbols = {
        symbol
        for word in words
        if not (word.isascii() and word.isalpha() and word.islower())
        for symbol, _ in splitter.pre_tokenize_str(word)
    }
    entries = [*TRAINED_TOKENS, *letters, *sorted(symbols.difference(letters, TRAINED_TOKENS))]
    if len(entries) > config.vocab_size:
        raise ConfigError(
            f"data.tokenizer.vocab_size must be at least {len(entries)} for the symbols of this "
            f"data, got {config.vocab_size}; raise it or set data.tokenizer.kind=bpe"
        )
    backend = tokenizers.Tokenizer(models.WordLevel({entry: i for i, entry in enumerate(entries)}))
    backend.pre_tokenizer = splitter
    backend.add_special_tokens(list(TRAINED_TOKENS))
    return _wrap(config, backend)


def _from_pretrained(config: TokenizerConfig, source: str) -> FastTokenizer:
    with _no_advice():
        from transformers import PreTrainedTokenizerFast  # a second and more

    try:
        wrapped = PreTrainedTokenizerFast.from_pretrained(source)
    except Exception as error:  # the packages raise nothing narrower
        raise ConfigError(
            f"data.tokenizer.path={config.path}: {FILE} cannot be read ({first_line(error)}); "
            "save the tokenizer again with save_pretrained"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        wrapped.save_pretrained(folder)
        files = {path.name: path.read_text() for path in epath.Path(folder).iterdir()}
    return _wrap(
        config, wrapped.backend_tokenizer, files, wrapped.eos_token or "", wrapped.pad_token or ""
    )


def _wrap(
    config: TokenizerConfig,
    backend: tokenizers.Tokenizer,
    files: Mapping[str, str] | None = None,
    eos: str = "",
    pad: str = "",
) -> FastTokenizer:
    size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    added = list(backend.get_added_tokens_decoder().items())
    special = [index for index, entry in added if entry.special]
    ids = resolve_special_ids(config, Vocabulary(backend.token_to_id, size, special, eos, pad))
    files = files or {FILE: backend.to_str(pretty=True)}
    controls = control_ids(ids, backend.token_to_id, _unknown(backend))
    # From here on special tokens in a text are letters, and so is every token with a role.
    backend.encode_special_tokens = True
    unmarked = [entry.content for index, entry in added if index in controls and not entry.special]
    backend.add_special_tokens(unmarked)
    own = set(backend.get_vocab(with_added_tokens=False).values())
    names = {*TRAINED_TOKENS, *(entry.content for _, entry in added)}
    found = {name: index for name in names if (index := backend.token_to_id(name)) in controls}
    spelled = SpelledTokens(found, ids.mask)
    splits_lines = _splits_lines(backend)
    return FastTokenizer(backend, ids, size, files, controls & own, spelled, splits_lines)


def _splits_lines(backend: tokenizers.Tokenizer) -> bool:
    """Whether a byte-level BPE cuts after an empty line, whatever kinds of letters follow.

    Words are cut out before any are merged, by kinds of letters: what follows the cut is then
    encoded as if nothing stood before it.
    """
    if not isinstance(backend.model, models.BPE) or backend.normalizer is not None:
        return False
    letters = [
        "a",
        "Z",
        "0",
        "9",
        ".",
        "'",
        "'s",
        "'S",
        "(",
        "-",
        "_",
        "é",
        "中",
        "²",
        "🙂",
        "\u0301",
    ]
    texts = [first + second for first in letters for second in ["", *letters, " b", "\n", "\n\nb"]]
    encode = functools.partial(backend.encode_batch_fast, add_special_tokens=False)
    lines = [found.ids for found in encode([f"\n\n{text}" for text in texts])]
    line = encode(["\n\n"])[0].ids
    alone = [found.ids for found in encode(texts)]
    return all(both == line + one for both, one in zip(lines, alone, strict=True))


def _unknown(backend: tokenizers.Tokenizer) -> int | None:
    """What the model gives for text that it cannot write."""
    if isinstance(backend.model, models.Unigram):  # does not say
        return json.loads(backend.to_str())["model"]["unk_id"]
    token = backend.model.unk_token
    return None if token is None else backend.token_to_id(token)


@contextlib.contextmanager
def _no_advice() -> Iterator[None]:
    """At import transformers complains about the missing PyTorch, which is not needed here."""

    def keep(record: logging.LogRecord) -> bool:
        return "PyTorch was not found" not in record.getMessage()

    logger = logging.getLogger("transformers")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


@contextlib.contextmanager
def _local_copy(folder: epath.Path) -> Iterator[str]:
    """The files of `folder` on the local disk; the package cannot read gs://."""
    with tempfile.TemporaryDirectory() as local:
        for path in folder.iterdir():
            if path.name.startswith(BEGINNINGS):
                (epath.Path(local) / path.name).write_text(path.read_text())
        yield local
