"""Weight matrices of 8 or 4 bits for a frozen base.

A weight is a small number times a scale. Activations are not quantized.

| dtype | values | scale |
|---|---|---|
| int8 | integers from -127 to 127 | float32, one for each output |
| fp8 | float8_e4m3fn, at most 448 | float32, one for each output |
| int4 | integers from -8 to 7 | bfloat16, one for each output and group of up to 64 inputs |

A float32 scale would make int4 6 % larger. A bfloat16 scale costs no accuracy, because the values are computed with
the rounded scale.

Tests compare the values with qwix and gguf. We do not use qwix itself, because its `einsum` keeps a float copy of the
weights for the backward pass.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import struct
from jaxtyping import Array, Float

RANGES = {"int8": (-127, 127), "fp8": (-448, 448), "int4": (-8, 7)}  # of values
_GROUP = range(32, 65)  # sizes of groups


@struct.dataclass
class Quantized:
    """A quantized matrix, or a stack of matrices.

    Attributes:
      values: int8, int4, or the bits of float8_e4m3fn as uint8, of the matrix's shape. XLA's CPU compiler would convert
        stacks of float8 to float16.
      scale: float32 or bfloat16, of the matrix's shape. The input axes have size 1; the last one has the number of
        groups, and then the other input axes have their size.
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


def quantized_shape(shape: tuple[int, ...], inputs: int, dtype: str = "int8") -> Quantized:
    """Return the shapes and dtypes of the result of `quantize`.

    A group of int4 has the largest size of at most 64 that divides the last input axis. Groups of less than 32 would
    need too many scales. So if no size from 32 to 64 divides an axis of more than 64, the matrix is int8.
    """
    outputs, width = shape[inputs:], shape[inputs - 1]
    group = width if width in range(_GROUP.stop) else max((size for size in _GROUP if width % size == 0), default=0)
    if dtype == "int4" and group:
        scale = *shape[: inputs - 1], width // group, *outputs
        return Quantized(jax.ShapeDtypeStruct(shape, jnp.int4), jax.ShapeDtypeStruct(scale, jnp.bfloat16))
    values = jnp.uint8 if dtype == "fp8" else jnp.int8
    return Quantized(jax.ShapeDtypeStruct(shape, values), jax.ShapeDtypeStruct((*[1] * inputs, *outputs), jnp.float32))


def quantize(matrix: np.ndarray, inputs: int, dtype: str = "int8") -> Quantized:
    """Quantize a matrix on the host. Its first `inputs` axes are contracted with the activations.

    The largest weight that shares a scale becomes the largest value or its negative. In int4 it becomes -8, by a scale
    that may be negative, as in llama.cpp's Q4_0. For normally distributed weights, this has 22 % less squared error
    than values from -7 to 7. The scale is larger if a weight of the other sign would be more than 7.5.

    If a weight is not finite, its scale and every product with it are not finite either. The function needs memory for
    two float32 copies.
    """
    result = quantized_shape(matrix.shape, inputs, dtype)
    if result.values.dtype == np.int8:
        dtype = "int8"
    # Each axis is split in two: groups that have a scale, and their size.
    pairs = list(zip(result.scale.shape, matrix.shape, strict=True))
    split = [size for groups, width in pairs for size in (groups, width // groups)]
    within = tuple(range(1, len(split), 2))
    weights = matrix.astype(np.float32, copy=False).reshape(split)
    positive, negative = weights.max(within, keepdims=True), -weights.min(within, keepdims=True)
    largest = np.maximum(positive, negative)
    if dtype == "int4":
        scale = np.maximum(largest / np.float32(8), np.minimum(positive, negative) / np.float32(7.5))
        scale = np.where(negative >= positive, scale, -scale)
    else:
        scale = largest / np.float32(RANGES[dtype][1])
    scale = scale.astype(result.scale.dtype)
    scale = np.where(scale == 0, np.ones_like(scale), scale)
    divisor = scale.astype(np.float32)
    with np.errstate(invalid="ignore"):
        values = weights / divisor
    np.clip(values, *RANGES[dtype], out=values)  # the scale was rounded
    if not (finite := np.isfinite(divisor)).all():
        values = np.where(finite, values, np.float32(0))
    if dtype == "fp8":
        values = values.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    else:
        values = np.rint(values, out=values).astype(result.values.dtype)
    return Quantized(values.reshape(matrix.shape), scale.reshape(result.scale.shape))


def weighted_einsum(equation: str, x: Float[Array, "..."], weights: Float[Weights, "..."]) -> Float[Array, "..."]:
    """Return `jnp.einsum` of activations and weights, in the activations' dtype.

    Activations are multiplied by the values, and the scale by what has its axes: the product, or the activations. So
    there are no dequantized weights. With groups of inputs, neither has all its axes, so one matrix at a time is
    dequantized when it is used. The backward pass converts the values again, because float copies of all layers would
    need more memory than the base itself.
    """
    if not isinstance(weights, Quantized):
        return jnp.einsum(equation, x, weights)
    left, right, out = equation.replace("->", ",").split(",")
    sizes = list(zip(right, weights.shape, weights.scale.shape, strict=True))
    scaled = {axis for axis, _, size in sizes if size > 1}
    grouped = any(1 < size < width for _, width, size in sizes)

    def multiply(x: Array, values: Array, scale: Array) -> Array:
        if values.dtype == jnp.uint8:
            values = jax.lax.bitcast_convert_type(values, jnp.float8_e4m3fn)
        values = values.astype(x.dtype)
        if not grouped and scaled <= set(out):
            return _scale(jnp.einsum(equation, x, values), scale, out, right)
        if not grouped and scaled <= set(left):
            return jnp.einsum(equation, _scale(x, scale, left, right), values)
        return jnp.einsum(equation, x, values * _repeat(scale, values.shape).astype(x.dtype))

    return jax.checkpoint(multiply, prevent_cse=False)(x, weights.values, weights.scale)


def _scale(x: Float[Array, "..."], scale: Float[Array, "..."], axes: str, scale_axes: str) -> Float[Array, "..."]:
    """Multiply x by the scale, along the axes with the same letters. Other axes of the scale have size 1."""
    sizes = dict(zip(scale_axes, scale.shape, strict=True))
    shared = [axis for axis in scale_axes if axis in axes]
    order = sorted(range(len(shared)), key=lambda n: axes.index(shared[n]))
    scale = scale.reshape([sizes[axis] for axis in shared]).transpose(order)
    return (x * scale.reshape([sizes.get(axis, 1) for axis in axes])).astype(x.dtype)


def _repeat(scale: Float[Array, "..."], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Repeat the scale of each group for its inputs. Axes of size 1 stay so."""
    for axis, (size, width) in enumerate(zip(scale.shape, shape, strict=True)):
        if 1 < size < width:
            scale = jnp.repeat(scale, width // size, axis)
    return scale
