"""Pictures of alignments: a posterior, a text that moved, slack on a canvas.

Enters: what `diffusion` computed, and axes of matplotlib that the caller made (a notebook wants its
figures inline). Colours stay apart for colour-blind eyes; what is meant is also written.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SLACK = "–"  # how a slack slot is shown
_CE, _CTC = "#D55E00", "#0072B2"  # vermilion and blue of Okabe and Ito
_OF_SLACK, _OF_TEXT, _OF_REPEAT = (0.88, 0.88, 0.88), (0.80, 0.90, 0.97), (0.94, 0.89, 0.26)


def draw_posterior(axis: Any, posterior: np.ndarray, names: Sequence[str]) -> None:
    """Frames to the right, classes downwards; a percentage wherever the lattice passes.

    Args:
      axis: Axes of matplotlib.
      posterior: float [T, 1 + U]; probability of slack and of each label at each frame.
      names: 1 + U of them, slack's first.
    """
    shares = np.asarray(posterior).T
    possible = np.ma.masked_equal(shares, 0)
    axis.imshow(possible, cmap="Blues", vmin=-0.1, vmax=1, aspect="auto")
    for (row, frame), share in np.ndenumerate(shares):
        if share > 0:  # no alignment passes where it is exactly 0
            text = f"{100 * share:.0f}" if share >= 0.005 else "<1"
            colour = "white" if share > 0.55 else "black"
            axis.text(frame, row, text, ha="center", va="center", color=colour, fontsize=9)
    axis.set_xticks(range(shares.shape[1]), range(1, 1 + shares.shape[1]))
    axis.set_yticks(range(len(names)), names)
    _cut_into_cells(axis, *shares.shape)


def draw_costs(
    axis: Any, expected: str, asked: str, costs: Mapping[str, np.ndarray], title: str
) -> None:
    """What each slot costs: bars of the first loss, steps of the second; both canvases below.

    Args:
      axis: Axes of matplotlib.
      expected: A character a slot: what the model is sure of.
      asked: A character a slot: what cross-entropy asks for.
      costs: Two losses by name, nats [T] each.
      title: Of the picture.
    """
    (first, bars), (second, steps) = costs.items()
    slots = np.arange(len(expected))
    axis.bar(slots, bars, 0.8, color=_CE, alpha=0.6, label=first)
    axis.stairs(steps, np.append(slots, len(slots)) - 0.5, color=_CTC, linewidth=2.4, label=second)
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xticks(slots, [f"{one}\n{two}" for one, two in zip(expected, asked, strict=True)])
    for slot, label in enumerate(axis.get_xticklabels()):
        if expected[slot] != asked[slot]:
            label.set(color=_CE, weight="bold")
    axis.text(-0.02, -0.055, "model\ntarget", transform=axis.transAxes, ha="right", va="top")
    axis.tick_params(axis="x", length=0)
    axis.set_ylabel("nats per slot")
    axis.spines[["top", "right"]].set_visible(False)


def draw_canvases(
    axis: Any, rows: Sequence[tuple[str, str]], maps: Mapping[str, Sequence[str]], text: str
) -> None:
    """Canvases as rows of cells, and what the collapse maps read off them.

    Equal neighbours are coloured: `merge` drops the second one.

    Args:
      axis: Axes of matplotlib.
      rows: A name and a canvas, a character a slot; `SLACK` for slack.
      maps: By name, the text that a map reads off each canvas.
      text: What they should read; what differs is bold and coloured.
    """
    width = max(len(canvas) for _, canvas in rows)
    step = 0.62 * (len(text) + 2)  # slots that a text takes
    cells = np.ones((len(rows), width, 3))
    for row, (_, canvas) in enumerate(rows):
        for slot, token in enumerate(canvas):
            repeats = slot > 0 and token == canvas[slot - 1]
            cells[row, slot] = _OF_SLACK if token == SLACK else _OF_REPEAT if repeats else _OF_TEXT
            axis.text(slot, row, token, ha="center", va="center", fontsize=10)
        for column, texts in enumerate(maps.values()):
            kept = texts[row] == text
            style = {"color": "black"} if kept else {"color": _CE, "weight": "bold"}
            axis.text(
                width + column * step, row, texts[row], va="center", family="monospace", **style
            )
    for column, name in enumerate(maps):
        axis.text(width + column * step, -0.8, name, va="center", fontsize=9, style="italic")
    axis.imshow(cells, aspect="auto")
    _cut_into_cells(axis, len(rows), width)
    axis.set_xlim(-0.5, width + len(maps) * step)
    axis.set_xticks([])
    axis.set_yticks(range(len(rows)), [name for name, _ in rows])


def _cut_into_cells(axis: Any, rows: int, columns: int) -> None:
    """White lines between the cells, and no frame."""
    axis.set_xticks(np.arange(1, columns) - 0.5, minor=True)
    axis.set_yticks(np.arange(1, rows) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=2)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)
