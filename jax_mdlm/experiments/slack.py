"""Where slack stands: in the targets that training draws, and in what the model decodes."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jax_mdlm.config import ConfigError
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.evaluation.tasks import open_task
from jax_mdlm.experiments.figures import pyplot, rows_in_words
from jax_mdlm.experiments.intervention import rounded
from jax_mdlm.experiments.slack_places import (
    LONGEST,
    START,
    Neighbour,
    SlackPlaces,
    draw_targets,
    measure_places,
    of_answer,
    top,
)
from jax_mdlm.opening import open_model, with_progress

_GAPS = {  # key of `SlackPlaces.per_gap` -> its name in text and figure
    "start": "at the start",
    "between": "between tokens",
    "equal": "between equal tokens",
    "tail": "at the end",
}
_TOKENS = 8  # neighbours that are shown
_TARGET = {"color": "#B0B0B0", "edgecolor": "#505050", "hatch": "///", "linewidth": 0.6}
_DECODED = {"color": "#0B4F8A", "edgecolor": "#0B4F8A", "linewidth": 0.6}


def run(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Draws targets, decodes every row, and says where slack stands in both."""
    if args.bins < 1:
        raise ConfigError(f"--bins must be 1 or more, got {args.bins}")
    if args.figure:
        pyplot()  # a package that is missing is said before the decoding
    model = open_model(args.workdir, overrides)
    config, ids = model.config, model.tokenizer.ids
    task = open_task(config, model.path, split=args.split, file=args.file, limit=args.limit)
    targets = draw_targets(config, task, model.tokenizer)
    prompts = task.prompts(model)
    decoded = [
        of_answer(answer, ids) for answer in with_progress(model.decode(prompts), len(prompts))
    ]
    record = {
        "run": config.name,
        "rows_from": task.name,
        "step": model.step,
        "target": _plain(measure_places(targets, ids, bins=args.bins), model.tokenizer),
        "decoded": _plain(measure_places(decoded, ids, bins=args.bins), model.tokenizer),
    }
    if jax.process_index() != 0:
        return
    print(json.dumps(record, ensure_ascii=False)) if args.json else print_text(record)
    if args.figure:
        _draw(args.figure, record)


def _plain(places: SlackPlaces, tokenizer: Tokenizer) -> dict[str, Any]:
    """As JSON values: tokens as text, what is not a number as null."""

    def neighbours(found: dict[int, Neighbour]) -> dict[str, dict[str, Any]]:
        return {
            show_token(token, tokenizer): {
                "gaps": one.gaps,
                "filled": one.filled,
                "lift": rounded(one.lift),
            }
            for token, one in top(found, len(found), least=1)
        }

    timing = places.timing
    return {
        "rows": places.rows,
        "slots": places.slots,
        "slack_share": rounded(places.share),
        "position": places.position.round(6).tolist(),
        "runs": places.runs.round(6).tolist(),
        "per_gap": {name: rounded(value) for name, value in places.per_gap.items()},
        "tail_share": rounded(places.tail_share),
        "behind": rounded(places.behind),
        "after_token": neighbours(places.before),
        "before_token": neighbours(places.after),
        "timing": timing
        and {
            "slack": timing.slack.round(6).tolist(),
            "text": timing.text.round(6).tolist(),
            "mean_slack": rounded(timing.mean_slack),
            "mean_text": rounded(timing.mean_text),
        },
    }


def show_token(token: int, tokenizer: Tokenizer) -> str:
    """A token as a label: names for start and end, spaces and newlines visible."""
    if token == START:
        return "(start)"
    if token in (tokenizer.ids.terminator, tokenizer.ids.eos):
        return "(end)"
    return tokenizer.token(token).replace(" ", "\u2423").replace("\n", "\u21b5")


def print_text(record: dict[str, Any]) -> None:
    """The summary: targets beside what was decoded."""
    target, decoded = record["target"], record["decoded"]
    print(f"{decoded['rows']:,} rows of {record['rows_from']}, {record['step']:,} training steps")
    print(" " * 42 + "target   decoded")

    def line(name: str, values: Sequence[float | None], form: str = "{:.3f}") -> None:
        cells = ("-" if value is None else form.format(value) for value in values)
        print(name.ljust(38) + "".join(cell.rjust(10) for cell in cells))

    def share(name: str, values: Sequence[float | None]) -> None:
        line(name, [None if value is None else 100 * value for value in values], "{:.1f} %")

    both = (target, decoded)
    share("slack of the slots before the end", [one["slack_share"] for one in both])
    for key, name in _GAPS.items():
        line(f"slack in a gap {name}", [one["per_gap"][key] for one in both])
    share("of all slack before the terminator", [one["tail_share"] for one in both])
    line("slack behind the terminator, per row", [one["behind"] for one in both])
    for at, name in enumerate(run_names()):
        share(f"runs of {name}", [one["runs"][at] for one in both])
    timing = decoded["timing"]
    line("mean relative call of slack", [None, timing["mean_slack"]])
    line("mean relative call of text", [None, timing["mean_text"]])
    for side, key in (("after", "after_token"), ("before", "before_token")):
        shown = ", ".join(f"{name} {one['lift']:.2f}" for name, one in highest(decoded[key]))
        print(f"slack {side}, times as often as usual: {shown or '-'}")


def run_names() -> list[str]:
    """ "1", "2", ..., "4 or more"."""
    return [*map(str, range(1, LONGEST)), f"{LONGEST} or more"]


def highest(neighbours: dict[str, dict[str, Any]], least: int = 30) -> list[tuple[str, Any]]:
    """Tokens beside at least `least` gaps, of the highest lift."""
    often = [
        (name, one)
        for name, one in neighbours.items()
        if one["gaps"] >= least and one["lift"] is not None
    ]
    return often[:_TOKENS]


def _draw(path: str, record: dict[str, Any]) -> None:
    """Six panels; targets hatched grey, what was decoded dark.

    Raises:
      ConfigError: matplotlib is not installed.
    """
    plt = pyplot()
    target, decoded = record["target"], record["decoded"]
    figure, axes = plt.subplots(2, 3, figsize=(11, 6.2), layout="constrained")
    figure.suptitle(
        f"Slack of {record['run']}: {rows_in_words(decoded['rows'], record['rows_from'])}",
        fontsize="medium",
    )
    # --- along the response, by gap, runs ---
    _draw_steps(
        axes[0, 0],
        [(target["position"], "target", False), (decoded["position"], "decoded", True)],
    )
    axes[0, 0].set(
        title="Along the response",
        xlabel="place (0 = start, 1 = terminator)",
        ylabel="slack, % of the slots",
    )
    _draw_pairs(axes[0, 1], list(_GAPS.values()), *(_gaps(one) for one in (target, decoded)))
    axes[0, 1].set(title="By gap", ylabel="slack slots per gap")
    _draw_pairs(
        axes[0, 2],
        run_names(),
        *([100 * share for share in one["runs"]] for one in (target, decoded)),
    )
    axes[0, 2].set(title="Runs of slack", xlabel="slots in a run", ylabel="% of the runs")
    # --- neighbours, time ---
    for axis, key, title in (
        (axes[1, 0], "after_token", "Token before slack"),
        (axes[1, 1], "before_token", "Token after slack"),
    ):
        found = highest(decoded[key])
        names = [name for name, _ in found]
        usual = [target[key].get(name, {}).get("lift") or 0.0 for name in names]
        _draw_pairs(axis, names, usual, [one["lift"] for _, one in found])
        axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
        axis.set(title=title, ylabel="gaps with slack,\ntimes as often as usual")
    timing = decoded["timing"]
    _draw_steps(axes[1, 2], [(timing["text"], "text", False), (timing["slack"], "slack", True)])
    axes[1, 2].set(
        title="When it is fixed (decoded)",
        xlabel="model call (0 = first, 1 = last of the row)",
        ylabel="% of the tokens",
    )
    # --- what all panels share ---
    for axis in axes.flat:
        axis.set_ylim(bottom=0)
        axis.grid(axis="y", alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 1].legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _gaps(one: dict[str, Any]) -> list[float]:
    return [one["per_gap"][key] or 0.0 for key in _GAPS]


def _draw_steps(axis: Any, lines: Sequence[tuple[Sequence[float], str, bool]]) -> None:
    """Histograms as steps in %; the one that is meant is dark."""
    for shares, label, strong in lines:
        edges = np.linspace(0, 1, len(shares) + 1)
        axis.stairs(
            100 * np.array(shares),
            edges,
            label=label,
            color=_DECODED["color"] if strong else _TARGET["edgecolor"],
            linewidth=2.2 if strong else 1.4,
            linestyle="-" if strong else "--",
            baseline=None,  # no vertical lines at the ends
        )
    axis.margins(y=0.22)  # room for the legend
    axis.legend(frameon=False, loc="upper left", ncols=2)


def _draw_pairs(
    axis: Any, names: Sequence[str], target: Sequence[float], decoded: Sequence[float]
) -> None:
    """Two bars per name."""
    place = np.arange(len(names))
    axis.bar(place - 0.2, target, 0.38, label="target", **_TARGET)
    axis.bar(place + 0.2, decoded, 0.38, label="decoded", **_DECODED)
    axis.set_xticks(place, [name.replace(" ", "\n", 1) for name in names], fontsize="small")
