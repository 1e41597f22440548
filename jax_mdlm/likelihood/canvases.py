"""Rows of any lengths to canvases of a few shapes, on the host.

Enters: pairs of prompt and response. Leaves: groups of rows that one compiled program serves, as
NumPy arrays.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jax_mdlm.config import ConfigError
from jax_mdlm.containers import Region, SpecialIds
from jax_mdlm.likelihood.program import Canvases
from jax_mdlm.sampling import bucket_length
from jax_mdlm.sharding import Layout

Row = tuple[Sequence[int], Sequence[int]]  # ids of a prompt and of its response


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows of one shape.

    Attributes:
      numbers: int64 [n]; their places in the caller's list.
      rows: n rows as NumPy arrays, and after them one that fills up batches.
      region: Columns of the response.
    """

    numbers: np.ndarray
    rows: Canvases
    region: Region

    def take(self, index: np.ndarray, batch: int) -> Canvases:
        """Rows [batch] of an index with at most so many, filled up with the empty row."""
        index = np.append(index, np.full(batch - len(index), len(self.numbers)))
        return jax.tree.map(lambda array: array[index], self.rows)


def make_groups(rows: Sequence[Row], ids: SpecialIds, max_length: int) -> list[Group]:
    """Sorts rows by their widths, rounded up (`sampling.bucket_length`), and lays them out.

    Prompts are padded at the left, which rotary positions do not notice, and responses at the
    right; padding is attended by nobody. So a row's numbers are those of the row alone.

    Args:
      rows: Prompts, perhaps empty, and responses.
      ids: Special tokens.
      max_length: Slots that the model can take.

    Returns:
      Groups that together hold every row once.

    Raises:
      ConfigError: a response is empty or holds a mask, or a row is too long; rows are counted
        from 0.
    """
    by_shape: dict[tuple[int, int], list[int]] = {}
    for number, (prompt, response) in enumerate(rows):
        if not len(response):
            raise ConfigError(f"row {number} must have a response, it is empty; leave the row out")
        if ids.mask in prompt or ids.mask in response:
            raise ConfigError(
                f"row {number} must hold text, it holds the mask (id {ids.mask}); remove it"
            )
        total = len(prompt) + len(response)
        if total > max_length:
            raise ConfigError(
                f"row {number} with {len(prompt)} prompt and {len(response)} response tokens must "
                f"fit model.max_length={max_length}; shorten it"
            )
        width = bucket_length(len(response))
        # What the model can take, unless rounding to 8 slots already is more.
        least = -(-len(prompt) // 8) * 8
        start = min(bucket_length(len(prompt)), max(max_length - width, least))
        by_shape.setdefault((start, width), []).append(number)
    return [
        _lay_out(rows, np.array(numbers), Region(start, width, width), ids)
        for (start, width), numbers in sorted(by_shape.items())
    ]


def place_batch(layout: Layout | None, arrays: Any) -> Any:
    """A batch on the devices that hold its rows; without a layout `jit` places it."""
    if layout is None:
        return arrays
    own = layout.share().rows(len(jax.tree.leaves(arrays)[0]))
    return layout.place_rows(jax.tree.map(lambda array: array[own], arrays))


def _lay_out(rows: Sequence[Row], numbers: np.ndarray, region: Region, ids: SpecialIds) -> Group:
    tokens = np.full((len(numbers) + 1, region.start + region.length), ids.pad, np.int32)
    valid = np.zeros(tokens.shape, bool)
    count = np.ones(len(tokens), np.int32)
    valid[-1, region.start] = True  # a row without keys would make NaN
    for at, number in enumerate(numbers):
        prompt, response = rows[number]
        whole = slice(region.start - len(prompt), region.start + len(response))
        tokens[at, whole] = [*prompt, *response]
        valid[at, whole] = True
        count[at] = len(response)
    arrays: dict[str, Any] = {"tokens": tokens, "valid": valid, "count": count}
    return Group(numbers, Canvases(**arrays), region)
