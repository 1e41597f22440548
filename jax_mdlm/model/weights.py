"""What may stand for an array among the parameters and answers for itself.

The network asks three things of a parameter: a product, rows of a table, the whole array. A plain
array gives them by JAX; a `Weight` gives them in its own way, and no layer asks of what kind it is.
"""

from typing import Any, Self

import jax


class Weight:
    """A parameter that is no array: quantised (`Int8`), or changed (`Adapted`, `WithSlack`).

    It has the `shape` of the array that it stands for.
    """

    def astype(self, dtype: jax.typing.DTypeLike) -> Self:
        """The same with its arrays in another dtype."""
        return jax.tree.map(lambda array: array.astype(dtype), self)

    def multiply(self, x: jax.Array) -> jax.Array:
        """The product of `x` [..., I] with a matrix [I, O]: [..., O], as wide as it is summed."""
        raise NotImplementedError(f"{type(self).__name__} is no matrix of a layer")

    def rows(self, tokens: jax.Array) -> jax.Array:
        """Rows of a table [V, D]: int [B, L] -> [B, L, D]."""
        raise NotImplementedError(f"{type(self).__name__} is no table")

    def merged(self, dtype: jax.typing.DTypeLike) -> jax.Array:
        """The array that it stands for, in `dtype`."""
        raise NotImplementedError

    def as_head(self) -> Any:
        """What hidden states are multiplied with: itself, where it can multiply."""
        return self


def is_weight(leaf: Any) -> bool:
    """Whether a node of a tree of parameters is a `Weight`; for `is_leaf`."""
    return isinstance(leaf, Weight)
