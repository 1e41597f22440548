"""Tokenizers: round trips, what is kept, who trains, and every error."""

import shutil
from pathlib import Path

import jax
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mdlm.config import ConfigError, TokenizerConfig
from jax_mdlm.data import special, tokenizer_fast
from jax_mdlm.data import tokenizer as tokenizer_module
from jax_mdlm.data.tokenizer import Tokenizer, load_tokenizer
from tests.data.conftest import TEXTS, save_llada

BPE = TokenizerConfig(kind="bpe", vocab_size=300)
PIECES = TokenizerConfig(kind="sentencepiece", vocab_size=300)
SYMBOLS = TokenizerConfig(kind="symbols", vocab_size=100)
SOUNDS = ["alignment", "AH L AY N"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = epath.Path(tmp_path_factory.mktemp("trained"))
    return {
        config.kind: load_tokenizer(config, folder / config.kind, lambda: TEXTS * 3)
        for config in (BPE, PIECES)
    }


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece"])
@settings(max_examples=60, deadline=None)
# "▁" is SentencePiece's own sign for a space.
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0▁")))
def test_every_text_round_trips(trained: dict[str, Tokenizer], kind: str, text: str) -> None:
    tokenizer = trained[kind]
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text
    assert tokenizer.encode_batch([text, "cat"]) == [
        tokenizer.encode(text),
        tokenizer.encode("cat"),
    ]


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece"])
def test_trained_tokenizers_begin_with_the_special_tokens(
    trained: dict[str, Tokenizer], kind: str
) -> None:
    tokenizer = trained[kind]
    assert [tokenizer.token(i) for i in range(7)] == list(special.TRAINED_TOKENS)
    assert tokenizer.ids.mask == 5
    assert tokenizer.ids.slack == 6
    assert tokenizer.ids.pad == tokenizer.ids.eos == 1
    assert tokenizer.ids.terminator == 4
    assert set(range(7)) <= set(tokenizer.ids.never_merged)
    assert tokenizer.vocab_size <= 300
    assert [tokenizer.find(token) for token in special.TRAINED_TOKENS] == list(range(7))
    assert tokenizer.find("<|eot_id|") is None
    ids = [*tokenizer.encode("the cat"), 4, *tokenizer.encode("\n"), 6]
    assert max(ids) < tokenizer.vocab_size
    assert tokenizer.decode(ids) == "the cat\n"
    assert tokenizer.decode(ids, skip_special=False) == "the cat<|eot_id|>\n<SLACK>"


def test_symbols(symbols: Tokenizer) -> None:
    ids = symbols.encode("alignment")
    assert [symbols.token(i) for i in ids] == list("alignment")
    ids = symbols.encode("AH L AY N")
    assert [symbols.token(i) for i in ids] == ["AH", "L", "AY", "N"]
    assert symbols.decode([*ids, symbols.ids.terminator]) == "AH L AY N"
    assert symbols.decode([*ids, symbols.ids.terminator], False) == "AH L AY N <|eot_id|>"
    # 7 special tokens, 26 letters, the words in the order of their characters
    assert symbols.vocab_size == 7 + 26 + 10
    assert symbols.encode("a z 1 2 3 AH T") == [7, 32, 33, 34, 35, 36, 42]
    assert symbols.token(symbols.vocab_size) == f"<{symbols.vocab_size}>"


def test_symbols_are_a_closed_vocabulary(symbols: Tokenizer) -> None:
    with pytest.raises(
        ConfigError, match=r"text 'na\wve' holds '\w', which the tokenizer does not"
    ):
        symbols.encode_batch(["cat", "naïve"])


def test_displays(trained: dict[str, Tokenizer], llada: Tokenizer) -> None:
    for tokenizer in (trained["bpe"], llada):
        token = tokenizer.encode(" cat")[0]
        assert tokenizer.token(token).startswith(" ")
        half = tokenizer.encode("ü")[0]  # one of two bytes: no character of its own
        assert "\ufffd" not in tokenizer.token(half)
        assert tokenizer.token(tokenizer.vocab_size + 5) == f"<{tokenizer.vocab_size + 5}>"
    pieces = trained["sentencepiece"]
    assert " " in {pieces.token(i)[:1] for i in pieces.encode("the cat")}
    assert pieces.token(99999) == "<99999>"


@pytest.mark.parametrize("config", [BPE, PIECES, SYMBOLS], ids=lambda config: config.kind)
def test_training_is_deterministic_and_kept(tmp_path: Path, config: TokenizerConfig) -> None:
    texts = SOUNDS if config.kind == "symbols" else TEXTS
    first, second = epath.Path(tmp_path / "a"), epath.Path(tmp_path / "b")
    one = load_tokenizer(config, first, lambda: iter(texts))
    load_tokenizer(config, second, lambda: iter(texts))
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()

    def fail() -> list[str]:
        raise AssertionError("trained again")

    again = load_tokenizer(config, first, fail)
    assert again.ids == one.ids
    assert again.vocab_size == one.vocab_size
    assert again.encode(texts[0]) == one.encode(texts[0])
    assert load_tokenizer(config, first).encode(texts[0]) == one.encode(texts[0])  # `sample`


def test_only_the_first_process_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = epath.Path(tmp_path / "tokenizer")
    events = []

    def barrier(name: str) -> None:
        events.append(name)
        assert not folder.exists()
        monkeypatch.undo()
        load_tokenizer(SYMBOLS, folder, lambda: SOUNDS)  # what process 0 does meanwhile

    monkeypatch.setattr(tokenizer_module, "barrier", barrier)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    tokenizer = load_tokenizer(SYMBOLS, folder, lambda: [str(1 / 0)])
    assert events == ["tokenizer"]
    assert tokenizer.vocab_size == 7 + 26 + 4


def test_every_process_must_see_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(
        ConfigError, match="holds no tokenizer; every process must see the work dir"
    ):
        load_tokenizer(SYMBOLS, epath.Path(tmp_path / "t"), lambda: SOUNDS)


def test_nothing_is_written_when_training_fails(tmp_path: Path) -> None:
    config = TokenizerConfig(kind="bpe", vocab_size=300, mask_id=1)
    with pytest.raises(ConfigError, match="mask and eos must be different"):
        load_tokenizer(config, epath.Path(tmp_path / "t"), lambda: TEXTS)
    assert not (tmp_path / "t").exists()


def test_untrained(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"must hold a trained tokenizer, got none; train in this"
    ):
        load_tokenizer(SYMBOLS, epath.Path(tmp_path / "t"))


def test_another_kind_is_refused(tmp_path: Path) -> None:
    folder = epath.Path(tmp_path / "t")
    load_tokenizer(SYMBOLS, folder, lambda: SOUNDS)
    message = "holds a tokenizer of kind symbols, data.tokenizer.kind is bpe; set --config"
    with pytest.raises(ConfigError, match=message):
        load_tokenizer(BPE, folder, lambda: TEXTS)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = epath.Path(tmp_path / "t")
    load_tokenizer(SYMBOLS, folder, lambda: SOUNDS)
    (folder / "tokenizer.json").write_text('{"model"')
    with pytest.raises(
        ConfigError, match=r"tokenizer\.json cannot be read \(.*\); delete the folder"
    ):
        load_tokenizer(SYMBOLS, folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            TokenizerConfig(kind="bpe", vocab_size=262),
            r"vocab_size must be at least 263 for kind=bpe \(special tokens and bytes\), got 262",
        ),
        (
            TokenizerConfig(kind="symbols", vocab_size=40),
            r"vocab_size must be at least \d+ for the symbols of this data, got 40; raise it or",
        ),
        (
            TokenizerConfig(kind="sentencepiece", vocab_size=50),
            r"data\.tokenizer\.vocab_size=50 does not suit this data \(.+\); change --config",
        ),
    ],
)
def test_a_vocabulary_that_is_too_small(
    tmp_path: Path, config: TokenizerConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_tokenizer(config, epath.Path(tmp_path / "t"), lambda: TEXTS)


def test_hugging_face_folder(llada: Tokenizer, llada_folder: Path, tmp_path: Path) -> None:
    """The announced remote code would end the process; it is never imported."""
    assert llada.token(llada.ids.slack) == special.RESERVED
    assert llada.token(llada.ids.mask) == special.MASK
    assert llada.token(llada.ids.terminator) == special.TERMINATOR
    assert llada.ids.eos == llada.ids.pad
    assert len(llada.ids.never_merged) == 7
    text = "What did the cat do?\n\nüber  72"
    assert llada.decode(llada.encode(text)) == text
    # the kept copy does not need the folder
    moved = shutil.copytree(llada_folder, tmp_path / "gone")
    config = TokenizerConfig(kind="huggingface", path=str(moved))
    kept = epath.Path(tmp_path / "kept")
    first = load_tokenizer(config, kept)
    shutil.rmtree(moved)
    again = load_tokenizer(config, kept)
    assert again.ids == first.ids == llada.ids
    assert again.encode(text) == llada.encode(text)
    assert (kept / "tokenizer_config.json").exists()  # whoever exports a folder needs it


def test_hugging_face_base(tmp_path: Path) -> None:
    tokens = (special.START, special.EOS, special.RESERVED, special.MASK)
    config = TokenizerConfig(kind="huggingface", path=str(save_llada(tmp_path / "base", tokens)))
    tokenizer = load_tokenizer(config, epath.Path(tmp_path / "t"))
    assert tokenizer.ids.terminator == tokenizer.ids.eos
    assert len(tokenizer.encode(special.TERMINATOR)) > 1


def test_hugging_face_without_a_mask(tmp_path: Path) -> None:
    folder = save_llada(tmp_path / "gpt", (special.START, special.EOS, special.RESERVED))
    config = TokenizerConfig(kind="huggingface", path=str(folder))
    with pytest.raises(ConfigError, match=r"no mask token .*--config\.data\.tokenizer\.mask_id"):
        load_tokenizer(config, epath.Path(tmp_path / "t"))


def test_hugging_face_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(repository: str, allow_patterns: list[str]) -> str:
        assert not any("py" in pattern or "safetensors" in pattern for pattern in allow_patterns)
        raise OSError(f"cannot reach {repository}\nand more")

    def load(path: str) -> None:
        config = TokenizerConfig(kind="huggingface", path=path)
        load_tokenizer(config, epath.Path(tmp_path / "t"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ConfigError, match="path must name a folder or a hub id for kind=huggingfa"):
        load("")
    message = (
        r"path=org/model is not a folder, and the hub does not give it \(cannot reach org/model\)"
    )
    with pytest.raises(ConfigError, match=message):
        load("org/model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ConfigError, match=r"empty must hold tokenizer\.json, it has none; save the"
    ):
        load(str(tmp_path / "empty"))
    (tmp_path / "empty" / "tokenizer.json").write_text("{}")
    with pytest.raises(
        ConfigError, match=r"tokenizer\.json cannot be read \(.*\); save the tokeni"
    ):
        load(str(tmp_path / "empty"))


def test_a_hub_repository_is_read_like_a_folder(
    llada_folder: Path, llada: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda repository, **_: str(llada_folder)
    )
    config = TokenizerConfig(kind="huggingface", path="GSAI-ML/LLaDA-8B-Instruct")
    assert load_tokenizer(config, epath.Path(tmp_path / "t")).ids == llada.ids


def test_sentencepiece_model_of_others(tmp_path: Path) -> None:
    """A model in Llama's manner: control pieces, no mask; ids are given."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5),
        model_prefix=str(tmp_path / "other"),
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
    )
    path = str(tmp_path / "other.model")
    config = TokenizerConfig(kind="sentencepiece", path=path)
    with pytest.raises(ConfigError, match="the tokenizer has no mask token"):
        load_tokenizer(config, epath.Path(tmp_path / "t"))
    config = TokenizerConfig(kind="sentencepiece", path=path, mask_id=3, slack_id=4)
    tokenizer = load_tokenizer(config, epath.Path(tmp_path / "t"))
    assert tokenizer.ids.eos == tokenizer.ids.terminator == tokenizer.ids.pad == 2
    assert tokenizer.find("</s>") == 2
    ids = [*tokenizer.encode("the cat"), 2]
    assert tokenizer.decode(ids) == "the cat"
    assert tokenizer.decode(ids, skip_special=False) == "the cat</s>"
    again = load_tokenizer(config, epath.Path(tmp_path / "t"))
    assert [*again.encode("the cat"), 2] == ids


def test_sentencepiece_errors(tmp_path: Path) -> None:
    def load(path: Path) -> None:
        config = TokenizerConfig(kind="sentencepiece", path=str(path))
        load_tokenizer(config, epath.Path(tmp_path / "t"))

    with pytest.raises(
        ConfigError, match=r"must name a SentencePiece \.model file, got .*x\.model"
    ):
        load(tmp_path / "x.model")
    (tmp_path / "x.model").write_bytes(b"no model")
    with pytest.raises(ConfigError, match=r"x\.model is not a SentencePiece model; give another"):
        load(tmp_path / "x.model")


def test_transformers_is_only_imported_where_it_is_needed() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from jax_mdlm.data import tokenizer_fast; "
        "assert 'transformers' not in sys.modules and 'tensorflow_datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert tokenizer_fast.FILE == "tokenizer.json"
