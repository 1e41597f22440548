import dataclasses

import jax
import numpy as np
import pytest

from jax_mdlm.config import ObjectiveConfig
from jax_mdlm.diffusion import collapse_tokens, corrupt
from tests.diffusion.rows import IDS, batch_of

LENGTH, MOST = 20, 6
ROWS = [
    ([5, 6], [7, 7, 8, IDS.terminator]),
    ([], [5, 5, 5, 6, IDS.terminator]),
    ([9] * 16, [5, 6, IDS.terminator]),
    None,
]
run = jax.jit(corrupt, static_argnums=(2, 3))


def _corrupt(seed, config=None, rows=ROWS, end_padding=3):
    batch = batch_of(rows, LENGTH, MOST, end_padding=end_padding)
    corruption = run(jax.random.key(seed), batch, IDS, config or ObjectiveConfig())
    return batch, jax.tree.map(np.asarray, corruption)


@pytest.mark.parametrize("seed", range(20))
def test_parts_fit_together(seed):
    batch, corruption = _corrupt(seed)
    assert not corruption.masked[~corruption.response].any()
    assert not corruption.response[~corruption.valid].any()
    assert not corruption.frames[~corruption.response].any()
    expected = np.where(corruption.masked, IDS.mask, corruption.targets)
    np.testing.assert_array_equal(corruption.inputs, expected)
    before = np.cumsum(batch.response, axis=1) == 0
    np.testing.assert_array_equal(corruption.inputs[before], batch.tokens[before])
    np.testing.assert_array_equal(corruption.labels, batch.labels)
    np.testing.assert_array_equal(corruption.label_count, batch.label_count)
    probability = 0.999 * corruption.level + 1e-3
    np.testing.assert_allclose(corruption.weight, 1 / probability, rtol=1e-6)
    assert corruption.inputs.dtype == corruption.targets.dtype == np.int32
    assert corruption.level.dtype == corruption.weight.dtype == np.float32


def test_slots_are_masked_at_the_rate_of_their_row():
    """Every response slot, end padding included; rates within 4 standard errors, in 10 bands."""
    num_rows = 4000
    _, corruption = _corrupt(1, rows=[([5], [6, 7, 8, 9, IDS.terminator])] * num_rows)
    probability = 0.999 * corruption.level + 1e-3
    for slot in range(1, 9):  # these are response slots in every row, or end padding
        supervised = corruption.response[:, slot]
        for low in np.arange(0, 1, 0.1):
            band = supervised & (corruption.level >= low) & (corruption.level < low + 0.1)
            p, masked = probability[band], corruption.masked[band, slot]
            error = np.sqrt((p * (1 - p)).sum()) + 1e-9
            assert abs(masked.sum() - p.sum()) < 4.5 * error
    # Slots of a row are independent of each other, given the level.
    centred = (corruption.masked - probability[:, None])[:, 1:6]
    scale = np.sqrt(probability * (1 - probability) + 1e-9)[:, None]
    correlation = (centred / scale).T @ (centred / scale) / num_rows
    assert np.abs(correlation - np.diag(np.diag(correlation))).max() < 0.1


def test_the_same_key_draws_the_same():
    _, first = _corrupt(2)
    _, again = _corrupt(2)
    _, other = _corrupt(3)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first.level != other.level).any()


@pytest.mark.parametrize(
    ("collapse", "separate", "always"),
    [("merge", True, True), ("merge", False, False), ("slack_only", True, False)],
)
def test_repeats_are_separated_only_where_they_would_merge(collapse, separate, always):
    config = ObjectiveConfig(collapse=collapse, separate_repeats=separate)
    survived = []
    for seed in range(30):
        _, corruption = _corrupt(seed, config)
        inside = corruption.targets[1][corruption.frames[1]]
        survived.append(collapse_tokens(inside, IDS, "merge") == ROWS[1][1])
    assert all(survived) == always


def test_no_slack_is_plain_masked_diffusion():
    config = dataclasses.replace(ObjectiveConfig(), slack_max=0.0)
    batch, corruption = _corrupt(5, config)
    np.testing.assert_array_equal(corruption.targets, batch.tokens)
    np.testing.assert_array_equal(corruption.response, batch.response)
