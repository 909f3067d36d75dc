"""Feed-forward sublayers in one kernel. `prompt_jax.models` explains letters.

The matrices of a small model's sublayer fit on a TPU chip. A step of the kernel's grid takes some tokens of a row
through all of them, so the hidden activations [B, T, F] never go through memory. The backward kernel computes them
again, and returns the gradient of the input. The gradients of the matrices are those of XLA's operations. The compiler
removes these if the base is frozen.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, UInt32

from prompt_jax.models import fused_attention
from prompt_jax.models.dropout import apply_dropout, element_index, kept

# With fewer tokens, the matrices are most of the memory traffic.
LEAST_TOKENS = 1024
# Bytes of a sublayer's matrices. The chip holds them twice.
_MOST_WEIGHTS = 20 * 2**20
# Hidden activations of a step: 2 MiB in float32, of which the backward pass needs several.
_HIDDEN = 2**19
_LANES, _TILE = 128, 16
# Columns of the array of numbers that the kernels read.
_SEED_0, _SEED_1, _FIRST = range(3)


class Matrices(NamedTuple):
    """The weights of a sublayer: `up` and `gate` are [D, F], `down` [F, D], and the biases [F]."""

    up: Array
    down: Array
    gate: Array | None = None
    up_bias: Array | None = None
    gate_bias: Array | None = None


class _Options(NamedTuple):
    """The static properties of a kernel."""

    activate: Callable
    dropout_rate: float  # 0 without dropout


def suits(x: Float[Array, "B T D"], weights: Any, config: Any) -> bool:
    """Return whether the kernel computes a sublayer with these weights.

    It needs `remat full`; otherwise the backward pass reads stored hidden activations. It does not take matrices that
    are sharded over `mesh.model`.
    """
    matrices = [weights[name] for name in ("up", "gate", "down") if name in weights]
    width, hidden = weights["up"].shape
    mesh = jax.sharding.get_abstract_mesh()
    rows = {name: size for name, size in mesh.shape.items() if name not in mesh.manual_axes}.get("data", 1)
    return (
        config.fused_attention
        and config.remat == "full"
        and all(isinstance(each, jax.Array) for each in matrices)
        and fits(width, hidden, len(matrices), matrices[0].dtype.itemsize)
        and x.shape[0] * x.shape[1] >= LEAST_TOKENS * rows
        and mesh.shape.get("model", 1) == 1
    )


def fits(width: int, hidden: int, matrices: int, itemsize: int) -> bool:
    """Return whether the device has a kernel, and enough vector memory, for this many matrices [width, hidden]."""
    return (
        fused_attention.platform() != "gpu"
        and fused_attention.has_large_vector_memory()
        and matrices * width * hidden * itemsize <= _MOST_WEIGHTS
        and width % _LANES == hidden % _LANES == 0
    )


def feed_forward(
    x: Float[Array, "B T D"],
    matrices: Matrices,
    activate: Callable,
    dropout_rate: float = 0.0,
    seeds: UInt32[Array, "2"] | None = None,
) -> Float[Array, "B T D"]:
    """Return the output of a sublayer, without the bias of `down`.

    Args:
      x: the input.
      matrices: the weights.
      activate: the activation function, of the product with `gate` if there is one.
      dropout_rate: of the hidden activations. The mask is that of `dropout.dropout` with a key of these seeds.
      seeds: those of `dropout.random_seeds`; None is no dropout.
    """
    options = _Options(activate, 0.0 if seeds is None else dropout_rate)
    numbers = jnp.zeros((1, 3), jnp.int32)
    if seeds is not None:
        numbers = numbers.at[0, : _SEED_1 + 1].set(jax.lax.bitcast_convert_type(seeds, jnp.int32))
    return _feed_forward(options, x, matrices, numbers)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _feed_forward(options: _Options, x: Array, matrices: Matrices, numbers: Array) -> Array:
    return _on_devices(functools.partial(_forward, options), matrices, numbers, x)


def _differentiable(options: _Options, *arguments: Any) -> tuple[Array, Any]:
    return _feed_forward(options, *arguments), arguments


def _gradients(options: _Options, arguments: Any, gradient: Array) -> tuple[Array, Matrices, None]:
    x, matrices, numbers = arguments
    of_matrices = jax.vjp(lambda matrices: _plain(options, x, matrices, numbers), matrices)[1](gradient)[0]
    return _on_devices(functools.partial(_backward, options), matrices, numbers, x, gradient), of_matrices, None


_feed_forward.defvjp(_differentiable, _gradients)


def _plain(options: _Options, x: Array, matrices: Matrices, numbers: Array) -> Array:
    """Return the output by XLA's operations."""
    flat = x.reshape(-1, x.shape[-1])
    hidden = _dropped(options, _activated(options, *_products(flat, matrices)), numbers[0], numbers[0, _FIRST])
    return (hidden.astype(x.dtype) @ matrices.down).reshape(x.shape)


def _on_devices(call: Any, matrices: Matrices, numbers: Array, *arrays: Array) -> Array:
    """Return the call's result for the rows of each device. XLA cannot divide a kernel itself."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = {name: size for name, size in mesh.shape.items() if name not in mesh.manual_axes}
    if not axes:
        return call(matrices, numbers, *arrays)
    rows = "data" if "data" in axes and len(arrays[0]) % axes["data"] == 0 else None

    def local(matrices: Matrices, numbers: Array, *arrays: Array) -> Array:
        if rows:
            tokens = arrays[0].shape[0] * arrays[0].shape[1]
            numbers = numbers.at[0, _FIRST].set(jax.lax.axis_index(rows) * tokens)
        return call(matrices, numbers, *arrays)

    whole, by_rows = PartitionSpec(), PartitionSpec(rows)
    specs = (whole, whole, *[by_rows] * len(arrays))
    on_each = jax.shard_map(local, in_specs=specs, out_specs=by_rows, axis_names=set(axes), check_vma=False)
    return on_each(matrices, numbers, *arrays)


# --------------------------------------------------------------------------------------------------------------
# The kernels


def _forward(options: _Options, matrices: Matrices, numbers: Array, x: Array) -> Array:
    def kernel(matrices: Matrices, numbers: Any, first: Array, x: Array) -> Array:
        hidden = _dropped(options, _activated(options, *_products(x, matrices)), numbers, first)
        return _dot(hidden.astype(x.dtype), matrices.down, 1, 0)

    return _for_each_block(kernel, "feed_forward", 2 + (matrices.gate is not None), matrices, numbers, x)


def _backward(options: _Options, matrices: Matrices, numbers: Array, x: Array, gradient: Array) -> Array:
    def kernel(matrices: Matrices, numbers: Any, first: Array, x: Array, gradient: Array) -> Array:
        products = _products(x, matrices)
        hidden_gradient = _dropped(options, _dot(gradient, matrices.down, 1, 1), numbers, first)
        pull = jax.vjp(functools.partial(_activated, options), *products)[1]
        up, *gate = (each.astype(x.dtype) for each in pull(hidden_gradient))
        through_up = _dot(up, matrices.up, 1, 1)
        return through_up if matrices.gate is None else through_up + _dot(gate[0], matrices.gate, 1, 1)

    products = 3 + 2 * (matrices.gate is not None)
    return _for_each_block(kernel, "feed_forward_gradient", products, matrices, numbers, x, gradient)


def _products(x: Float[Array, "N D"], matrices: Matrices) -> list[Any]:
    """Return the products with `up` and `gate` and their biases, in float32."""
    pairs = (matrices.up, matrices.up_bias), (matrices.gate, matrices.gate_bias)
    return [_product(x, matrix, bias) for matrix, bias in pairs if matrix is not None]


def _product(x: Float[Array, "N D"], matrix: Array, bias: Array | None) -> Float[Array, "N F"]:
    product = _dot(x, matrix, 1, 0)
    return product if bias is None else product + bias.reshape(1, -1).astype(jnp.float32)


def _activated(options: _Options, up: Array, gate: Array | None = None) -> Array:
    return options.activate(up) if gate is None else options.activate(gate) * up


def _dropped(options: _Options, hidden: Float[Array, "N F"], numbers: Any, first: Any) -> Array:
    """Apply dropout to hidden activations whose first token has this number."""
    if options.dropout_rate == 0:
        return hidden
    seeds = [numbers[column].astype(jnp.uint32) for column in (_SEED_0, _SEED_1)]
    index = element_index(hidden.shape) + first.astype(jnp.uint32) * jnp.uint32(hidden.shape[1])
    return apply_dropout(hidden, kept(seeds, index, options.dropout_rate), options.dropout_rate)


def _dot(a: Array, b: Array, contracted_a: int, contracted_b: int) -> Float[Array, "_ _"]:
    dimensions = ((contracted_a,), (contracted_b,)), ((), ())
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _for_each_block(kernel: Any, name: str, products: int, matrices: Matrices, numbers: Array, *arrays: Array) -> Array:
    """Return the kernel's results for blocks of tokens, in the shape of the arrays."""
    (rows, length, width), hidden = arrays[0].shape, matrices.up.shape[1]
    # Blocks of nearly equal size, in whole tiles.
    most = max(_HIDDEN // hidden, _TILE)
    size = min(pl.cdiv(pl.cdiv(length, pl.cdiv(length, most)), _TILE) * _TILE, length)
    of_tokens = pl.BlockSpec((None, size, width), lambda row, block: (row, block, 0))
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), matrices))

    def on_block(numbers_ref: Any, *refs: Any) -> None:
        *in_refs, out_ref = refs
        weights, arrays = ([ref[...] for ref in some] for some in (in_refs[: len(leaves)], in_refs[len(leaves) :]))
        read = [numbers_ref[0, column] for column in range(3)]
        first = read[_FIRST] + pl.program_id(0) * length + pl.program_id(1) * size
        out_ref[...] = kernel(jax.tree.unflatten(tree, weights), read, first, *arrays).astype(out_ref.dtype)

    return pl.pallas_call(
        on_block,
        grid=(rows, pl.cdiv(length, size)),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            *(pl.BlockSpec(leaf.shape, lambda row, block: (0, 0)) for leaf in leaves),
            *[of_tokens] * len(arrays),
        ],
        out_specs=of_tokens,
        out_shape=jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=fused_attention.vector_memory()
        ),
        cost_estimate=fused_attention.cost_estimate(
            2 * products * rows * length * width * hidden, [*leaves, *arrays, arrays[0]]
        ),
        name=name,
    )(numbers, *leaves, *arrays)
