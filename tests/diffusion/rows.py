"""Rows that the tests of this room share."""

import numpy as np

from jax_mdlm.containers import Batch, SpecialIds

IDS = SpecialIds(mask=0, slack=1, pad=2, eos=3, terminator=4, never_merged=(0, 1, 2, 3, 4))


def batch_of(rows, length, max_labels, *, end_padding=0):
    """A `Batch` from pairs (prompt, labels); a row of None has no response at all."""
    tokens = np.full((len(rows), length), IDS.pad, np.int32)
    response = np.zeros((len(rows), length), bool)
    valid = np.zeros((len(rows), length), bool)
    labels = np.full((len(rows), max_labels), IDS.pad, np.int32)
    label_count = np.zeros(len(rows), np.int32)
    for i, row in enumerate(rows):
        if row is None:
            continue
        prompt, answer = row
        start, end = len(prompt), len(prompt) + len(answer)
        behind = min(end + end_padding, length)
        tokens[i, :behind] = [*prompt, *answer, *[IDS.eos] * (behind - end)]
        response[i, start:behind] = True
        valid[i, :behind] = True
        labels[i, : len(answer)] = answer
        label_count[i] = len(answer)
    return Batch(
        tokens=tokens, response=response, valid=valid, labels=labels, label_count=label_count
    )
