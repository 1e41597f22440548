"""The canvas on the screen: signs, highlights, characters in parts, escapes, lines, windows."""

import io
import itertools
import random
import textwrap
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from etils import epath
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from jax_mdlm.config import TokenizerConfig
from jax_mdlm.data.tokenizer import Tokenizer, load_tokenizer
from jax_mdlm.sampling import Answer
from jax_mdlm.viewing import view
from jax_mdlm.viewing.prompts import Prompt
from jax_mdlm.viewing.show import show_line
from jax_mdlm.viewing.view import CanvasView, Pace, Reader, escape_controls, window, wrap

NOWHERE = range(0)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    texts = ["AH L IH NG M AH N T alignment", "the masks are filled in, the rest has room"] * 20
    sizes = {"symbols": 100, "bpe": 300, "sentencepiece": 340}
    return {
        kind: load_tokenizer(
            TokenizerConfig(kind, vocab_size=size),
            epath.Path(tmp_path_factory.mktemp(kind)),
            lambda: texts,
        )
        for kind, size in sizes.items()
    }


@pytest.fixture
def bpe(tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizers["bpe"]


def answer(slots: Sequence[int], committed_at: Sequence[int] | None = None) -> Answer:
    order = [0] * len(slots) if committed_at is None else committed_at
    given = np.zeros(len(slots), bool)
    return Answer([], np.array(slots, np.int32), np.array(order, np.int32), given, 1)


def shown(tokenizer: Tokenizer, slots: Sequence[int], *order: int) -> str:
    text, _ = Reader(tokenizer).canvas(answer(slots, order or None), since=9, block=NOWHERE)
    return text.plain


def styled(text: Text) -> list[tuple[str, str]]:
    """Runs of equal style."""
    return [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]


def test_the_table_of_slots_has_a_line_of_tokens_whatever_they_are(bpe: Tokenizer) -> None:
    slots = bpe.encode("to\n\nit\t.")
    text = show_line(Prompt("q", None, {"prompt": "q"}), "a", answer(slots), bpe, canvas=True)
    line, tokens, calls = text.splitlines()
    assert (line, tokens.count("↵"), tokens.count("⇥")) == ("q -> a", 2, 1)
    assert calls.split() == ["call", *["0"] * len(slots)]


def on_screen(renderable: object, width: int = 60, height: int = 20) -> str:
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, highlight=False
    )
    console.print(renderable)
    return console.file.getvalue()  # pyright: ignore


def test_signs_and_highlights(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["symbols"]
    ids = tokenizer.ids
    slots = tokenizer.encode("AH L")
    slots = [slots[0], ids.slack, slots[1], ids.mask, ids.mask, ids.terminator, ids.mask, ids.eos]
    now = answer(slots, [0, 2, 3, -1, -1, 3, -1, 3])
    text, focus = Reader(tokenizer).canvas(now, since=3, block=range(4))
    assert text.plain == "AH · L ░ ░ ■"
    assert [run for run in styled(text) if run[0].strip()] == [
        ("·", "bold magenta"),
        ("L", "bold green"),
        ("░", "cyan"),
        ("░", "dim"),  # of a later block
        (" ■", "bold green"),
    ]
    assert text.plain[focus] == "░"
    assert focus == text.plain.index("░")


def test_slots_that_are_not_appended_yet_do_not_end_the_text(bpe: Tokenizer) -> None:
    slots = [*bpe.encode("the"), *[bpe.ids.eos] * 4]
    hidden = [0] * (len(slots) - 4) + [-1] * 4
    assert shown(bpe, slots, *hidden) == "the"
    assert shown(bpe, slots) == "the ■"


@pytest.mark.parametrize("kind", ["symbols", "bpe", "sentencepiece"])
def test_a_finished_canvas_reads_as_the_decoded_text(
    tokenizers: dict[str, Tokenizer], kind: str
) -> None:
    tokenizer = tokenizers[kind]
    texts = {"symbols": ["AH L IH NG M", "a l i g n m e n t"]}
    for text in texts.get(kind, ["the rest has room", "größer: 日本語 🙂\n\n  – x"]):
        ids = tokenizer.encode(text)
        assert shown(tokenizer, ids) == tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece"])
def test_a_character_in_several_tokens(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    smile = tokenizer.encode("🙂")
    assert len(smile) == 4, "or the test tests nothing"
    ids = tokenizer.ids
    assert shown(tokenizer, [*smile[:2], ids.slack, *smile[2:]]) == "·🙂"
    assert shown(tokenizer, [*smile[:3], ids.mask, *smile]) == "\ufffd░🙂"
    assert shown(tokenizer, [ids.mask, *smile[:2]]) == "░\ufffd"
    # Parts that never become a character do not hold the rest up.
    wrong = shown(tokenizer, [smile[1]] * 4 + tokenizer.encode("the"))
    assert wrong.endswith("the")
    assert set(wrong[:-3].strip()) == {"\ufffd"}


def test_a_space_before_a_word_behind_a_mask_stays(tokenizers: dict[str, Tokenizer]) -> None:
    """SentencePiece leaves the first space of what it decodes out, if the model says so."""

    class DropsFirstSpace:
        ids, vocab_size = tokenizers["bpe"].ids, tokenizers["bpe"].vocab_size
        token = tokenizers["bpe"].token

        def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
            return tokenizers["bpe"].decode(ids).removeprefix(" ")

    slots = [DropsFirstSpace.ids.mask, *tokenizers["bpe"].encode(" the")]
    assert shown(DropsFirstSpace(), slots) == "░ the"  # pyright: ignore


def test_ids_without_a_token_are_numbers(bpe: Tokenizer) -> None:
    assert shown(bpe, [100_000]) == "<100000>"


def test_model_output_is_neither_markup_nor_escapes(bpe: Tokenizer) -> None:
    evil = "[red]a[/red] :smile: \x1b[31m\x1b]0;t\x07\r\x08\x9b2J\u202eabc\x00\x7f end"
    text, focus = Reader(bpe).canvas(answer(bpe.encode(evil)), since=9, block=NOWHERE)
    canvas = CanvasView()
    canvas.update(text, focus, evil.replace("\r", ""))
    safe = r"[red]a[/red] :smile: \x1b[31m\x1b]0;t\x07\r\x08\x9b2J\u202eabc\x00\x7f end"
    assert escape_controls(evil) == text.plain == safe
    printed = on_screen(Text(escape_controls(evil)), width=100)
    assert printed == safe + "\n"
    assert escape_controls("a\tb\nc é 🙂 שלום") == "a\tb\nc é 🙂 שלום"


SAMPLES = [
    "░" * 50,
    "the " + "░" * 37 + " end",
    "a\n\n  indented ░░░\nlast",
    "x" * 45 + " tail",
    "日本語" * 9 + "░日本░",
    "word     " * 12,
    "",
    "one",
]


@pytest.mark.parametrize("width", [1, 2, 7, 20, 200])
@pytest.mark.parametrize("sample", SAMPLES)
def test_lines(sample: str, width: int) -> None:
    if width == 1:
        sample = sample.replace("日本語", "ab").replace("日本", "c")  # no room for wide ones
    lines, _ = wrap(Text(sample), width, 0)
    assert all(cell_len(line.plain) <= width for line in lines)
    assert "".join("".join(line.plain for line in lines).split()) == "".join(sample.split())
    assert len(lines) >= sample.count("\n") + 1


@pytest.mark.parametrize("width", [6, 13, 40])
def test_words_are_wrapped_as_usual(width: int) -> None:
    words = ["Masked", "diffusion", "fills", "masks,", "abcdefghijklmnop", "in", "any", "order"]
    words += ["".join(random.Random(n).choices("abcde", k=n % 7 + 1)) for n in range(60)]
    text = " ".join(word[:width] for word in words)
    lines, _ = wrap(Text(text), width, 0)
    assert [line.plain for line in lines] == textwrap.wrap(text, width)


def test_characters_of_any_width() -> None:
    """Accents without a letter, joiners, wide and narrow ones, in any order."""
    draw = random.Random(0)
    alphabet = "ab ░\n\u0301\u200d\ufe0f🙂👩日é\u1160\ufffd"
    for _ in range(2000):
        text = "".join(draw.choices(alphabet, k=draw.randrange(30)))
        lines, _ = wrap(Text(text), draw.randrange(2, 9), draw.randrange(30))
        assert "".join("".join(line.plain for line in lines).split()) == "".join(text.split())


def test_masks_fill_the_line_behind_a_word() -> None:
    lines, _ = wrap(Text("the " + "░" * 14), 10, 0)
    assert [line.plain for line in lines] == ["the ░░░░░░", "░░░░░░░░"]


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_focus_is_in_its_line(sample: str) -> None:
    for focus in range(len(sample)):
        marked = sample[:focus] + "@" + sample[focus + 1 :] if sample[focus].isalpha() else None
        if marked is None or cell_len(sample[focus]) != 1:
            continue
        lines, number = wrap(Text(marked), 9, focus)
        assert "@" in lines[number].plain


def test_a_window_shows_the_focus_and_counts_the_rest() -> None:
    lines = [Text(f"line {number}") for number in range(30)]
    for rows in (1, 2, 3, 5, 29, 30, 31):
        for focus in range(30):
            seen = [line.plain for line in window(list(lines), focus, rows)]
            assert len(seen) == min(rows, 30)
            assert f"line {focus}" in seen
            told = {line.split()[3]: int(line.split()[1]) for line in seen if line[0] == "⋮"}
            if rows >= 3:
                whole = len([line for line in seen if line[0] != "⋮"])
                assert whole + sum(told.values()) == 30


@pytest.mark.parametrize(("width", "height"), [(80, 24), (20, 5), (9, 3), (4, 2), (1, 1)])
def test_a_frame_leaves_room_on_any_terminal(width: int, height: int) -> None:
    canvas = CanvasView()
    canvas.update(Text("word ░░░ " * 300), 1000, "12 calls, 900 masked")
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True)
    lines = console.render_lines(canvas, pad=False)
    assert len(lines) <= max(height - 2 + 1, 2)
    widths = [sum(segment.cell_length for segment in line) for line in lines]
    assert max(widths) <= max(width, 1)
    if width > 2:
        assert max(widths[:-1]) < width


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize("call_seconds", [1e-4, 1e-3, 0.02, 0.5])
@pytest.mark.parametrize("frame_seconds", [1e-3, 2e-2])
def test_the_pace(
    monkeypatch: pytest.MonkeyPatch, call_seconds: float, frame_seconds: float
) -> None:
    clock = Clock()
    monkeypatch.setattr(view, "time", clock)
    pace = Pace()
    asked = []
    for _ in range(30):
        calls = pace()
        asked.append(calls)
        clock.now += calls * call_seconds
        with pace.frame():
            clock.now += frame_seconds
    assert asked[0] == 1, "the first tokens are seen at once"
    assert all(after <= 2 * before for before, after in itertools.pairwise(asked))
    span = asked[-1] * call_seconds
    assert span + frame_seconds <= max(0.7, 10.1 * frame_seconds)
    if call_seconds < 0.05:
        assert 1 / (span + frame_seconds) <= 20
        assert frame_seconds / (span + frame_seconds) <= 0.12
    else:
        assert asked == [1] * 30, "each call is seen"


def test_the_pace_is_what_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kinds of calls, as with a cache: it follows."""
    clock = Clock()
    monkeypatch.setattr(view, "time", clock)
    pace = Pace()

    def run(call_seconds: float) -> int:
        calls = 0
        for _ in range(12):
            calls = pace()
            clock.now += calls * call_seconds
            with pace.frame():
                pass
        return calls

    quick: Callable[[], int] = lambda: run(0.001)  # noqa: E731
    assert quick() == 67
    assert run(0.01) == 7
    assert quick() == 67


def test_random_canvases_never_break_the_reader(bpe: Tokenizer) -> None:
    draw = random.Random(0)
    reader = Reader(bpe)
    for _ in range(200):
        slots = [draw.randrange(310) for _ in range(40)]
        order = [draw.randrange(-1, 5) for _ in slots]
        text, focus = reader.canvas(answer(slots, order), since=3, block=range(8, 16))
        assert 0 <= focus <= len(text)
        assert text.plain == escape_controls(text.plain)
        canvas = CanvasView()
        canvas.update(text, focus, "")
        printed = Console(file=io.StringIO(), width=30, height=9, color_system=None)
        printed.print(canvas)
        assert "\x1b" not in printed.file.getvalue()  # pyright: ignore
