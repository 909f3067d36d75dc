"""8-bit weight matrices for a frozen base.

A weight is an int8 value times a float32 scale, with one scale for each output of a matrix. Activations are not
quantized.

Tests compare the values with qwix. We do not use qwix itself, because its `einsum` keeps a float copy of the weights
for the backward pass.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float


@struct.dataclass
class Quantized:
    """A quantized matrix, or a stack of matrices.

    Attributes:
      values: int8, of the matrix's shape.
      scale: float32, of the matrix's shape with input axes of size 1.
    """

    values: Any  # an array; typed Any because tree maps store other types here
    scale: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        """Return the dtype of the dequantized weights."""
        return self.scale.dtype


Weights = Array | Quantized


def quantize(matrix: np.ndarray, inputs: int) -> Quantized:
    """Quantize a matrix on the host. Its first `inputs` axes are contracted with the activations.

    The largest weight of an output becomes 127 or -127. If a weight is not finite, the scale of its output and every
    product with it are not finite either. The function needs memory for two float32 copies.
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
    """Return `jnp.einsum` of activations and weights, in the activations' dtype.

    Activations are multiplied by the integers, and the scale by what has its axes: the product, or the activations.
    So there are no dequantized weights. The backward pass converts the integers again, because float copies of all
    layers would need more memory than the base itself.
    """
    if not isinstance(weights, Quantized):
        return jnp.einsum(equation, x, weights)
    left, right, out = equation.replace("->", ",").split(",")
    scaled = [axis for axis, size in zip(right, weights.scale.shape, strict=True) if size > 1 and axis not in out]

    def multiply(x: Array, values: Array, scale: Array) -> Array:
        if scaled:
            x = _scale(x, scale, left, right)
        product = jnp.einsum(equation, x, values.astype(x.dtype))
        return product if scaled else _scale(product, scale, out, right)

    return jax.checkpoint(multiply, prevent_cse=False)(x, weights.values, weights.scale)


def _scale(x: Float[Array, "..."], scale: Float[Array, "..."], axes: str, scale_axes: str) -> Float[Array, "..."]:
    """Multiply x by the scale, along the axes with the same letters. Other axes of the scale have size 1."""
    sizes = dict(zip(scale_axes, scale.shape, strict=True))
    shared = [axis for axis in scale_axes if axis in axes]
    order = sorted(range(len(shared)), key=lambda n: axes.index(shared[n]))
    scale = scale.reshape([sizes[axis] for axis in shared]).transpose(order)
    return (x * scale.reshape([sizes.get(axis, 1) for axis in axes])).astype(x.dtype)
