"""The page of `--html`: generations that replay themselves, in one file that asks for no other.

Enters: records of `--trace`. Leaves: `player.html` with the records inside. It works from a disk,
in a notebook (as the `srcdoc` of a frame), without a network and without this package. `still` is
one canvas of it without a script, for what is shown while it is still being denoised.
"""

import contextlib
import html
import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jax_mdlm.config import ConfigError
from jax_mdlm.data.examples import parse_messages, without_answer
from jax_mdlm.data.tokenizer import BLANKS, MASK_SIGN, SLACK_SIGN, visible
from jax_mdlm.viewing.prompts import last_text
from jax_mdlm.viewing.show import TraceWriter, read_traces, trace_of

_FIELDS = ("calls", "start", "changes", "confidence", "response")
_END = re.compile(r"<\|.+\|>")


def page(runs: Mapping[str, Sequence[Mapping[str, Any]]], ended: bool = False) -> str:
    """HTML that replays the generations of one run, or of two side by side.

    Args:
      runs: Records of `--trace` by the name of their run, in the same order of prompts.
      ended: It opens with the finished canvas, for who has just watched it; else with the first
        that shows text: a canvas of masks alone says nothing in a preview or a print.

    Returns:
      A whole document, about 11 kB and what the records take. Nothing in it is fetched, and no text
      of a model can become markup: the records are data, and only ever shown as text.

    Raises:
      ConfigError: a run without a generation.
    """
    if empty := [name for name, records in runs.items() if not records]:
        raise ConfigError(f"run {empty[0]} must hold at least one generation to replay, got none")
    data = {
        "mask": MASK_SIGN,
        "slack": SLACK_SIGN,
        "blanks": BLANKS,
        "ended": ended,
        "runs": [
            {"name": name, "generations": [_generation(record) for record in records]}
            for name, records in runs.items()
        ],
    }
    # `</script>` and `<!--` end or change a script element wherever they stand.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    template = importlib.resources.files("jax_mdlm.viewing").joinpath("player.html")
    return template.read_text("utf-8").replace("@STYLE@", style()).replace("@DATA@", text)


def framed(document: str, height: int = 480) -> str:
    """A page of `page` as an element that stands in another page: a notebook's output, a chat.

    Args:
      document: The whole page.
      height: Pixels; what is longer scrolls.

    Returns:
      An `iframe` that holds the page itself (`srcdoc`) and may run its script and nothing else.
    """
    return (
        f'<iframe srcdoc="{html.escape(document)}" sandbox="allow-scripts" '
        'title="Denoising, call by call" '
        f'style="width: 100%; height: {height}px; border: 0"></iframe>'
    )


@contextlib.contextmanager
def open_page(path: str | None, name: str, beside: str | None) -> Iterator[TraceWriter]:
    """A function that takes a generation; the page is written when all are in.

    Args:
      path: Of a local file; None = no page is wanted.
      name: Of the run, above its canvas.
      beside: A file of `--trace` from another run, which is shown at the right; None = none.

    Raises:
      ConfigError: a file cannot be read or written.
    """
    if path is None or jax.process_index() != 0:
        yield lambda *_: None
        return
    runs: dict[str, list[dict[str, Any]]] = {name: []}
    if beside:
        other = Path(beside).stem
        runs[other if other != name else f"{other} (2)"] = read_traces(beside)
    try:
        Path(path).touch()  # before minutes of decoding, not after
        yield lambda *generation: runs[name].append(trace_of(*generation))
        Path(path).write_text(page(runs), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--html {path} must be a file that can be written, but {error}"
        ) from error


def _generation(record: Mapping[str, Any]) -> dict[str, Any]:
    return {field: record[field] for field in _FIELDS} | {"shown": _shown(record)}


def _shown(record: Mapping[str, Any]) -> str:
    """The prompt of a record, in whichever form its row had it."""
    if "messages" in record:
        return last_text(without_answer(parse_messages(record["messages"], "messages"))[0])
    return str(record.get("prompt", record.get("question", "")))


def style() -> str:
    """The style sheet of a canvas; everything in it holds below an element of class `denoising`."""
    return importlib.resources.files("jax_mdlm.viewing").joinpath("canvas.css").read_text("utf-8")


def still(record: Mapping[str, Any], note: str = "") -> str:
    """HTML of the canvas after the last call of a generation.

    Args:
      record: As `show.trace_of` makes it, of a finished or unfinished answer.
      note: A line below the canvas.

    Returns:
      A `div` with its own style. No text of a model can become markup.
    """
    slots = [_slot(record, slot) for slot in range(len(record["start"]))]
    below = f'<p role="status">{html.escape(note)}</p>' if note else ""
    return (
        f'<div class="denoising" style="padding: .8rem"><style>{style()}</style>'
        f'<ol class="canvas">{"".join(slots)}</ol>{below}</div>'
    )


def _slot(record: Mapping[str, Any], slot: int) -> str:
    """As `slotElement` of the page."""
    changes = [(call, token) for call, at, token in record["changes"] if at == slot]
    tokens = [record["start"][slot], *(token for _, token in changes)]
    token, sure = tokens[-1], record["confidence"][slot]
    given = not changes and token != MASK_SIGN
    merged = len(tokens) > 1 and token == SLACK_SIGN and tokens[-2] != MASK_SIGN
    kinds, said = ["slot"], [f"slot {slot + 1}:"]
    if token == MASK_SIGN:
        kinds.append("mask")
        said.append("mask")
    elif token == SLACK_SIGN:
        kinds += ["slack", "merged"] if merged else ["slack"]
        said.append("slack, merged" if merged else "slack")
    else:
        kinds += ["fixed", "given"] if given else ["fixed"]
        said += [visible(token), "given"] if given else [visible(token)]
    if changes and changes[-1][0] == record["calls"] - 1:
        kinds.append("fresh")
        said.append("this call")
    width = "100%" if given else "0%"
    if sure is not None and token != MASK_SIGN and not given and not merged:
        said.append(f"{int(100 * sure + 0.5)} % sure")  # rounds as JavaScript does
        width = f"{100 * sure:g}%"
    words = html.escape(" ".join(said))
    sign = "■" if _END.fullmatch(token) else html.escape(visible(token))
    return (
        f'<li class="{" ".join(kinds)}" title="{words}" style="--sure: {width}">'
        f'<span aria-hidden="true">{sign}</span><span class="hidden">{words}</span></li>'
    )
