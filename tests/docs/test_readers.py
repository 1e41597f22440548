"""What a first reader meets: words explained, figures that agree, commands that do no harm."""

import math
import re

import pytest

from jax_mdlm import command
from tests.docs.commands import read_commands
from tests.docs.parsing import ROOT
from tests.docs.prepared import all_blocks
from tests.docs.test_links import PAGES, links

README = (ROOT / "README.md").read_text()
FIRST_SCREEN = README.split("\n## ")[0]


@pytest.mark.parametrize(
    ("word", "explained"),
    [
        ("CE", "cross-entropy (CE)"),
        ("CTC", "CTC, the loss of speech recognition"),
        ("canvas", "canvas, a row of slots"),
    ],
)
def test_the_first_screen_explains_a_word_where_it_first_stands(word: str, explained: str) -> None:
    said = " ".join(FIRST_SCREEN.split())
    assert explained in said
    assert not re.search(rf"\b{word}\b", said[: said.index(explained)])


def test_the_first_screen_says_what_was_not_measured_and_what_it_is_for() -> None:
    said = " ".join(FIRST_SCREEN.split())
    assert "Nothing was measured on an accelerator" in said
    assert "It is meant for long answers decoded in few parallel steps" in said


def test_two_error_rates_of_one_model_are_told_apart() -> None:
    """16.2 % above the quickstart's 13.7 %: other updates, other words, and it says so."""
    assert "950 updates, 2,000 test words" in FIRST_SCREEN
    assert "16.2 % above are after 950 updates, on 2,000 words" in " ".join(README.split())
    assert "5,000 test words, 1,900 training steps" in README


def test_a_badge_opens_what_it_says() -> None:
    for page in PAGES:
        for label, target in re.findall(
            r"\[!\[([^\]]*)\]\([^)]*\)\]\(([^)]*)\)", (ROOT / page).read_text()
        ):
            assert "Colab" not in label or target.startswith("https://colab."), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_equal_to_the_last_bit_is_bit_for_bit(page: str) -> None:
    text = " ".join((ROOT / page).read_text().split())
    assert not re.findall(r"\b(?:bit by bit|byte by byte)\b", text)  # that means: gradually


def test_a_comparison_with_a_rival_names_it_in_its_command() -> None:
    for line in README.splitlines():
        if "PyTorch loop" in line:
            assert "--rival tests/reference/generate_torch.py" in line
            return
    pytest.fail("README has no row for the sampler's rival")


def test_no_command_writes_over_what_is_committed() -> None:
    found = 0
    for block in all_blocks():
        if block.language != "sh":
            continue
        for one in read_commands(block.text):
            for flag, value in zip(one.words, one.words[1:], strict=False):
                if flag in ("--output", "--figure", "--html", "--trace"):
                    found += 1
                    assert not value.startswith("docs/"), f"{block.name}: {flag} {value}"
    assert found > 5
    for path in (ROOT / "configs").rglob("*.py"):
        assert not re.findall(r"--(?:output|figure) docs/", path.read_text()), path.name


def test_hours_on_slices_follow_from_their_tokens_a_second() -> None:
    config = command.parse_config("llada_ctc", [])
    updates = math.ceil(100_000 * config.train.epochs / config.train.batch_size)
    page = (ROOT / "launch" / "README.md").read_text()
    assert f"{updates:,} updates" in page
    rows = re.findall(
        r"^\| \S+ \S+ \| (\d+) \|.*\| ([\d,]+) \| \d+% \| ([\d.]+) \| (\d+) \|$", page, re.MULTILINE
    )
    assert len(rows) == 4
    for chips, rate, hours, chip_hours in rows:
        slots = updates * config.train.batch_size * config.data.length
        expected = slots / float(rate.replace(",", "")) / 3600
        assert float(hours) == pytest.approx(expected, abs=0.06)
        assert float(chip_hours) == pytest.approx(expected * int(chips), rel=0.01)


def test_a_data_set_has_a_name_a_size_and_a_licence() -> None:
    page = "docs/guides/pods.md"
    text = " ".join((ROOT / page).read_text().split())
    said = text.split("## Which data")[1].split("## ")[0]
    assert "https://huggingface.co/datasets/allenai/tulu-3-sft-mixture" in links(page)
    for fact in ("939,343 rows", "ODC-BY-1.0", "does not, to our knowledge, name the data"):
        assert fact in said
