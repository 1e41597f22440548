"""A file of every container and form, down to the token rows, which were written down once.

`forms/expected.json` has for each file the name of its form and of its container, and of each pair
what is asked and what is answered: as text, to be read, and as ids. The tokenizer has one token a
byte: the special ones are 0 to 6, "!" to "~" are 7 to 100, a line feed is 205, a space 227.
"""

import json
from pathlib import Path

import pytest
from etils import epath

from jax_mdlm.config import DataConfig, TokenizerConfig
from jax_mdlm.data.chat import make_template
from jax_mdlm.data.encode import encode_rows
from jax_mdlm.data.readers import pieces, read_records, records
from jax_mdlm.data.rows import read_files
from jax_mdlm.data.tokenizer import Tokenizer, load_tokenizer

FOLDER = Path(__file__).parent / "forms"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


@pytest.fixture(scope="module")
def characters(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = epath.Path(tmp_path_factory.mktemp("bytes"))
    return load_tokenizer(TokenizerConfig("bpe", vocab_size=263), folder, lambda: ["ab"])


def test_every_file_is_expected() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {*EXPECTED, "expected.json"}


@pytest.mark.parametrize("name", EXPECTED)
def test_token_rows(name: str, characters: Tokenizer) -> None:
    path, expected = FOLDER / name, EXPECTED[name]
    pretraining = name.startswith("text")
    config = DataConfig(files=str(path), pretraining=pretraining)
    rows = read_files(config)
    assert rows.forms == (f"{path}: {expected['what']}",)
    assert [origin.removeprefix(f"{path}:") for origin in rows.origins] == expected["origins"]
    template = None if pretraining else make_template("llada", characters)
    encoded, _ = encode_rows(rows, config, characters, template)
    found = [
        [encoded.tokens[begin:end].tolist() for begin, end in spans]
        for spans in zip(encoded.history, encoded.response, strict=True)
    ]
    if pretraining:  # an EOS ends each text
        assert {response.pop() for _, response in found} == {characters.ids.eos}
    assert found == expected["ids"]
    texts = [[characters.decode(ids) for ids in pair] for pair in found]
    assert texts == expected["texts"]


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("size", [1, 40, 1 << 20])
def test_pieces_of_any_size_hold_the_same_records(name: str, size: int) -> None:
    cut = list(pieces(FOLDER / name, size))
    assert cut == list(pieces(FOLDER / name, size))
    assert [one for piece in cut for one in records(piece)] == list(read_records(FOLDER / name))
