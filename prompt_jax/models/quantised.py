"""Matrices of 8 bits, for a base that is frozen.

A weight is an int8 value times a float32 scale, one for each output of its matrix. Weights alone are quantised: what
they are multiplied by has the dtype of the activations, and so have they, for as long as that takes.

The values are those of qwix, with which the tests compare. It is not used here, since its `einsum` of float
activations does no more than `project` does, and keeps a float copy of the weights for the backward pass.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float


@struct.dataclass
class Quantised:
    """A matrix, or a stack of them. Its dtype is that of the weights it stands for, before they are rounded.

    Attributes:
      values: int8, in the matrix's shape.
      scale: float32, in that shape with a 1 for each input axis.
    """

    values: Any  # an array; Any, since tree maps put other things in its place
    scale: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        return self.scale.dtype


Weights = Array | Quantised


def quantise(matrix: np.ndarray, inputs: int) -> Quantised:
    """A matrix whose first `inputs` axes are contracted with the input; on the host, in the memory of two copies.

    An output's largest weight becomes 127 or -127. If a weight is not finite, neither is its scale, nor any product
    with it.
    """
    axes = tuple(range(inputs))
    matrix = matrix.astype(np.float32, copy=False)
    largest = np.maximum(matrix.max(axes, keepdims=True), -matrix.min(axes, keepdims=True))
    scale = np.where(largest == 0, np.float32(1), largest / np.float32(127))
    with np.errstate(invalid="ignore"):
        values = matrix / scale
    if not (finite := np.isfinite(scale)).all():
        values = np.where(finite, values, np.float32(0))
    return Quantised(np.rint(values, out=values).astype(np.int8), scale)


def project(equation: str, x: Float[Array, "..."], weights: Float[Weights, "..."]) -> Float[Array, "..."]:
    """`jnp.einsum` of activations and weights, in the dtype of the activations.

    Of quantised weights nothing but themselves is kept for the backward pass, where their float copy is made anew.
    Kept, the copies of all layers would be the base once more.
    """
    if not isinstance(weights, Quantised):
        return jnp.einsum(equation, x, weights)

    def multiply(x: Array, values: Array, scale: Array) -> Array:
        return jnp.einsum(equation, x, (values.astype(jnp.float32) * scale).astype(x.dtype))

    return jax.checkpoint(multiply, prevent_cse=False)(x, weights.values, weights.scale)
