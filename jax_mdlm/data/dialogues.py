"""Human dialogues, from the package `chitchat-dataset` (MIT, BYU Perception, Control & Cognition).

Only the data file is read. Sender ids and time stamps are dropped; so are dialogues of one
speaker, with pasted text (one turn has 95 kB), profanity or a mail address.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from jax_mdlm.data.catalogue import read_all, read_package_file
from jax_mdlm.data.examples import Example, Message

TURN_CHARACTERS = 2000  # a longer turn is pasted, not said
_ROLES = ("user", "assistant")
_UNWANTED = re.compile(
    r"\b(shit\w*|damn\w*|slut\w*|whore\w*|retard\w*|porn\w*|rape[ds]?|horny|sexy|wtf|dick|pissed)\b"
    r"|\S+@\S+\.\S+",
    re.IGNORECASE,
)


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
