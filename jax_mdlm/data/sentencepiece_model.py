"""The file of a SentencePiece model, as far as the types of its pieces are changed.

A model is a protocol buffer. The package brings the classes for it, but they demand a newer
`protobuf` than others allow. `sentencepiece_model.proto`: field 1 of the model is a piece, and is
repeated; field 3 of a piece is its type; of a number that occurs twice the last one counts.
"""

from collections.abc import Set

_PIECE = 1 << 3 | 2  # field 1, a length and so many bytes
_CONTROL = bytes([3 << 3, 3])  # field 3, a number: CONTROL


def with_controls(model: bytes, pieces: Set[int]) -> bytes:
    """A model some of whose pieces are control pieces.

    Args:
      model: As SentencePiece writes it.
      pieces: Their ids.
    """
    parts: list[bytes] = []
    at = piece = 0
    while at < len(model):
        begin = at
        tag, at = _number(model, at)
        size, at = _number(model, at)  # every field of a model is a message
        content = model[at : at + size]
        at += size
        if tag == _PIECE and piece in pieces:
            content += _CONTROL
            parts += [bytes([_PIECE]), _varint(len(content)), content]
        else:
            parts.append(model[begin:at])
        piece += tag == _PIECE
    return b"".join(parts)


def _number(data: bytes, at: int) -> tuple[int, int]:
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
