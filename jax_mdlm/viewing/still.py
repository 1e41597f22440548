"""One canvas as HTML without a script, for what is shown while it is still being denoised.

Enters: a record of `--trace`, finished or not. Leaves: the list of slots that the page of `--html`
shows at the record's last call, with the same words for screen readers and the same style.
"""

import html
import importlib.resources
import re
from collections.abc import Mapping
from typing import Any

from jax_mdlm.data.tokenizer import MASK_SIGN, SLACK_SIGN, visible

_END = re.compile(r"<\|.+\|>")


def style() -> str:
    """The style sheet of a canvas; everything in it holds below an element of class `denoising`."""
    return importlib.resources.files("jax_mdlm.viewing").joinpath("canvas.css").read_text("utf-8")


def still(record: Mapping[str, Any], note: str = "") -> str:
    """HTML of the canvas behind the last call of a generation.

    Args:
      record: As `traces.trace_of` makes it, of a finished or unfinished answer.
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
