"""The training objective on full log-probabilities, row by row, in NumPy."""

import numpy as np

from tests.reference import ctc


def cross_entropy(logits, corruption):
    """LLaDA's fine-tuning loss: `mean over rows of sum(ce[masked] / p) / response length`.

    The published recipe, written as its authors do: token losses at the masked slots, divided by
    the mask probability and by the length of the row's response.
    """
    losses = []
    for row in range(len(logits)):
        response_length = corruption.response[row].sum()
        if response_length == 0:
            continue
        total = 0.0
        for slot in np.flatnonzero(corruption.masked[row]):
            scores = logits[row, slot].astype(np.float64)
            token_loss = np.logaddexp.reduce(scores) - scores[corruption.targets[row, slot]]
            total += token_loss * np.float64(corruption.weight[row])
        losses.append(total / response_length)
    return np.mean(losses) if losses else 0.0


def ctc_per_label(logits, corruption, slack, kind, observed):
    """Mean over the feasible rows of nll / labels, and how many rows have labels but no fit."""
    losses, infeasible = [], 0
    for row in range(len(logits)):
        count = corruption.label_count[row]
        if count == 0:
            continue
        scores = logits[row].astype(np.float64)
        log_probs = scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True)
        if observed == "clamp":
            for slot in np.flatnonzero(~corruption.masked[row]):
                log_probs[slot] = -np.inf
                log_probs[slot, corruption.targets[row, slot]] = 0.0
        labels = corruption.labels[row, :count]
        columns = log_probs[corruption.frames[row]][:, [slack, *labels]]
        with np.errstate(invalid="ignore"):
            nll, _ = ctc.lattice(columns, labels, kind)
        if np.isfinite(nll):
            losses.append(nll / count)
        else:
            infeasible += 1
    return (np.mean(losses) if losses else 0.0), infeasible
