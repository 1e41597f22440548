import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_mdlm.diffusion import ctc_loss
from jax_mdlm.diffusion.ctc import clamp_observed
from tests.reference import ctc as reference

SLACK = 0
COLLAPSES = ["merge", "slack_only"]


def _full(log_probs, frames, labels, label_count, collapse, slack=SLACK):
    """ctc_loss from log-probabilities of all classes, [B, L, V]."""
    classes = jnp.pad(jnp.asarray(labels), ((0, 0), (1, 0)), constant_values=slack)
    columns = jnp.broadcast_to(classes[:, None, :], (*log_probs.shape[:2], classes.shape[1]))
    compact = jnp.take_along_axis(log_probs, columns, axis=2)
    return ctc_loss(compact, frames, labels, label_count, collapse=collapse)


def _random_log_probs(seed, *shape, scale=1.0):
    logits = scale * np.random.default_rng(seed).normal(size=shape)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def _every_sequence(num_labels=3, longest=4, most_frames=6, length=9):
    """Rows: each label sequence x each number of frames, starting somewhere in the canvas."""
    rng = np.random.default_rng(0)
    sequences = [
        sequence
        for count in range(longest + 1)
        for sequence in itertools.product(range(1, num_labels + 1), repeat=count)
    ]
    matrices = [_random_log_probs(f, f, num_labels + 1) for f in range(most_frames + 1)]
    rows = list(itertools.product(sequences, range(1, most_frames + 1)))
    log_probs = rng.normal(size=(len(rows), length, num_labels + 1))  # noise outside the frames
    frames = np.zeros((len(rows), length), bool)
    labels = np.zeros((len(rows), longest), np.int32)
    starts = rng.integers(0, length - most_frames + 1, len(rows))
    for i, (sequence, num_frames) in enumerate(rows):
        inside = slice(starts[i], starts[i] + num_frames)
        frames[i, inside] = True
        log_probs[i, inside] = matrices[num_frames]
        labels[i, : len(sequence)] = sequence
    label_count = np.array([len(sequence) for sequence, _ in rows], np.int32)
    return rows, matrices, log_probs, frames, labels, label_count


@pytest.mark.parametrize("collapse", COLLAPSES)
def test_value_equals_enumeration_of_all_alignments(collapse):
    rows, matrices, log_probs, frames, labels, label_count = _every_sequence()
    assert len(rows) == 121 * 6
    expected = {
        f: reference.Enumeration(f, 4, SLACK, collapse).nll(matrices[f]) for f in range(1, 7)
    }
    nll, feasible = jax.jit(_full, static_argnums=4)(
        log_probs.astype(np.float32), frames, labels, label_count, collapse
    )
    assert nll.dtype == jnp.float32
    nll, feasible = np.asarray(nll), np.asarray(feasible)
    for i, (sequence, num_frames) in enumerate(rows):
        exact = expected[num_frames].get(sequence)
        assert bool(feasible[i]) == (exact is not None), (sequence, num_frames)
        np.testing.assert_allclose(nll[i], 0.0 if exact is None else exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("collapse", COLLAPSES)
def test_gradient_equals_finite_differences_of_the_enumeration(collapse):
    rows, matrices, log_probs, frames, labels, label_count = _every_sequence()
    expected = {
        f: reference.Enumeration(f, 4, SLACK, collapse).gradient(matrices[f]) for f in range(1, 7)
    }
    with jax.enable_x64(True):
        gradient = jax.jit(
            jax.grad(lambda x: _full(x, frames, labels, label_count, collapse)[0].sum())
        )
        actual = np.asarray(gradient(jnp.asarray(log_probs)))
    assert actual.dtype == np.float64
    assert not actual[~frames].any()
    for i, (sequence, num_frames) in enumerate(rows):
        exact = expected[num_frames].get(sequence, np.zeros((num_frames, 4)))
        np.testing.assert_allclose(actual[i][frames[i]], exact, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_optax_on_the_full_vocabulary(dtype):
    rng = np.random.default_rng(1)
    num_rows, length, vocab, most = 6, 40, 60, 12
    logits = rng.normal(scale=3.0, size=(num_rows, length, vocab)).astype(dtype)
    labels = rng.integers(1, 5, (num_rows, most)).astype(np.int32)  # many repeats
    label_count = np.array([0, 3, 6, 9, 12, 12], np.int32)
    frames = np.arange(length) < np.array([25, 30, 35, 40, 40, 30])[:, None]

    def ours(logits):
        nll, _ = _full(jax.nn.log_softmax(logits), frames, labels, label_count, "merge")
        return nll.sum(), nll

    def dense(logits):
        absent = 1.0 - (np.arange(most) < label_count[:, None])
        nll = optax.ctc_loss(
            logits, 1.0 - frames, labels, absent, blank_id=SLACK, log_epsilon=-1e30
        )
        return nll.sum(), nll

    with jax.enable_x64(dtype is np.float64):
        slope, nll = jax.jit(jax.grad(ours, has_aux=True))(logits)
        expected_slope, expected = jax.jit(jax.grad(dense, has_aux=True))(logits)
        assert nll.dtype == dtype
    small = dtype is np.float32
    np.testing.assert_allclose(nll, expected, rtol=1e-5 if small else 1e-12)
    np.testing.assert_allclose(slope, expected_slope, atol=1e-4 if small else 1e-12)


@functools.partial(jax.jit, static_argnums=4)
def _gradient(log_probs, frames, labels, label_count, collapse):
    def loss(log_probs):
        nll, feasible = _full(log_probs, frames, labels, label_count, collapse)
        return nll.sum(), (nll, feasible)

    return jax.grad(loss, has_aux=True)(log_probs)


def _value_and_gradient(log_probs, labels, collapse, *, start=0, canvas=(32, 6, 6)):
    """nll, feasibility and gradient of one row, from [F, V].

    The row stands at `start` of a canvas of one shape (L, V, U), so that one program serves most
    tests; everything else in the canvas is NaN, which must not matter.
    """
    length, vocab, most = canvas
    num_frames, num_classes = log_probs.shape
    inside = slice(start, start + num_frames)
    row = np.full((length, vocab), np.nan, log_probs.dtype)
    row[inside] = -np.inf
    row[inside, :num_classes] = log_probs
    frames = np.zeros(length, bool)
    frames[inside] = True
    padded = np.zeros(most, np.int32)
    padded[: len(labels)] = labels
    count = np.array([len(labels)], np.int32)
    slope, (nll, feasible) = _gradient(row[None], frames[None], padded[None], count, collapse)
    slope = np.asarray(slope[0])
    assert np.isfinite(slope).all()
    assert not slope[~frames].any()
    return float(nll[0]), bool(feasible[0]), slope[inside, :num_classes]


def _textbook(log_probs, labels, collapse):
    """The reference's nll and gradient, from [F, V]."""
    columns = [SLACK, *labels]
    nll, compact = reference.lattice(log_probs[:, columns], labels, collapse)
    gradient = np.zeros(log_probs.shape)
    np.add.at(gradient, (slice(None), columns), compact)
    return nll, gradient


@pytest.mark.parametrize("collapse", COLLAPSES)
@pytest.mark.parametrize("labels", [[1, 2, 1, 2], [2, 2, 2], [1, 1, 2, 2, 2, 1]])
def test_repeats(labels, collapse):
    log_probs = _random_log_probs(3, 30, 4, scale=4.0)
    expected, expected_slope = _textbook(log_probs, labels, collapse)
    with jax.enable_x64(True):
        nll, feasible, slope = _value_and_gradient(log_probs, labels, collapse)
    assert feasible
    np.testing.assert_allclose(nll, expected, rtol=1e-12)
    np.testing.assert_allclose(slope, expected_slope, atol=1e-12)


@pytest.mark.parametrize("collapse", COLLAPSES)
def test_no_labels_is_slack_at_every_frame(collapse):
    log_probs = _random_log_probs(4, 3, 4).astype(np.float32)
    nll, feasible, slope = _value_and_gradient(log_probs, [], collapse, start=2)
    assert feasible
    np.testing.assert_allclose(nll, -log_probs[:, SLACK].sum(), rtol=1e-6)
    np.testing.assert_allclose(slope, [[-1, 0, 0, 0]] * 3, atol=1e-6)


@pytest.mark.parametrize("collapse", COLLAPSES)
def test_as_many_frames_as_labels_is_the_sum_along_the_diagonal(collapse):
    log_probs = _random_log_probs(5, 5, 6).astype(np.float32)
    labels = [1, 3, 2, 5, 4]
    nll, feasible, slope = _value_and_gradient(log_probs, labels, collapse)
    assert feasible
    np.testing.assert_allclose(nll, -log_probs[np.arange(5), labels].sum(), rtol=1e-6)
    expected = np.zeros((5, 6))
    expected[np.arange(5), labels] = -1
    np.testing.assert_allclose(slope, expected, atol=1e-6)


@pytest.mark.parametrize("collapse", COLLAPSES)
def test_frames_may_start_anywhere(collapse):
    log_probs = _random_log_probs(6, 12, 4).astype(np.float32)
    expected = _value_and_gradient(log_probs, [1, 2, 2], collapse)
    for start in (3, 20):
        nll, feasible, slope = _value_and_gradient(log_probs, [1, 2, 2], collapse, start=start)
        assert (nll, feasible) == expected[:2]
        np.testing.assert_array_equal(slope, expected[2])


@pytest.mark.parametrize(
    ("labels", "num_frames", "collapse", "fits"),
    [
        ([1, 1, 1], 5, "merge", True),
        ([1, 1, 1], 4, "merge", False),
        ([1, 1, 1], 3, "slack_only", True),
        ([1, 1, 1], 2, "slack_only", False),
        ([1, 2, 3], 0, "merge", False),
        ([], 0, "merge", True),
    ],
)
def test_rows_that_nothing_fits(labels, num_frames, collapse, fits):
    log_probs = _random_log_probs(7, num_frames, 4).astype(np.float32)
    nll, feasible, slope = _value_and_gradient(log_probs, labels, collapse)
    assert feasible is fits
    if not fits:
        assert nll == 0
        assert not slope.any()


def test_a_long_row_that_nothing_fits_leaves_its_neighbour_alone():
    """The derivative of an impossible path doubles at every frame: 2^300 must not meet a 0."""
    length = 300
    labels = np.zeros((2, 320), np.int32)
    labels[0] = np.tile([1, 2], 160)
    labels[1, :2] = [1, 2]
    log_probs = _random_log_probs(8, 2, length, 3).astype(np.float32)
    frames = np.ones((2, length), bool)
    slope, (nll, feasible) = _gradient(log_probs, frames, labels, np.array([320, 2]), "merge")
    assert feasible.tolist() == [False, True]
    assert float(nll[0]) == 0
    assert not np.asarray(slope[0]).any()
    np.testing.assert_allclose(slope[1].sum(axis=1), -1, atol=1e-3)  # one emission per frame


@pytest.mark.parametrize("collapse", COLLAPSES)
@pytest.mark.parametrize("confidence", [20.0, 200.0, np.inf])
def test_near_certain_frames(confidence, collapse):
    labels = [1, 2, 2, 3]
    alignment = [0, 1, 0, 2, 0, 2, 3, 0]
    log_probs = np.full((8, 5), -confidence, np.float32)
    log_probs[np.arange(8), alignment] = 0.0  # probability 1 to the last bit
    nll, feasible, slope = _value_and_gradient(log_probs, labels, collapse)
    finite = np.maximum(log_probs, -1e30).astype(np.float64)
    expected, expected_slope = _textbook(finite, labels, collapse)
    assert feasible
    np.testing.assert_allclose(nll, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slope, expected_slope, atol=1e-5)


@pytest.mark.parametrize("collapse", COLLAPSES)
def test_clamped_slots_leave_only_the_alignments_that_agree_with_them(collapse):
    labels = [1, 2, 1]
    tokens = np.array([0, 1, 2, 0, 1, 0])
    observed = np.array([0, 1, 0, 0, 1, 0], bool)
    log_probs = _random_log_probs(9, 6, 3)
    clamped = np.where(observed[:, None], -np.inf, log_probs)
    clamped[observed, tokens[observed]] = 0.0
    exact = reference.Enumeration(6, 3, SLACK, collapse)
    with np.errstate(divide="ignore"):
        expected = exact.nll(clamped)[tuple(labels)]

    classes = np.array([[SLACK, *labels]], np.int32)

    def loss(log_probs):
        columns = clamp_observed(
            log_probs[None][:, :, classes[0]], tokens[None], observed[None], classes
        )
        nll, feasible = ctc_loss(
            columns, np.ones((1, 6), bool), classes[:, 1:], np.array([3]), collapse=collapse
        )
        return nll[0], feasible[0]

    (nll, feasible), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        log_probs.astype(np.float32)
    )
    assert feasible
    np.testing.assert_allclose(nll, expected, rtol=1e-5)
    assert not np.asarray(slope)[observed].any()
    assert np.asarray(slope)[~observed].any()


def test_clamped_slots_can_leave_no_alignment_where_counts_would():
    """Labels 1 1 in five frames fit, but not when the middle three are observed as 1."""
    labels = np.array([[1, 1]], np.int32)
    classes = np.array([[SLACK, 1, 1]], np.int32)
    tokens = np.array([[0, 1, 1, 1, 0]])
    frames = np.ones((1, 5), bool)

    @jax.jit
    def fits(observed):
        columns = clamp_observed(jnp.zeros((1, 5, 3)), tokens, observed[None], classes)
        return ctc_loss(columns, frames, labels, np.array([2]), collapse="merge")[1][0]

    assert fits(np.array([0, 0, 1, 0, 0], bool))
    assert fits(np.array([0, 1, 0, 1, 0], bool))
    assert not fits(np.array([0, 1, 1, 1, 0], bool))


@pytest.mark.parametrize("collapse", COLLAPSES)
def test_thousands_of_improbable_frames(collapse):
    """4,096 frames of log-probability -30: far below -1e5, where optax's default breaks."""
    num_frames, labels = 4096, np.arange(1, 9)
    log_probs = np.full((num_frames, 9), -30.0)
    expected, _ = reference.lattice(log_probs, labels, collapse)  # its columns are the classes
    assert expected > 1e5
    nll, feasible, slope = _value_and_gradient(
        log_probs.astype(np.float32), labels, collapse, canvas=(num_frames, 9, 8)
    )
    assert feasible
    np.testing.assert_allclose(nll, expected, rtol=1e-5)
    np.testing.assert_allclose(slope.sum(axis=1), -1, atol=0.05)  # one emission per frame
