"""The page of `--html`: what is in it, and what a real browser makes of it."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from jax_mdlm.config import ConfigError
from jax_mdlm.data.tokenizer import visible
from jax_mdlm.sample import main
from jax_mdlm.viewing.player import framed, page, still
from jax_mdlm.viewing.show import read_traces

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
ODD = "</script><script>alert(1)</script> <!-- & \u2028 'a' \"b\" ü"
RECORD = {
    "prompt": ODD,
    "response": "ab",
    "calls": 3,
    "start": ["░", "░", "░", "x", "\n"],
    "changes": [[0, 1, "b"], [1, 0, "a"], [1, 2, "b"], [2, 2, "·"]],
    "confidence": [0.25, 1.0, 0.5, None, None],
}


def slots_of(fragment: str) -> list[tuple[str, str, str]]:
    """(classes, title, width of the bar) of each slot of a canvas that stands alone."""
    found = re.findall(r'<li class="(.*?)" title="(.*?)" style="--sure: (.*?)">', fragment)
    return [(kinds, html.unescape(title), sure) for kinds, title, sure in found]


def data_of(document: str) -> dict:
    (text,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', document, re.S
    )
    return json.loads(text)


def test_the_records_come_back_and_cannot_become_markup():
    document = page({"left": [RECORD], "right": [RECORD, RECORD]})
    left, right = data_of(document)["runs"]
    assert (left["name"], len(left["generations"]), len(right["generations"])) == ("left", 1, 2)
    found = left["generations"][0]
    assert found.pop("shown") == ODD
    assert found == {name: RECORD[name] for name in found}
    assert document.count("<script") == document.count("</script>") == 2
    assert "alert(1)</script>" not in document


def test_nothing_is_fetched_and_the_page_is_small():
    document = page({"run": [RECORD]})
    assert "default-src 'none'" in document
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", document)
    assert len(document.encode()) < 20_000


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"prompt": "a"}, "a"),
        ({"question": "b"}, "b"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "c"}]}, "c"),
    ],
)
def test_prompts_of_every_form(row, shown):
    record = {name: value for name, value in RECORD.items() if name != "prompt"} | row
    assert data_of(page({"run": [record]}))["runs"][0]["generations"][0]["shown"] == shown


def test_two_runs_from_the_command(talking, tmp_path):
    _, workdir = talking
    trace, written = tmp_path / "other.jsonl", tmp_path / "page.html"
    words = ["--workdir", str(workdir), "--config.mesh.fsdp=-1", "what is", "masked"]
    main([*words, "--trace", str(trace)])
    main([*words, "--html", str(written), "--beside", str(trace)])
    own, other = data_of(written.read_text())["runs"]
    assert (own["name"], other["name"]) == (workdir.name, "other")
    assert own["generations"] == other["generations"]
    assert [one["response"] for one in own["generations"]] == [
        record["response"] for record in read_traces(str(trace))
    ]


@pytest.mark.parametrize(
    ("token", "seen"),
    [
        *[("\n", "↵"), ("\n\n", "↵↵"), ("a\tb", "a⇥b"), ("\r\n", "␍↵"), (" ", "␣"), ("  ", "␣␣")],
        *[("Ġa", "␣a"), ("▁", "␣"), ("Ċ", "↵"), (" the", " the"), ("<|eot_id|>", "<|eot_id|>")],
    ],
)
def test_no_token_is_an_empty_box(token, seen):
    assert visible(token) == seen


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--html=a", "--output=b"], "--html holds all generations in one page, and --output is"),
        (["--beside=a"], "--beside names what --html shows beside the run; give --html FILE"),
        (["--html=a", "--beside=/no/file"], "/no/file must be a file of --trace, but"),
        (["--html=/no/folder/a"], "--html /no/folder/a must be a file that can be written, but"),
    ],
)
def test_refusals(talking, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        main(["--workdir", str(talking[1]), "--config.mesh.fsdp=-1", "x", *words])


def test_other_files_are_no_traces(tmp_path):
    path = tmp_path / "rows.jsonl"
    for text in ("[1]", "{", '{"prompt": "a"}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"rows\.jsonl:1 must be a generation of --trace, it"):
            read_traces(str(path))
    path.write_text("")
    with pytest.raises(ConfigError, match=r"rows\.jsonl must hold at least one generation of --tr"):
        read_traces(str(path))
    with pytest.raises(ConfigError, match="run a must hold at least one generation to replay"):
        page({"a": []})


# Runs inside the page: uses it as a person does, and leaves what was seen in the document.
DRIVE = """
const seen = {errors: []}, wait = time => new Promise(done => setTimeout(done, time));
const slots = () => [...document.querySelectorAll("article")].map(article =>
  [...article.querySelectorAll("li")].map(slot => slot.firstChild.textContent));
const texts = () => [...document.querySelectorAll(".text")].map(text => text.textContent);
const press = key =>
  document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const look = () => ({slots: slots(), texts: texts(), where: where.textContent});
addEventListener("error", event => seen.errors.push(event.message));
document.addEventListener("securitypolicyviolation", event => seen.errors.push(event.blockedURI));
(async () => {
  seen.begin = look();
  speed.value = 30;
  play.click();
  await wait(10);
  seen.playing = play.textContent;
  while (play.textContent !== "Play") await wait(20);
  seen.end = look();
  seen.kinds = [...document.querySelector("article").querySelectorAll("li")].map(slot =>
    [slot.className, slot.title, slot.style.getPropertyValue("--sure")]);
  seen.merged = [...document.querySelectorAll("article .merged")].map(slot => slot.title);
  seen.status = by("status").textContent;
  call.value = 2;
  call.dispatchEvent(new Event("input"));
  seen.scrubbed = look();
  press("ArrowLeft");
  seen.left = look();
  press("End");
  press("Home");
  seen.home = look();
  press(" ");
  await wait(10);
  press(" ");
  seen.stopped = play.textContent;
  parent.postMessage(seen, "*");
})();
"""
# In the page around it, or in the page itself: what was seen becomes a part of the document.
NOTE = """
addEventListener("message", event => {
  const result = document.createElement("pre");
  result.id = "seen";
  result.textContent = JSON.stringify(event.data);
  document.body.append(result);
});
"""


def seen_in_a_browser(folder: Path, document: str, width: int = 1200) -> dict:
    """What a script in a document posted to it, in Chromium, without a word on the console."""
    path = folder / "page.html"
    path.write_text(document, "utf-8")
    assert BROWSER is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-quic"]
    flags += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},800"]
    # A frame of another process would not share the virtual clock.
    flags += ["--disable-features=IsolateSandboxedIframes"]
    flags += ["--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom"]
    found = subprocess.run(
        [BROWSER, *flags, path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in found.stderr
    result = re.search(r'<pre id="seen">(.*?)</pre>', found.stdout, re.S)
    assert result, found.stdout[-2000:]
    return json.loads(html.unescape(result[1]))


# What a page opens with, and how far it is wider than its frame.
OPENED = """
parent.postMessage({
  where: where.textContent, play: play.textContent, inner: innerWidth,
  slots: [...document.querySelectorAll("article li")].map(slot => slot.firstChild.textContent),
  over: document.scrollingElement.scrollWidth - innerWidth,
}, "*");
"""


def opened(folder: Path, document: str, width: int = 390) -> dict:
    """How a page opens in a frame of a width: a window of Chromium has a least one."""
    document = document.replace("open();\n</script>", f"open();\n{OPENED}</script>")
    frame = framed(document).replace("width: 100%", f"width: {width}px")
    return seen_in_a_browser(
        folder, f"<!doctype html><title>x</title><script>{NOTE}</script>{frame}"
    )


in_a_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium: .ci/run installs it")
END = "<|endoftext|>"


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize(
    ("changes", "ended", "where"),
    [
        ([[0, 1, "b"], [1, 0, "a"]], False, 1),
        ([[0, 2, END], [1, 1, "·"], [2, 0, "a"]], False, 3),  # ends and slack are no text
        ([[1, 2, END], [2, 1, "·"]], False, 2),
        ([], False, 4),
        ([[0, 1, "b"]], True, 4),
    ],
)
def test_a_page_opens_where_there_is_something_to_see(tmp_path, changes, ended, where):
    record = RECORD | {"calls": 4, "start": ["░"] * 3, "changes": changes}
    seen = opened(tmp_path, page({"run": [record]}, ended=ended))
    assert (seen["where"], seen["play"]) == (f"{where} of 4", "Play")
    assert (set(seen["slots"]) == {"░"}) == (changes == [])


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize("width", [320, 390, 1200])
def test_a_page_is_no_wider_than_its_screen(tmp_path, width):
    """With long prompts to choose from, a name and a token without a break."""
    long = RECORD | {"prompt": "what is a masked diffusion model " * 9, "start": ["y" * 300] * 5}
    seen = opened(tmp_path, page({"run" * 60: [long] * 2, "other": [long]}), width)
    assert seen["inner"] == width
    assert seen["over"] <= 0


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize(("width", "inside"), [(1200, False), (400, False), (1000, True)])
def test_a_browser_plays_scrubs_and_ends_with_the_text(
    tmp_path: Path, width: int, inside: bool
) -> None:
    """Alone on a wide and a narrow screen, and in the frame of a notebook's output."""
    document = page({"one": [RECORD], "other": [RECORD | {"calls": 2, "response": "abb"}]})
    driven = document.replace(
        "open();\n</script>", f"open();\n{NOTE * (not inside)}{DRIVE}</script>"
    )
    if inside:
        driven = f"<!doctype html><title>x</title><script>{NOTE}</script>{framed(driven)}"
    seen = seen_in_a_browser(tmp_path, driven, width)
    assert seen["errors"] == []
    masks, end = ["░", "░", "░", "x", "↵"], ["a", "b", "·", "x", "↵"]
    assert seen["home"]["slots"] == [masks, masks]
    assert seen["home"]["where"] == "0 of 3"
    assert seen["begin"] == seen["left"]
    assert seen["begin"]["where"] == "1 of 3"
    assert seen["playing"] == "Stop"
    assert seen["end"] == {
        "slots": [end, ["a", "b", "b", "x", "↵"]],
        "texts": ["ab", "abb"],
        "where": "3 of 3",
    }
    assert [tuple(one) for one in seen["kinds"]] == slots_of(still(RECORD))
    assert seen["merged"] == ["slot 3: slack, merged this call"]
    assert seen["status"] == "one: finished: ab. other: finished: abb"
    assert seen["scrubbed"]["slots"] == [["a", "b", "b", "x", "↵"]] * 2
    assert seen["scrubbed"]["texts"] == ["5 of 5 slots fixed", "abb"]
    assert seen["left"]["slots"] == [["░", "b", "░", "x", "↵"]] * 2
    assert seen["stopped"] == "Play"
