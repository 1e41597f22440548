"""Tokenizers on the `sentencepiece` package: a `.model` file, or one trained from the data."""

import dataclasses
import functools
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence, Set

import sentencepiece
from etils import epath

from jax_mdlm.config import ConfigError, SpecialInText, TokenizerConfig
from jax_mdlm.containers import SpecialIds
from jax_mdlm.data.special import (
    TRAINED_TOKENS,
    Vocabulary,
    control_ids,
    refusal,
    resolve_special_ids,
)
from jax_mdlm.data.spelled import SpelledTokens

FILE = "tokenizer.model"
_PIECE = 1 << 3 | 2  # field 1 of a model's file, a length and so many bytes
_CONTROL = bytes([3 << 3, 3])  # field 3 of a piece, a number: CONTROL
TRAINING_CHARACTERS = 50_000_000  # more text does not change a vocabulary much and takes minutes


@dataclasses.dataclass(frozen=True)
class SentencePieceTokenizer:
    """A `Tokenizer` (see `tokenizer.py`) on a SentencePiece model.

    Attributes:
      processor: The model as it is.
      writer: The model that encodes: its special pieces are control pieces, which SentencePiece
        does not find in a text, while it always finds user-defined ones.
      ids: The special ids.
      vocab_size: Pieces of the model.
      controls: Special ids that `writer` may find in a text: bytes and single characters.
      spelled: What a text's strings of special tokens become.
    """

    processor: sentencepiece.SentencePieceProcessor = dataclasses.field(repr=False)
    writer: sentencepiece.SentencePieceProcessor = dataclasses.field(repr=False)
    ids: SpecialIds
    vocab_size: int
    controls: frozenset[int]
    spelled: SpelledTokens = dataclasses.field(repr=False)

    @property
    def splits_lines(self) -> bool:
        """It does not: a text alone begins with a blank."""
        return False

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; as `encode_batch`."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text.

        Raises:
          BadRowError: a text spells a special token, which is refused.
          ConfigError: a text holds a byte or a character that was given a role.
        """
        return self.spelled.encode_batch(texts, lambda plain: list(map(self._encode, plain)))

    def reading(self, special_in_text: SpecialInText) -> "SentencePieceTokenizer":
        """The same one, with what it makes of strings of special tokens."""
        spelled = dataclasses.replace(self.spelled, reading=special_in_text)
        return dataclasses.replace(self, spelled=spelled)

    def _encode(self, text: str) -> list[int]:
        ids = self.writer.encode(text)
        for index in self.controls.intersection(ids):
            raise refusal(self.ids, index, self.processor.id_to_piece(index), text)
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of `ids`; `skip_special` leaves out every id in `ids.never_merged`."""
        texts = []
        plain = [int(index) for index in ids if 0 <= int(index) < self.vocab_size]
        special = set(self.ids.never_merged)
        if skip_special:
            return self.processor.decode([index for index in plain if index not in special])
        for is_special, group in itertools.groupby(plain, special.__contains__):
            run = list(group)
            texts.append(
                "".join(map(self.processor.id_to_piece, run))
                if is_special
                else self.processor.decode(run)
            )
        return "".join(texts)

    def find(self, token: str) -> int | None:
        """Id of the piece with that string; None where it is not one piece."""
        return _find(self.processor, token)

    def token(self, index: int) -> str:
        """One token for displays, the model's word mark as a space."""
        if not 0 <= int(index) < self.vocab_size:
            return f"<{int(index)}>"
        return self.processor.id_to_piece(int(index)).replace("▁", " ")

    def save(self, folder: epath.Path) -> None:
        """Writes `tokenizer.model`."""
        (folder / FILE).write_bytes(self.processor.serialized_model_proto())


def load_sentencepiece(config: TokenizerConfig, path: epath.Path) -> SentencePieceTokenizer:
    """A `.model` file.

    Raises:
      ConfigError: the file is missing or damaged, or a special id is missing.
    """
    if not path.exists() or path.is_dir():
        raise ConfigError(
            f"data.tokenizer.path must name a SentencePiece .model file, got {path}; correct it, "
            "or leave it empty to train one from the data"
        )
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except RuntimeError as error:
        raise ConfigError(
            f"{path} is not a SentencePiece model; give another .model file"
        ) from error
    return _wrap(config, processor)


def train_sentencepiece(config: TokenizerConfig, texts: Iterable[str]) -> SentencePieceTokenizer:
    """A unigram model with byte fallback that changes no character: every text round-trips.

    One thread, since the order of its float sums decides between pieces of equal score.

    Raises:
      ConfigError: `vocab_size` is too small for the characters of the data.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_first(texts, TRAINING_CHARACTERS),
            model_writer=model,
            vocab_size=config.vocab_size,
            hard_vocab_limit=False,  # a small text has fewer pieces
            user_defined_symbols=list(TRAINED_TOKENS),
            unk_id=len(TRAINED_TOKENS),
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).split("] ")[-1].strip().splitlines()[0]
        raise ConfigError(
            f"data.tokenizer.vocab_size={config.vocab_size} does not suit this data ({reason}); "
            "change --config.data.tokenizer.vocab_size"
        ) from error
    return _wrap(config, sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()))


def _wrap(
    config: TokenizerConfig, processor: sentencepiece.SentencePieceProcessor
) -> SentencePieceTokenizer:
    def name(index: int) -> str:  # -1: the model has no such piece
        return "" if index < 0 else processor.id_to_piece(index)

    find = functools.partial(_find, processor)
    trained = [index for index in map(find, TRAINED_TOKENS) if index is not None]
    pieces = range(processor.get_piece_size())
    controls = [index for index in pieces if processor.is_control(index)]
    special = {*controls, *trained, processor.unk_id()}
    vocabulary = Vocabulary(
        find,
        processor.get_piece_size(),
        special,
        eos=name(processor.eos_id()),
        pad=name(processor.pad_id()),
    )
    ids = resolve_special_ids(config, vocabulary)
    special = control_ids(ids, find, processor.unk_id())
    hidden = {index for index in special if _may_be_hidden(processor, index)}
    proto = with_controls(processor.serialized_model_proto(), hidden)
    return SentencePieceTokenizer(
        processor,
        sentencepiece.SentencePieceProcessor(model_proto=proto),
        ids,
        processor.get_piece_size(),
        special - hidden,
        SpelledTokens({name(index): index for index in hidden}, ids.mask),
    )


def _find(processor: sentencepiece.SentencePieceProcessor, token: str) -> int | None:
    index = processor.piece_to_id(token)
    return index if processor.id_to_piece(index) == token else None


def _may_be_hidden(processor: sentencepiece.SentencePieceProcessor, index: int) -> bool:
    """Whether texts can still be written without this piece."""
    fixed = processor.is_byte(index) or processor.is_unknown(index)
    return not fixed and len(processor.id_to_piece(index)) > 1


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        if characters <= 0:
            return
        characters -= len(text)
        yield text


def with_controls(model: bytes, pieces: Set[int]) -> bytes:
    """A model's file with these pieces as control pieces.

    The file is a protocol buffer. The package brings the classes for it, but they demand a newer
    `protobuf` than others allow. `sentencepiece_model.proto`: field 1 of the model is a piece, and
    is repeated; field 3 of a piece is its type; of a number that occurs twice the last one counts.
    """
    parts: list[bytes] = []
    at = piece = 0
    while at < len(model):
        begin = at
        tag, at = _read_varint(model, at)
        size, at = _read_varint(model, at)  # every field of a model is a message
        content = model[at : at + size]
        at += size
        if tag == _PIECE and piece in pieces:
            content += _CONTROL
            parts += [bytes([_PIECE]), _varint(len(content)), content]
        else:
            parts.append(model[begin:at])
        piece += tag == _PIECE
    return b"".join(parts)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A varint, and where it ends."""
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at


def _varint(number: int) -> bytes:
    digits = []
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])
