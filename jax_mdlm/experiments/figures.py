"""Figures: curves with their intervals. Needs matplotlib (extra `eval`)."""

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
      path: As in `draw_curves`.
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
