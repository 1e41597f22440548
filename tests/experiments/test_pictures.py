"""Pictures of alignments say what the arrays hold."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_mdlm.containers import SpecialIds
from jax_mdlm.diffusion import collapse_tokens
from jax_mdlm.experiments.figures import SLACK, draw_canvases, draw_costs, draw_posterior

figures = pytest.importorskip("matplotlib.figure")


@pytest.fixture
def axis():
    return figures.Figure().subplots()


def texts(axis) -> dict[tuple[float, float], str]:
    return {text.get_position(): text.get_text() for text in axis.texts}


def test_a_posterior_has_a_number_wherever_the_lattice_passes(axis):
    posterior = jnp.array([[0.25, 0.75, 0.0], [0.998, 0.002, 0.0], [0.0, 0.0, 1.0]])
    draw_posterior(axis, posterior, ["slack", "a", "b"])
    assert texts(axis) == {
        (0, 0): "25",
        (0, 1): "75",
        (1, 0): "100",
        (1, 1): "<1",
        (2, 2): "100",
    }
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "3"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["slack", "a", "b"]


def test_costs_stand_above_their_slots(axis):
    costs = {"cross-entropy": np.array([0.5, 7.0, 7.5]), "CTC": np.array([0.5, 0.1, 0.2])}
    draw_costs(axis, f"a{SLACK}b", f"ab{SLACK}", costs, "late")
    assert [bar.get_height() for bar in axis.patches[:3]] == [0.5, 7.0, 7.5]
    np.testing.assert_array_equal(axis.patches[3].get_data().values, costs["CTC"])
    labels = axis.get_xticklabels()
    assert [label.get_text() for label in labels] == ["a\na", f"{SLACK}\nb", f"b\n{SLACK}"]
    assert [label.get_weight() for label in labels] == ["normal", "bold", "bold"]
    names = {entry.get_text() for entry in axis.legend().get_texts()}
    assert names == set(costs)


def test_canvases_mark_what_a_map_loses(axis):
    ids = SpecialIds(mask=0, slack=ord(SLACK), pad=1, eos=1, terminator=1)
    canvases = ["boo", f"bo{SLACK}o"]
    maps = {
        name: ["".join(map(chr, collapse_tokens([*map(ord, row)], ids, name))) for row in canvases]
        for name in ("merge", "slack_only")
    }
    draw_canvases(axis, [("random", canvases[0]), ("separated", canvases[1])], maps, "boo")
    read = [(text.get_text(), text.get_weight()) for text in axis.texts if text.get_text() in maps]
    assert [name for name, _ in read] == ["merge", "slack_only"]
    words = [
        (text.get_text(), text.get_weight())
        for text in axis.texts
        if len(text.get_text()) in (2, 3)
    ]
    assert words == [("bo", "bold"), ("boo", "normal"), ("boo", "normal"), ("boo", "normal")]
    cells = axis.images[0].get_array()
    slack, repeat, plain = cells[1, 2], cells[0, 2], cells[0, 1]
    assert len({tuple(colour) for colour in (slack, repeat, plain)}) == 3
    np.testing.assert_array_equal(cells[1, 3], plain)  # separated, it is no repeat
    np.testing.assert_array_equal(cells[0, 3], [1, 1, 1])  # behind the shorter canvas: nothing
