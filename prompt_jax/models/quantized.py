"""Weight matrices of 8 bits, for a frozen base.

A weight is an int8 value times a float32 scale; each output of a matrix has one scale. Only weights are quantized.
Activations keep their dtype.

The values are those of qwix, with which the tests compare. qwix itself is not used: its `einsum` of float activations
does the same as `weighted_einsum`, but keeps a float copy of the weights for the backward pass.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float


@struct.dataclass
class Quantized:
    """A quantized matrix, or a stack of them.

    Attributes:
      values: int8, in the matrix's shape.
      scale: float32, in that shape with a 1 for each input axis.
    """

    values: Any  # an array; Any, because tree maps put other things in its place
    scale: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the weights before they were rounded."""
        return self.scale.dtype


Weights = Array | Quantized


def quantize(matrix: np.ndarray, inputs: int) -> Quantized:
    """Quantize a matrix on the host; its first `inputs` axes are contracted with the activations.

    The largest weight of an output becomes 127 or -127. If a weight is not finite, the scale of its output is not
    finite either, and neither is any product with it. Needs memory for two float32 copies.
    """
    axes = tuple(range(inputs))
    matrix = matrix.astype(np.float32, copy=False)
    largest = np.maximum(matrix.max(axes, keepdims=True), -matrix.min(axes, keepdims=True))
    scale = np.where(largest == 0, np.float32(1), largest / np.float32(127))
    with np.errstate(invalid="ignore"):
        values = matrix / scale
    if not (finite := np.isfinite(scale)).all():
        values = np.where(finite, values, np.float32(0))
    return Quantized(np.rint(values, out=values).astype(np.int8), scale)


def weighted_einsum(equation: str, x: Float[Array, "..."], weights: Float[Weights, "..."]) -> Float[Array, "..."]:
    """Return `jnp.einsum` of activations and weights, in the dtype of the activations.

    The backward pass dequantizes the weights again. To keep the float copies of all layers would double the base.
    """
    if not isinstance(weights, Quantized):
        return jnp.einsum(equation, x, weights)

    def multiply(x: Array, values: Array, scale: Array) -> Array:
        return jnp.einsum(equation, x, (values.astype(jnp.float32) * scale).astype(x.dtype))

    return jax.checkpoint(multiply, prevent_cse=False)(x, weights.values, weights.scale)
