"""Figures of curves: every line can be told from the others, and what they say is prose."""

import json
from pathlib import Path

import pytest
from etils import epath

from jax_mdlm.config import Config, DataConfig
from jax_mdlm.evaluate import make_parser
from jax_mdlm.evaluation.tasks import open_task
from jax_mdlm.experiments import intervention
from jax_mdlm.experiments.figures import (
    draw_curves,
    draw_rows,
    intervention_in_words,
    rows_in_words,
)
from jax_mdlm.experiments.intervention import recorded
from jax_mdlm.experiments.statistics import Interval

pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.mark.parametrize("count", [2, 8, 9, 12])
def test_lines_have_colours_of_their_own(tmp_path, monkeypatch, count):
    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    curves = {f"run {n}": [Interval(n + 1.0, n + 0.5, n + 1.5)] * 3 for n in range(count)}
    path = tmp_path / "curves.png"
    draw_curves(str(path), [0, 0.1, 0.4], curves, x="strength", y="errors", log=True)
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    (axes,) = figure.axes
    lines = axes.get_lines()
    assert len({tuple(map(str, (line.get_color(), line.get_marker()))) for line in lines}) == count
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(curves)
    inside = axes.get_legend().get_window_extent().x0 < axes.get_window_extent().x1
    assert inside == (count <= 5)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "Tokens displaced to the right"),
        (["--direction=left"], "Tokens displaced to the left"),
        (["--direction=both"], "Tokens displaced to either side"),
        (["--kind=boundary", "--share=0.25"], "Text shifted once, after 25 % of the slots"),
        (["--kind=boundary", "--share=0"], "Text shifted once, after the first call"),
    ],
)
def test_an_intervention_is_said_in_words(flags, words):
    arguments = make_parser().parse_args(["intervention", "--workdir=x", *flags])
    assert intervention_in_words(recorded(arguments)) == words


def test_what_is_no_intervention_has_no_words():
    with pytest.raises(ValueError, match="must be Displace or Boundary, got 'Swap"):
        intervention_in_words("Swap(share=1)")


def test_rows_are_named_by_their_split_or_file():
    assert rows_in_words(2000, "pronunciations/test") == "2,000 test rows of pronunciations"
    assert rows_in_words(6, "data/rows.jsonl") == "6 rows of data/rows.jsonl"
    assert rows_in_words(6, "/test") == "6 rows of /test"


@pytest.mark.parametrize(
    ("source", "label"),
    [("pronunciations", "phoneme error rate"), ("chat_jsonl", "word error rate")],
)
def test_an_axis_says_which_symbols_were_counted(tmp_path, source, label):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "response": "AH"}\n')
    config = Config(name="x", data=DataConfig(source=source))
    task = open_task(config, epath.Path(tmp_path), file=str(rows), metric="symbols")
    assert (task.metric.name, task.metric.label) == ("symbols", label)


@pytest.mark.parametrize("name", ["paper", "weights", "beyond"])
def test_the_pictures_of_the_experiments_read_as_prose(tmp_path, monkeypatch, name):
    """As drawn from the records that stand beside them."""
    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    folder = Path(__file__).parents[2] / "docs/experiments" / name
    record = json.loads((folder / "intervention.json").read_text())
    intervention.draw_record(record, str(tmp_path / "intervention.png"))
    draw_rows(str(tmp_path / "runs.png"), record)
    (curves,), (rows,) = (figure.axes for figure in drawn)
    title = "Tokens displaced to the right: 2,000 test rows of pronunciations"
    assert curves.get_title() == rows.get_title() == title
    assert curves.get_ylabel() == rows.get_xlabel() == "phoneme error rate, %"
    for figure in drawn:  # nothing is cut off
        figure.draw_without_rendering()
        box = figure.axes[0].title.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
