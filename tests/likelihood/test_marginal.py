"""The alignment-marginal likelihood against all canvases of a few slots."""

import collections
import itertools
import math

import jax
import numpy as np
import pytest

from jax_mdlm import model
from jax_mdlm.config import ConfigError, MeshConfig
from jax_mdlm.diffusion import collapse_tokens
from jax_mdlm.likelihood import marginal_log_likelihood
from jax_mdlm.sharding import make_layout
from tests.likelihood.small import CONFIG, IDS, PARAMS, logits

FRAMES = 4
END = IDS.terminator
ROWS = [
    ((), (END,)),
    ((), (0, END)),
    ((2,), (1, 1, END)),
    ((3, 1, 2), (0, 1, 0, END)),
    ((3, 1, 2), (2, 2, END)),
    ((2,), (1, 2, 3, 0, END)),  # no room
]


def by_enumeration(prompt, collapse):
    """The probability of every text: all canvases, read as the sampler reads them."""
    found = logits((*prompt, *[IDS.mask] * FRAMES)).astype(np.float64)[len(prompt) :]
    log_probs = found - np.logaddexp.reduce(found, axis=-1, keepdims=True)
    total = collections.defaultdict(float)
    for canvas in itertools.product(range(CONFIG.vocab_size), repeat=FRAMES):
        ends = [slot for slot, token in enumerate(canvas) if token in (END, IDS.eos)]
        if ends:
            text = tuple(collapse_tokens(canvas[: ends[0]], IDS, collapse))
            total[text] += math.exp(log_probs[np.arange(FRAMES), canvas].sum())
    return total


@pytest.mark.parametrize("collapse", ["merge", "slack_only"])
def test_every_canvas_is_counted(collapse):
    values = marginal_log_likelihood(
        PARAMS, CONFIG, ROWS, IDS, frames=FRAMES, collapse=collapse, batch_size=4
    )
    for (prompt, response), value in zip(ROWS, values, strict=True):
        total = by_enumeration(prompt, collapse)[response[:-1]]
        expected = math.log(total) if total else -math.inf
        assert value == pytest.approx(expected, abs=1e-4), response
    assert values[-1] == -math.inf
    # "1 1" needs a slack between under merge and none under slack_only.
    other = "slack_only" if collapse == "merge" else "merge"
    assert abs(values[2] - math.log(by_enumeration((2,), other)[(1, 1)])) > 0.1


def test_a_mesh_gives_the_numbers_of_one_device(eight_devices):
    layout = make_layout(MeshConfig(fsdp=4, tensor=2), eight_devices)
    settings = {"frames": FRAMES, "collapse": "merge"}
    here = marginal_log_likelihood(PARAMS, CONFIG, ROWS, IDS, **settings, batch_size=4)
    prepared = jax.device_put(model.prepare(PARAMS, CONFIG), layout.replicated)
    there = marginal_log_likelihood(prepared, CONFIG, ROWS, IDS, **settings, layout=layout)
    np.testing.assert_allclose(here, there, atol=1e-4)


@pytest.mark.parametrize(
    ("response", "changes", "message"),
    [
        ((1, 2), {}, r"response of row 0 must end with the terminator \(id 5\)"),
        ((), {}, "response of row 0 must end with the terminator"),
        ((1, IDS.slack, END), {}, "must be text before its terminator, it holds the special token"),
        ((1, 4, END), {}, "it holds the special token 4; remove it"),
        ((1, END), {"frames": 0}, "frames must be at least 1, got 0"),
        ((1, END), {"frames": 70}, "must fit model.max_length=64"),
    ],
)
def test_refusals(response, changes, message):
    settings = {"frames": 4, "collapse": "merge", **changes}
    with pytest.raises(ConfigError, match=message):
        marginal_log_likelihood(PARAMS, CONFIG, [((1,), response)], IDS, **settings)
