"""The chat in a browser, a canvas that stands alone, and what a notebook shows."""

import html
import json
import re

import jax
import pytest

from jax_mdlm.config import ConfigError
from jax_mdlm.sample import main
from jax_mdlm.viewing import notebook, web
from jax_mdlm.viewing.dialogue import Dialogue, open_dialogue
from jax_mdlm.viewing.player import framed, page, still
from tests.viewing.test_player import ODD, RECORD, data_of, slots_of


@pytest.fixture(scope="module")
def dialogue(talking) -> Dialogue:
    return open_dialogue(talking[1], ["--config.mesh.fsdp=-1"])


def test_a_still_says_what_the_page_says() -> None:
    assert slots_of(still(RECORD)) == [
        ("slot fixed", "slot 1: a 25 % sure", "25%"),
        ("slot fixed", "slot 2: b 100 % sure", "100%"),
        ("slot slack merged fresh", "slot 3: slack, merged this call", "0%"),
        ("slot fixed given", "slot 4: x given", "100%"),
        ("slot fixed given", "slot 5: ↵ given", "100%"),
    ]
    begun = RECORD | {"calls": 1, "changes": [[0, 1, "·"]], "confidence": [None, 0.5, *[None] * 3]}
    assert slots_of(still(begun)) == [
        ("slot mask", "slot 1: mask", "0%"),
        ("slot slack fresh", "slot 2: slack this call 50 % sure", "50%"),
        ("slot mask", "slot 3: mask", "0%"),
        ("slot fixed given", "slot 4: x given", "100%"),
        ("slot fixed given", "slot 5: ↵ given", "100%"),
    ]


def test_a_still_is_no_markup() -> None:
    fragment = still(RECORD | {"start": [ODD] * 4, "changes": []}, note="<b>")
    assert "<script" not in fragment
    assert "<b>" not in fragment
    assert next(title for _, title, _ in slots_of(fragment)) == f"slot 1: {ODD} given"
    assert "■" in still(RECORD | {"start": ["<|eot_id|>"] * 4, "changes": []})


def test_a_frame_holds_the_whole_page() -> None:
    document = page({"run": [RECORD]}, ended=True)
    assert data_of(document)["ended"]
    assert not data_of(page({"run": [RECORD]}))["ended"]
    (held,) = re.findall(r'srcdoc="(.*?)"', framed(document, 300), re.S)
    assert html.unescape(held) == document
    assert 'sandbox="allow-scripts"' in framed(document)
    assert "height: 300px" in framed(document, 300)


def test_pictures_end_with_what_the_sampler_gives(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The texts and the page are those of `sample --html` on the same prompt."""
    asked = "what is masked"
    compile = Dialogue.compile
    monkeypatch.setattr(Dialogue, "compile", lambda *question: compile(*question) and 5.64)
    seen = list(web.pictures(dialogue, asked, [], 0))
    assert seen[0].html == '<p role="status">compiling...</p>'
    assert all('class="denoising"' in one.html for one in seen[1:-1])
    assert len(seen) > 2
    assert all(not one.text and not one.turns for one in seen[:-1])
    (user, answer), *more = seen[-1].turns
    assert (user.content, answer.content, more) == (asked, seen[-1].text, [])
    held = html.unescape(re.findall(r'srcdoc="(.*?)"', seen[-1].html, re.S)[0])
    (run,) = data_of(held)["runs"]
    assert run["generations"][0]["response"] == seen[-1].text
    assert re.match(r"\d calls, \d\.\d\d s \+ 5\.6 s compiling, ", seen[-1].notes)
    again = list(web.pictures(dialogue, asked, [], 0))
    assert "compiling" not in again[0].html + again[-1].notes
    assert again[-1].text == seen[-1].text
    later = list(web.pictures(dialogue, "and then?", seen[-1].turns, 1))
    assert len(later[-1].turns) == 2


def test_a_finished_still_is_the_page_of_its_record(dialogue: Dialogue) -> None:
    """A canvas on its way is the record of the whole generation, cut at its call."""
    seen = list(web.pictures(dialogue, "slack", [], 0))
    held = html.unescape(re.findall(r'srcdoc="(.*?)"', seen[-1].html, re.S)[0])
    record = data_of(held)["runs"][0]["generations"][0]
    for picture in seen:
        found = re.search(r"(\d+) calls?, (\d+) masked", picture.html)
        if not found or "iframe" in picture.html:
            continue
        calls, masked = int(found[1]), int(found[2])
        changes = [change for change in record["changes"] if change[0] < calls]
        part = slots_of(still(record | {"calls": calls, "changes": changes}))
        assert [kinds for kinds, _, _ in slots_of(picture.html)] == [kinds for kinds, _, _ in part]
        assert sum("mask" in kinds for kinds, _, _ in part) == masked


def test_other_settings_keep_the_parameters(dialogue: Dialogue) -> None:
    fast = dialogue.with_settings("--config.sample.steps=2")
    assert fast.model.params is dialogue.model.params
    picture = list(web.pictures(fast, "what is", [], 0))[-1]
    assert picture.notes.startswith("2 calls, ")
    assert list(web.pictures(dialogue, "what is", [], 0))[-1].notes.startswith("8 calls, ")
    with pytest.raises(ConfigError, match=r"sample\.weights and mesh settings say how parameters"):
        dialogue.with_settings("--config.sample.weights=int8")


def test_gradio_streams_to_a_client(dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real server on this machine, and a client that talks to it over HTTP."""
    pytest.importorskip("gradio")
    from gradio_client import Client

    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    app = web.make_app(dialogue)
    _, url, _ = app.launch(prevent_thread_lock=True, quiet=True)
    try:
        client = Client(url, verbose=False)
        outputs = list(client.submit("what is", [], api_name="/answer"))
        assert len(outputs) > 2
        canvases = [output[2] for output in outputs]
        assert any('class="denoising"' in canvas for canvas in canvases[:-1])
        assert "iframe" in canvases[-1]
        said = outputs[-1][1]
        assert [one["role"] for one in said] == ["user", "assistant"]
        expected = list(web.pictures(dialogue, "what is", [], 0))[-1].text
        assert expected.strip() in json.dumps(said, ensure_ascii=False)
        job = client.submit("x" * 999, said, api_name="/answer")
        with pytest.raises(Exception, match="the message takes .* slots"):
            job.result()
        assert client.predict("  ", said, api_name="/answer")[1] == said
    finally:
        app.close()


def test_without_gradio(dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(
        ConfigError, match=r"--web needs Gradio, .*: pip install -e '\S+\[colab\]'; a page"
    ):
        web.make_app(dialogue)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--web", "x"], "--web asks for its prompts itself and takes no TEXT; drop one"),
        (["--web", "--chat"], "--web asks for its prompts itself and takes no --chat; drop one"),
        (["--web", "--html=a"], "--web asks for its prompts itself and takes no --html; drop one"),
        (["--share", "x"], "--share gives --web a public address; give --web, too"),
    ],
)
def test_refusals(talking, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main(["--workdir", str(talking[1]), "--config.mesh.fsdp=-1", *words])


def test_web_serves_the_run(talking, monkeypatch: pytest.MonkeyPatch) -> None:
    served = []
    monkeypatch.setattr(web, "serve", lambda dialogue, share: served.append((dialogue, share)))
    main(["--workdir", str(talking[1]), "--config.mesh.fsdp=-1", "--web", "--share"])
    ((dialogue, share),) = served
    assert share
    assert dialogue.model.options.trace
    assert dialogue.model.step == 7


def test_a_notebook_shows_canvases_and_the_page(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = pytest.importorskip("IPython.display")
    pieces: list[str] = []

    class Handle:
        def update(self, piece) -> None:
            pieces.append(piece._repr_html_())

    def display(piece, display_id: bool = False) -> Handle:
        pieces.append(piece._repr_html_())
        return Handle()

    monkeypatch.setattr(shown, "display", display)
    chat = notebook.Chat(dialogue)
    text = chat.say("what is")
    assert text == list(web.pictures(dialogue, "what is", [], 0))[-1].text
    assert 'class="denoising"' in pieces[0]
    assert "srcdoc" in pieces[-1]
    assert len(chat.turns) == 1
    chat.say("masked")
    assert chat.records[0]["response"] == text
    assert len(chat.records) == 2
    assert len(chat.turns) == 2
    pieces.clear()
    notebook.replay({"one": [RECORD], "two": [RECORD]}, height=300)
    assert "height: 300px" in pieces[0]


@pytest.mark.parametrize(
    ("platform", "stats", "weights", "told"),
    [
        ("cpu", None, "", "cpu, no accelerator: what is shown here uses a small model"),
        ("tpu", {"bytes_limit": 16909336576}, "int8", "1 x TPU v5 lite, 16 GiB each"),
        ("tpu", {"bytes_limit": 33550237696}, "full", "1 x TPU v6 lite, 31 GiB each"),
        ("gpu", {"bytes_limit": 8 * 2**30}, "", "1 x NVIDIA, 8 GiB each"),
        ("tpu", {}, "", "TPU v2, no accelerator: what is shown here uses a small model"),
    ],
)
def test_what_a_chip_holds(
    monkeypatch: pytest.MonkeyPatch, platform: str, stats: dict | None, weights: str, told: str
) -> None:
    class Device:
        device_kind = told.split(",")[0].removeprefix("1 x ")

        def memory_stats(self) -> dict | None:
            return stats

    Device.platform = platform  # pyright: ignore
    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert notebook.weights_that_fit() == weights
    assert notebook.describe_device() == told
