"""Figures of curves: every line can be told from the others, however many there are."""

import pytest

from jax_mdlm.evaluate.figures import draw_curves
from jax_mdlm.evaluation.statistics import Interval

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
