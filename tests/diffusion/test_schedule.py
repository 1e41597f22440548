import jax
import numpy as np
import pytest

from jax_mdlm.diffusion import mask_probability, sample_levels


@pytest.mark.parametrize("num_rows", [1, 7, 256])
def test_one_level_per_stratum(num_rows):
    levels = np.asarray(sample_levels(jax.random.key(0), num_rows), np.float64)
    assert (levels > 0).all()
    assert (levels <= 1).all()
    stratum = np.ceil(levels * num_rows - 1e-4).astype(int)
    assert sorted(stratum) == list(range(1, num_rows + 1))


def test_each_row_sees_every_level():
    """Strata are shuffled: over many draws the first row's level is uniform."""
    draw = jax.jit(jax.vmap(lambda key: sample_levels(key, 8)[0]))
    first = np.asarray(draw(jax.random.split(jax.random.key(1), 4000)))
    counts, _ = np.histogram(first, bins=20, range=(0, 1))
    chi_square = ((counts - 200) ** 2 / 200).sum()
    assert chi_square < 43.8  # 99.9% of chi-square with 19 degrees of freedom


def test_mask_probability_is_linear_from_the_floor_to_one():
    levels = np.array([0.0, 0.25, 1.0], np.float32)
    expected = [1e-3, 0.999 * 0.25 + 1e-3, 1.0]
    np.testing.assert_allclose(mask_probability(levels, 1e-3), expected, rtol=1e-6)
