import jax
import numpy as np
import pytest

from jax_mdlm.diffusion import ctc_loss
from tests.reference import ctc as reference

VOCAB = 126464


def _response(num_frames, confidence):
    """One row, 1.25 frames per label; logits ~ N(0, 1), `confidence` more for the right class."""
    rng = np.random.default_rng(0)
    num_labels = int(num_frames / 1.25)
    labels = rng.permutation(VOCAB - 1)[:num_labels] + 1
    places = np.append(np.sort(rng.permutation(num_frames - 1)[: num_labels - 1]), num_frames - 1)
    logits = rng.normal(size=(num_frames, 1 + num_labels))
    right = np.zeros(num_frames, int)
    right[places] = 1 + np.arange(num_labels)
    logits[np.arange(num_frames), right] += confidence
    others = np.log(VOCAB) + 0.5  # logsumexp of the other classes
    log_normaliser = np.logaddexp(np.logaddexp.reduce(logits, axis=1), others)
    return (logits - log_normaliser[:, None]).astype(np.float32), labels.astype(np.int32)


@pytest.mark.parametrize("collapse", ["merge", "slack_only"])
@pytest.mark.parametrize("num_frames", [512, pytest.param(4096, marks=pytest.mark.slow)])
def test_float32_gradients_hold(num_frames, collapse, capsys):
    """Relative L2 error against float64; run with -s to see it."""
    assert not jax.config.jax_enable_x64  # under x64 these would be computed in float64

    @jax.jit
    @jax.value_and_grad
    def loss(log_probs, labels):
        count = np.array([labels.shape[0]])
        frames = np.ones((1, num_frames), bool)
        return ctc_loss(log_probs[None], frames, labels[None], count, collapse=collapse)[0][0]

    errors = {}
    for name, confidence in (("untrained", 0.0), ("learning", 8.0)):
        log_probs, labels = _response(num_frames, confidence)
        nll, slope = loss(log_probs, labels)
        exact_nll, exact_slope = reference.lattice(log_probs, labels, collapse)
        errors[name] = np.linalg.norm(slope - exact_slope) / np.linalg.norm(exact_slope)
        np.testing.assert_allclose(nll, exact_nll, rtol=1e-6)
    with capsys.disabled():
        shown = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
        print(f"\nfloat32 gradient error, {num_frames} frames, {collapse}: {shown}")
    assert max(errors.values()) < 1e-4
