"""Small tokenizers and data that several tests of the room use."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from etils import epath
from tokenizers import decoders, models, pre_tokenizers, trainers

from jax_mdlm.config import DataConfig, TokenizerConfig
from jax_mdlm.data import special
from jax_mdlm.data.chat import Template, render_prompt
from jax_mdlm.data.draws import shuffled
from jax_mdlm.data.examples import Example, Message, SplitRows, answers, pair
from jax_mdlm.data.tokenizer import Tokenizer, load_tokenizer

TEXTS = [
    "The cat sat on the mat.\n\nWhat did the cat do? It sat, and then it slept.",
    "How many clips did she sell in April and May? 48 + 24 = 72",
    "user assistant system",
]
# Written from the published template's behaviour: header, trimmed content, end of turn for every
# message, the start token before the first, an assistant header at the end.
JINJA = (
    "{%- for m in messages -%}{%- if loop.first -%}{{ bos_token }}{%- endif -%}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content.strip() "
    "+ '<|eot_id|>' }}{%- endfor -%}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)


LLADA_TOKENS = (
    special.START,
    special.EOS,
    special.RESERVED,
    special.MASK,
    special.HEADER_START,
    special.HEADER_END,
    special.TERMINATOR,
)


def save_llada(folder: Path, tokens: tuple[str, ...]) -> Path:
    """A folder like those of LLaDA: byte-level BPE, `tokens` at its end, remote code announced."""
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 4, trainer)
    backend.add_special_tokens(list(tokens))
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=special.START,
        eos_token=special.EOS,
        pad_token=special.EOS,
        chat_template=JINJA,
    )
    wrapped.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["trust_remote_code"] = True
    config["auto_map"] = {"AutoTokenizer": ["remote_code.Evil", "remote_code.Evil"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "remote_code.py").write_text("raise SystemExit('remote code was run')\n")
    return folder


@pytest.fixture(scope="session")
def llada_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llada(tmp_path_factory.mktemp("llada_instruct"), LLADA_TOKENS)


@pytest.fixture(scope="session")
def llada(llada_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    config = TokenizerConfig(kind="huggingface", path=str(llada_folder))
    return load_tokenizer(config, epath.Path(tmp_path_factory.mktemp("kept")))


@pytest.fixture(scope="session")
def symbols(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    config = TokenizerConfig(kind="symbols", vocab_size=100)
    folder = epath.Path(tmp_path_factory.mktemp("symbols"))
    return load_tokenizer(config, folder, lambda: ["alignment", "AH L AY N M EH T", "1 2 3"])


@pytest.fixture(scope="session")
def make_rows() -> Callable[[list[Example]], SplitRows]:
    def make(examples: list[Example]) -> SplitRows:
        return SplitRows("toy", examples, [f"toy.jsonl:{i + 1}" for i in range(len(examples))])

    return make


def epoch_order(seed: int, epoch: int, count: int) -> list[int]:
    """The rows of an epoch, in the order of training."""
    places = np.arange(count)
    return shuffled(seed, np.full_like(places, epoch), count, places).tolist()


def letters(count: int, sign: str = "a") -> str:
    return sign * count


def example(prompt: int, response: int) -> Example:
    """A pair of that many tokens each, for the tokenizer `symbols`."""
    return pair(letters(prompt), letters(response, "b"))


def dialogue(*sizes: int) -> Example:
    """Turns of that many letters each; the user begins."""
    roles = ("user", "assistant")
    return tuple(
        Message(roles[i % 2], letters(size, "abcdefgh"[i % 8])) for i, size in enumerate(sizes)
    )


def plain_config(**changes: Any) -> DataConfig:
    values: dict[str, Any] = {
        "template": "plain",
        "length": 16,
        "max_labels": 8,
        "end_padding": 3,
        "tokenizer": TokenizerConfig(kind="symbols"),
    }
    return DataConfig(**(values | changes))


def render_example(
    tokenizer: Tokenizer, example: Example, template: Template, turn: int = -1
) -> tuple[list[int], list[int]]:
    """Prompt and response of one assistant turn; what comes after that turn is left out."""
    position = answers(example)[turn]
    prompt = render_prompt(tokenizer, example[:position], template)
    response = tokenizer.encode(example[position].content.strip())
    return prompt, [*response, tokenizer.ids.terminator]
