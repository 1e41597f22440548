"""What the estimator of a response's likelihood estimates, by going through everything.

`predict(masked)` is the model: bool [U] enters, the log-probability of each of the response's own
tokens leaves, float [U], where the masked ones are hidden.
"""

import itertools

import numpy as np


def over_masks(predict, count):
    """Eq. 6 of arXiv 2502.09992, word for word: every l, every set of l tokens."""
    total = 0.0
    for level in range(1, count + 1):
        sets = list(itertools.combinations(range(count), level))
        for chosen in sets:
            masked = np.isin(np.arange(count), chosen)
            total += count / level * predict(masked)[masked].sum() / len(sets) / count
    return total


def over_orders(predict, count):
    """The mean over all orders of generation: each token given those that came before it."""
    orders = list(itertools.permutations(range(count)))
    total = 0.0
    for order in orders:
        masked = np.ones(count, bool)
        for slot in order:
            total += predict(masked)[slot] / len(orders)
            masked[slot] = False
    return total


def greedy(logits_of, prompt, count, mask):
    """LLaDA's greedy filling: int [count], the surest slot's best token a call."""
    tokens = np.array([*prompt, *[mask] * count])
    for _ in range(count):
        logits = logits_of(tokens).astype(np.float64)
        log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        surest = np.where(tokens == mask, log_probs.max(-1), -np.inf)
        slot = int(surest.argmax())
        tokens[slot] = log_probs[slot].argmax()
    return tokens[len(prompt) :]
