"""CTC written from its definition, in NumPy: every alignment, and the textbook lattice."""

import itertools

import numpy as np


def collapse(alignment, slack, kind):
    """`merge`: equal neighbours become one, then slack goes. `slack_only`: slack goes."""
    if kind == "merge":
        alignment = [token for token, _ in itertools.groupby(alignment)]
    return tuple(int(token) for token in alignment if token != slack)


class Enumeration:
    """All alignments of `num_frames` frames to `num_classes` classes, grouped by their labels."""

    def __init__(self, num_frames, num_classes, slack, kind):
        alignments = list(itertools.product(range(num_classes), repeat=num_frames))
        results = [collapse(alignment, slack, kind) for alignment in alignments]
        self.sequences = sorted(set(results))
        index = {sequence: i for i, sequence in enumerate(self.sequences)}
        self._group = np.array([index[result] for result in results])
        self._alignments = np.array(alignments).reshape(len(alignments), num_frames)

    def nll(self, log_probs):
        """-log of the summed probability of each label sequence; `log_probs` [F, K] float64."""
        scores = log_probs[np.arange(log_probs.shape[0]), self._alignments].sum(axis=1)
        total = np.zeros(len(self.sequences))
        np.add.at(total, self._group, np.exp(scores))
        return dict(zip(self.sequences, -np.log(total), strict=True))

    def gradient(self, log_probs, step=1e-4):
        """Central differences of `nll`, [F, K] for each label sequence."""
        gradients = {sequence: np.zeros(log_probs.shape) for sequence in self.sequences}
        for entry in np.ndindex(log_probs.shape):
            above, below = log_probs.copy(), log_probs.copy()
            above[entry] += step
            below[entry] -= step
            plus, minus = self.nll(above), self.nll(below)
            for sequence in self.sequences:
                gradients[sequence][entry] = (plus[sequence] - minus[sequence]) / (2 * step)
        return gradients


def lattice(log_probs, labels, kind):
    """nll and its gradient by the forward-backward recursion (Graves et al. 2006), float64.

    Args:
      log_probs: [F, 1 + U]; slack, then the labels in their order.
      labels: [U].
      kind: `merge` or `slack_only`.
    """
    log_probs = np.asarray(log_probs, np.float64)
    num_labels = len(labels)
    column = np.zeros(2 * num_labels + 1, int)  # slack, label 1, slack, label 2, ..., slack
    column[1::2] = 1 + np.arange(num_labels)
    is_label = column > 0
    stays = ~is_label if kind == "slack_only" else np.ones_like(is_label)
    skips = np.zeros_like(is_label)  # from label to label without slack between them
    for n in range(1, num_labels):
        skips[2 * n + 1] = kind == "slack_only" or labels[n] != labels[n - 1]
    emit = log_probs[:, column]
    alpha = _forward(emit, stays, skips)
    skips_back = np.zeros_like(skips)
    skips_back[2:] = skips[:1:-1]
    beta = _forward(emit[::-1, ::-1], stays[::-1], skips_back)[::-1, ::-1]
    log_total = np.logaddexp.reduce(alpha[-1, -2:])
    with np.errstate(invalid="ignore"):
        posterior = np.exp(np.nan_to_num(alpha + beta - emit, nan=-np.inf) - log_total)
    gradient = np.zeros_like(log_probs)
    np.add.at(gradient, (slice(None), column), -posterior)
    return -log_total, gradient


def _forward(emit, stays, skips):
    alpha = np.full(emit.shape, -np.inf)
    alpha[0, :2] = emit[0, :2]
    for frame in range(1, len(emit)):
        before = alpha[frame - 1]
        arrive = np.where(stays, before, -np.inf)
        arrive[1:] = np.logaddexp(arrive[1:], before[:-1])
        arrive[2:] = np.where(skips[2:], np.logaddexp(arrive[2:], before[:-2]), arrive[2:])
        alpha[frame] = arrive + emit[frame]
    return alpha
