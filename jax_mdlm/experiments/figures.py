"""Figures: curves with their intervals, and pictures of alignments; matplotlib (extra `eval`).

A picture of an alignment (a posterior, a text that moved, slack on a canvas) is drawn on axes that
the caller made: a notebook wants its figures inline. Colours stay apart for colour-blind eyes; what
is meant is also written.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_mdlm.config import ConfigError
from jax_mdlm.evaluation.intervals import Interval
from jax_mdlm.extras import how_to_install

# Colours that stay apart in grey and for colour-blind eyes (Okabe and Ito), with a mark each.
_COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
_MARKS = "osD^vPX*"


def pyplot() -> Any:
    """matplotlib.pyplot without a screen.

    Raises:
      ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(
            f"a figure needs the package matplotlib; {how_to_install('eval')}"
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def rows_in_words(count: int, name: str) -> str:
    """`2,000 test rows of pronunciations` for 2000 rows of `pronunciations/test`."""
    source, _, split = name.rpartition("/")
    if source and split in ("train", "validation", "test"):
        return f"{count:,} {split} rows of {source}"
    return f"{count:,} rows of {name}"


def intervention_in_words(intervention: str) -> str:
    """What an intervention does, from its `repr`, which records of `evaluate intervention` hold.

    Raises:
      ValueError: no intervention is written so.
    """
    found = re.fullmatch(r"Displace\(direction='(.+)'\)|Boundary\(share=(.+)\)", intervention)
    if not found:
        raise ValueError(f"an intervention must be Displace or Boundary, got {intervention!r}")
    if found[1]:
        side = {"right": "to the right", "left": "to the left", "both": "to either side"}[found[1]]
        return f"Tokens displaced {side}"
    if float(found[2]) == 0:
        return "Text shifted once, after the first call"
    return f"Text shifted once, after {100 * float(found[2]):g} % of the slots"


def draw_curves(
    path: str,
    strengths: Sequence[float],
    curves: Mapping[str, Sequence[Interval]],
    *,
    x: str,
    y: str,
    title: str = "",
    log: bool = False,
) -> None:
    """Lines with shaded intervals, written as a picture of the kind that `path` ends on.

    Args:
      path: A local file, `.png`, `.svg` or `.pdf`.
      strengths: Ascending.
      curves: A line per name.
      x: Label of the axis.
      y: Label of the axis.
      title: Above the picture.
      log: Whether strengths are spread by their logarithm (0 keeps a place of its own).

    Raises:
      ConfigError: matplotlib is not installed.
    """
    plt = pyplot()
    many = len(curves) > 5  # more lines than a legend has room for beside them
    figure, axes = plt.subplots(figsize=(8.0 if many else 6.4, 4.2), layout="constrained")
    colours: Sequence[Any] = _COLOURS
    if len(curves) > len(_COLOURS):
        colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(curves)))
    for number, (name, rates) in enumerate(curves.items()):
        colour = colours[number]
        value, low, high = (
            np.array([getattr(rate, part) for rate in rates]) for part in ("value", "low", "high")
        )
        mark = _MARKS[number % len(_MARKS)]
        axes.plot(strengths, value, color=colour, marker=mark, markersize=4.5, label=name)
        axes.fill_between(strengths, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize="medium")
    if log:
        axes.set_xscale("symlog", linthresh=min(s for s in strengths if s > 0))
        axes.set_xticks(list(strengths), [f"{s:g}" for s in strengths])
        axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    if many:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    else:
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def title_of(record: dict[str, Any]) -> str:
    """The title of a figure of what `evaluate intervention` writes."""
    rows = rows_in_words(record["rows"], record["task"])
    return f"{intervention_in_words(record['intervention'])}: {rows}"


def draw_rows(path: str, record: dict[str, Any]) -> None:
    """A row per run: its error without intervention and at the strongest, with intervals.

    The title is that of the same record's curves.

    Args:
      path: A local file, `.png`, `.svg` or `.pdf`.
      record: What `evaluate intervention` writes.
    """
    plt = pyplot()
    names = list(record["models"])
    figure, axes = plt.subplots(figsize=(6.4, 1.4 + 0.32 * len(names)), layout="constrained")
    shown = (
        (0, "no intervention"),
        (len(record["strengths"]) - 1, f"strength {record['strengths'][-1]:g}"),
    )
    for offset, (at, label) in zip((-0.12, 0.12), shown, strict=True):
        rates = 100 * np.array([record["models"][name]["rates"][at] for name in names], float)
        value, low, high = rates.T
        place = np.arange(len(names)) + offset
        axes.errorbar(
            value,
            place,
            xerr=np.abs([value - low, high - value]),
            fmt=_MARKS[at > 0],
            color=_COLOURS[at > 0],
            markersize=5,
            capsize=2,
            linestyle="none",
            label=label,
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"{record['metric']}, %")
    axes.set_title(title_of(record), fontsize="medium")
    axes.grid(axis="x", alpha=0.25)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


SLACK = "–"  # how a slack slot is shown
_CE, _CTC = _COLOURS[1:3]  # vermilion and blue
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
