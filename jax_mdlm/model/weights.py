"""Weights in the forms in which they are read: arrays, and what may stand for one.

The network asks three things of a parameter: a product, rows of a table, the whole array. A plain
array gives them by JAX; a `Weight` gives them in its own way, and no layer asks of what kind it is:
`Quantized` in `quantized`, adapters in `lora`.
"""

from typing import Any, Self

import jax


class Weight:
    """A parameter that is no array: quantised (`Quantized`), or changed (`Adapted`, `WithSlack`).

    It has the `shape` of the array that it stands for.
    """

    def astype(self, dtype: jax.typing.DTypeLike) -> Self:
        """The same with its arrays in another dtype."""

        def is_inside(node: Any) -> bool:
            return node is not self and is_weight(node)

        return jax.tree.map(lambda part: part.astype(dtype), self, is_leaf=is_inside)

    def multiply(self, x: jax.Array) -> jax.Array:
        """The product of `x` [..., I] with a matrix [I, O]: [..., O], as wide as it is summed."""
        raise TypeError(f"{type(self).__name__} is no matrix of a layer")

    def rows(self, tokens: jax.Array) -> jax.Array:
        """Rows of a table [V, D]: int [B, L] -> [B, L, D]."""
        raise TypeError(f"{type(self).__name__} is no table")

    def merged(self, dtype: jax.typing.DTypeLike) -> jax.Array:
        """The array that it stands for, in `dtype`."""
        raise TypeError(f"{type(self).__name__} is merged where it is stored")

    def as_head(self) -> Any:
        """What hidden states are multiplied with: itself, where it can multiply."""
        return self


def as_array(weight: Any, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The array that a parameter is, or stands for, in `dtype`."""
    return weight.merged(dtype) if is_weight(weight) else weight.astype(dtype)


def is_weight(leaf: Any) -> bool:
    """Whether a node of a tree of parameters is a `Weight`; for `is_leaf`."""
    return isinstance(leaf, Weight)
