"""Attention in one kernel, which keeps no array of scores [B, H, T, S] in memory. `prompt_jax.models` explains letters.

On a TPU it is a Pallas kernel. A step of its grid computes some queries of a row, for a few heads: their scores for all
keys fit on the chip, so the softmax needs no second pass. The backward kernel computes them again. Relative positions
are frozen and get no gradient. On a GPU it is cuDNN's kernel (cudnn_attention.py).

Heads stay side by side in [B, T, H K], as the projections make and read them, so nothing is transposed.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from prompt_jax.config.model import Attention
from prompt_jax.models.dropout import apply_dropout, kept, random_seeds

MASKED = -1e9
# Positions of keys that no query sees, and that all queries see.
_HIDDEN, _ALWAYS = 2**30, -1
# With fewer queries, the scores are small, and XLA's own fusions are as good.
LEAST_QUERIES = 128
# Elements of the scores of one head that a step computes: 2 MiB in float32, of which the backward pass needs several.
_SCORES = 2**19
_LANES = 128
_LEAST_BLOCK = 64  # queries
# TPUs, by `device_kind`, with 16 MiB of vector memory. Others have at least 64.
_SMALL = ("TPU v2", "TPU v3", "TPU v4")
# The backward pass holds this many arrays of the scores' shape in vector memory.
_SCORE_ARRAYS = 10
# The share of the vector memory that a kernel can use.
_USABLE = 0.9
# Columns of the array of numbers that the kernels read.
_FIRST, _WINDOW, _SEED_0, _SEED_1, _ROW, _HEAD = range(6)


@dataclasses.dataclass(frozen=True)
class _Options:
    """The static properties of a kernel."""

    heads: int  # of the whole model, all devices together
    query_heads: int  # that share a key-value head
    width: int
    causal: bool
    softcap: float | None
    dropout_rate: float  # 0 without dropout


_device: ContextVar[Any] = ContextVar("device", default=None)


@contextlib.contextmanager
def compiling_for(device: Any) -> Iterator[None]:
    """Trace functions for this device; otherwise, for JAX's first device."""
    token = _device.set(device)
    try:
        yield
    finally:
        _device.reset(token)


def platform() -> str:
    """Return the platform to compile for; tests replace it."""
    return _target().platform


def _target() -> Any:
    return _device.get() or jax.devices()[0]


def has_large_vector_memory() -> bool:
    """Return whether the TPU to compile for has 64 MiB of vector memory or more."""
    return _target().device_kind not in _SMALL


def is_fused(attention: Attention) -> bool:
    """Return whether the option asks for the kernel."""
    return attention == "fused" or (attention == "auto" and platform() != "cpu")


def suits(q: Any, key_values: Sequence[Any]) -> bool:
    """Return whether the kernel takes these arguments of `attention.attend`, and is worth it."""
    keys, (*_, groups, width) = sum(each.k.shape[-3] for each in key_values), key_values[0].k.shape
    biased = any(each.bias is not None for each in key_values)
    return (
        q.shape[1] >= LEAST_QUERIES
        and all(each.bias is None or each.bias.shape[0] == 1 for each in key_values)
        and not any(each.heads_first for each in key_values)
        and fits(keys, width, groups, q.shape[2], q.dtype.itemsize, biased=biased)
    )


def fits(keys: int, width: int, groups: int, heads: int, itemsize: int, *, biased: bool) -> bool:
    """Return whether a step of the kernel has enough vector memory for this many keys. On GPUs, any number fits.

    Args:
      keys: number of keys.
      width: width of a head.
      groups: number of key-value heads.
      heads: number of query heads.
      itemsize: bytes of an activation.
      biased: whether scores have a bias.
    """
    some = _key_value_heads(width, groups)
    # Keys, values and their gradients, each twice, sums of the gradients in float32, and the scores of a few queries.
    of_key = width * some * (2 * 4 * itemsize + 2 * 4)
    biases = 2 * some * (heads // groups) * biased
    used = keys * (of_key + (_SCORE_ARRAYS + biases) * _LEAST_BLOCK * 4)
    return platform() == "gpu" or used <= _USABLE * vector_memory()


def attend(
    q: Float[Array, "B T H K"],
    key_values: Sequence[Any],
    positions: Int[Any, "#B T"] | None,
    window: Int[Any, ""] | None,
    *,
    softcap: float | None,
    dropout_rate: float,
    key: PRNGKeyArray | None,
) -> Float[Array, "B T H K"]:
    """Return the result of `attention.attend`, whose arguments these are. The positions must be consecutive."""
    rows, _, heads, width = q.shape
    k, v = (joined([getattr(each, name) for each in key_values], rows) for name in "kv")
    seen = [_key_positions(each, positions is not None, rows) for each in key_values]
    numbers = jnp.zeros((rows, 6), jnp.int32).at[:, _WINDOW].set(_HIDDEN if window is None else window)
    numbers = numbers.at[:, _ROW].set(np.arange(rows))
    if positions is not None:
        numbers = numbers.at[:, _FIRST].set(jnp.asarray(positions)[:, 0])
    rate = 0.0 if key is None else dropout_rate
    if key is not None and rate:
        numbers = numbers.at[:, _SEED_0 : _SEED_1 + 1].set(jax.lax.bitcast_convert_type(random_seeds(key), jnp.int32))
    options = _Options(heads, heads // k.shape[2], width, positions is not None, softcap, rate)
    bias = _joined_bias(key_values, q.shape[1])
    call = sharded(functools.partial(_attend, options), q, k, bias)
    return call(q, k, v, bias, jnp.concatenate(seen, axis=1)[:, None], numbers)


def joined(arrays: Sequence[Array], rows: int) -> Float[Array, "B S G K"]:
    """Return the keys or values of all blocks, for each row."""
    each = [x if x.ndim == 4 else jnp.broadcast_to(x[None], (rows, *x.shape)) for x in arrays]
    return each[0] if len(each) == 1 else jnp.concatenate(each, axis=1)


def _key_positions(key_values: Any, causal: bool, rows: int) -> Int[Array, "B S"]:
    """Return the positions of a block's keys, with masked ones hidden."""
    length = key_values.k.shape[-3]
    if causal and key_values.positions is not None:
        position = jnp.asarray(key_values.positions, jnp.int32)
    else:
        position = jnp.full((1, length), _ALWAYS, jnp.int32)
    if key_values.mask is not None:
        position = jnp.where(key_values.mask, position, _HIDDEN)
    return jnp.broadcast_to(position, (rows, length))


def _joined_bias(key_values: Sequence[Any], queries: int) -> Float[Array, "H T S"] | None:
    """Return the bias for the keys of all blocks; a block without a bias has zeros."""
    heads = next((each.bias.shape[1] for each in key_values if each.bias is not None), None)
    if heads is None:
        return None
    each = [
        jnp.zeros((heads, queries, kv.k.shape[-3]), jnp.float32) if kv.bias is None else kv.bias[0] for kv in key_values
    ]
    return jax.lax.stop_gradient(each[0] if len(each) == 1 else jnp.concatenate(each, axis=2))


# --------------------------------------------------------------------------------------------------------------
# Several devices


def sharded(call: Any, q: Array, k: Array, bias: Any) -> Any:
    """Return the call on each device's rows and heads. XLA cannot shard a kernel itself.

    If rows or heads cannot be divided over the devices, such as the single row of a prompt, each device computes all.
    The call's arguments are queries, keys, values and bias, and then `seen` and `numbers` of the kernel for TPUs.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = {name: size for name, size in mesh.shape.items() if name not in mesh.manual_axes}
    if not axes:
        return call
    sizes = {"data": q.shape[0], "model": k.shape[2]}
    rows, heads = (name if name in axes and size % axes[name] == 0 else None for name, size in sizes.items())

    def local(q: Array, k: Array, v: Array, bias: Any, *of_rows: Array) -> Array:
        if heads and of_rows:
            seen, numbers = of_rows
            of_rows = seen, numbers.at[:, _HEAD].set(jax.lax.axis_index(heads) * q.shape[2])
        return call(q, k, v, bias, *of_rows)

    four = PartitionSpec(rows, None, heads)
    of_bias = PartitionSpec(heads) if bias is not None and bias.shape[0] > 1 else PartitionSpec()

    def on_devices(*arrays: Any) -> Array:
        specs = (four, four, four, of_bias, *[PartitionSpec(rows)] * (len(arrays) - 4))
        on_each = jax.shard_map(local, in_specs=specs, out_specs=four, axis_names=set(axes), check_vma=False)
        return on_each(*arrays)

    return on_devices


# --------------------------------------------------------------------------------------------------------------
# The kernels


def _attend(options: _Options, q: Array, k: Array, v: Array, bias: Any, seen: Array, numbers: Array) -> Array:
    # The backward pass keeps heads side by side. With an axis of heads, a TPU would pad each to 128 numbers.
    side_by_side = (x.reshape(*x.shape[:2], -1) for x in (q, k, v))
    return _attend_side_by_side(options, *side_by_side, bias, seen, numbers).reshape(q.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_side_by_side(options: _Options, *arguments: Any) -> Float[Array, "B T HK"]:
    return _forward(options, *arguments)


def _attend_forward(options: _Options, *arguments: Any) -> tuple[Array, Any]:
    return _forward(options, *arguments), arguments


def _attend_backward(options: _Options, arguments: Any, gradient: Array) -> tuple[Any, ...]:
    q, k, v, *rest = arguments
    return *_backward(options, q, k, v, gradient, *rest), None, None, None


_attend_side_by_side.defvjp(_attend_forward, _attend_backward)


def _key_value_heads(width: int, groups: int) -> int:
    """Return how many key-value heads a step of the grid takes: whole tiles of lanes, or all heads."""
    sizes = (n for n in range(1, groups) if groups % n == 0 and n * width % _LANES == 0)
    return next(sizes, groups)


def _queries(length: int, keys: int) -> int:
    """Return how many queries a step takes: all, or a multiple of a tile whose scores fit on the chip."""
    scores = _SCORES if has_large_vector_memory() else _SCORES // 4
    most = max(scores // keys // _LANES * _LANES, _LEAST_BLOCK)
    return length if length <= most else most


def vector_memory() -> int:
    """Return the bytes of vector memory of the TPU to compile for, at most 64 MiB."""
    return (64 if has_large_vector_memory() else 16) * 2**20


def _forward(options: _Options, q: Array, k: Array, v: Array, bias: Any, seen: Array, numbers: Array) -> Array:
    (batch, length, _), keys, groups = q.shape, k.shape[1], k.shape[2] // options.width
    some, size = _key_value_heads(options.width, groups), _queries(length, keys)
    wide, narrow = some * options.query_heads * options.width, some * options.width
    # Rows vary fastest, so that a bias is read once for all rows.
    grid = groups // some, pl.cdiv(length, size), batch
    of_queries = pl.BlockSpec((None, size, wide), lambda g, t, b: (b, t, g))
    of_keys = pl.BlockSpec((None, keys, narrow), lambda g, t, b: (b, 0, g))
    in_specs = [
        *(of_queries, of_keys, of_keys),
        pl.BlockSpec((None, 1, keys), lambda g, t, b: (b, 0, 0)),
        pl.BlockSpec(memory_space=pltpu.SMEM),
    ]
    arrays = [q, k, v, seen, numbers]
    if bias is not None:
        in_specs.append(pl.BlockSpec((some * options.query_heads, size, keys), lambda g, t, b: (g, t, 0)))
        arrays.append(bias)

    def kernel(q_ref, k_ref, v_ref, seen_ref, numbers_ref, *refs):
        bias_ref, out_ref = refs if bias is not None else (None, *refs)
        block = _Block(options, keys, length, pl.program_id(0), pl.program_id(1), pl.program_id(2), numbers_ref)
        visible = block.visible(seen_ref[...], size)
        for head, q_at, k_at in block.heads(some):
            weights = block.weights(q_ref[:, q_at], k_ref[:, k_at], visible, _head(bias_ref, head))[0]
            total = weights.sum(axis=-1, keepdims=True)
            weights = block.dropped(weights, head, some)
            mixed = _dot(weights.astype(v.dtype), v_ref[:, k_at], ((1,), (0,)))
            out_ref[:, q_at] = (mixed / total).astype(out_ref.dtype)

    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=in_specs,
        out_specs=of_queries,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel"), vmem_limit_bytes=vector_memory()
        ),
        cost_estimate=_cost(2, q, keys, [*arrays, q]),
        name="attention",
    )(*arrays)


def _backward(
    options: _Options, q: Array, k: Array, v: Array, gradient: Array, bias: Any, seen: Array, numbers: Array
) -> Any:
    (batch, length, _), keys, groups = q.shape, k.shape[1], k.shape[2] // options.width
    some, size = _key_value_heads(options.width, groups), _queries(length, keys)
    steps = pl.cdiv(length, size)
    wide, narrow = some * options.query_heads * options.width, some * options.width
    # Queries vary fastest if they take several steps, which add up the gradients of keys and values.
    grid = groups // some, batch, steps
    of_queries = pl.BlockSpec((None, size, wide), lambda g, b, t: (b, t, g))
    of_keys = pl.BlockSpec((None, keys, narrow), lambda g, b, t: (b, 0, g))
    in_specs = [
        *(of_queries, of_keys, of_keys, of_queries),
        pl.BlockSpec((None, 1, keys), lambda g, b, t: (b, 0, 0)),
        pl.BlockSpec(memory_space=pltpu.SMEM),
    ]
    arrays = [q, k, v, gradient, seen, numbers]
    if bias is not None:
        in_specs.append(pl.BlockSpec((some * options.query_heads, size, keys), lambda g, b, t: (g, t, 0)))
        arrays.append(bias)

    def kernel(q_ref, k_ref, v_ref, gradient_ref, seen_ref, numbers_ref, *refs):
        bias_ref = refs[0] if bias is not None else None
        dq_ref, dk_ref, dv_ref, dk_sum, dv_sum = refs[-5:]
        step = pl.program_id(2)
        block = _Block(options, keys, length, pl.program_id(0), step, pl.program_id(1), numbers_ref)
        visible = block.visible(seen_ref[...], size)

        @pl.when(step == 0)
        def _start() -> None:
            dk_sum[...] = jnp.zeros_like(dk_sum)
            dv_sum[...] = jnp.zeros_like(dv_sum)

        for head, q_at, k_at in block.heads(some):
            # Queries after the last one have undefined values, which must not reach the sums.
            queries, mixed_gradient = (block.inside(ref[:, q_at], size) for ref in (q_ref, gradient_ref))
            key, value = k_ref[:, k_at], v_ref[:, k_at]
            weights, slope = block.weights(queries, key, visible, _head(bias_ref, head))
            weights /= weights.sum(axis=-1, keepdims=True)
            dv_sum[:, k_at] += _dot(block.dropped(weights, head, some).astype(v.dtype), mixed_gradient, ((0,), (0,)))
            change = block.dropped(_dot(mixed_gradient, value, ((1,), (1,))), head, some)
            change = weights * (change - (weights * change).sum(axis=-1, keepdims=True))
            change = (change if slope is None else change * slope).astype(q.dtype)
            dq_ref[:, q_at] = _dot(change, key, ((1,), (0,))).astype(dq_ref.dtype)
            dk_sum[:, k_at] += _dot(change, queries, ((0,), (0,)))

        @pl.when(step == steps - 1)
        def _end() -> None:
            dk_ref[...] = dk_sum[...].astype(dk_ref.dtype)
            dv_ref[...] = dv_sum[...].astype(dv_ref.dtype)

    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=in_specs,
        out_specs=[of_queries, of_keys, of_keys],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)],
        scratch_shapes=[pltpu.VMEM((keys, narrow), jnp.float32)] * 2,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=vector_memory()
        ),
        cost_estimate=_cost(5, q, keys, [*arrays, q, k, v]),
        name="attention_gradient",
    )(*arrays)


@dataclasses.dataclass(frozen=True)
class _Block:
    """The part of the scores that one step of a grid computes."""

    options: _Options
    keys: int
    length: int  # of all queries
    group: Any  # number of the step's block of key-value heads
    step: Any  # number of its block of queries
    row: Any
    numbers: Any

    def heads(self, some: int) -> list[tuple[int, slice, slice]]:
        """Return for each query head its number in the block, and where its queries and keys are."""
        width, shared = self.options.width, self.options.query_heads
        return [
            (head, slice(head * width, (head + 1) * width), slice(head // shared * width, (head // shared + 1) * width))
            for head in range(some * shared)
        ]

    def visible(self, seen: Int[Array, "1 S"], size: int) -> Array:
        """Return which keys the queries see. Queries after the last one, whose bias is undefined, see none."""
        query = self.step * size + jax.lax.broadcasted_iota(jnp.int32, (size, self.keys), 0)
        visible = seen < _HIDDEN
        if self.options.causal:
            position = query + self.numbers[self.row, _FIRST]
            visible = (seen <= position) & ((seen > position - self.numbers[self.row, _WINDOW]) | (seen < 0))
        return visible if self.length % size == 0 else visible & (query < self.length)

    def weights(self, q: Array, k: Array, visible: Array, bias: Any) -> tuple[Array, Array | None]:
        """Return exp(scores - largest), and the derivative of the soft cap."""
        scores, slope = _dot(q, k, ((1,), (1,))), None
        if (cap := self.options.softcap) is not None:
            bent = jnp.tanh(scores / cap)
            scores, slope = cap * bent, 1 - bent * bent
        if bias is not None:
            scores += bias
        scores = jnp.where(visible, scores, MASKED)
        return jnp.exp(scores - scores.max(axis=-1, keepdims=True)), slope

    def dropped(self, weights: Array, head: int, some: int) -> Array:
        """Apply dropout, with the mask of `dropout.kept` for the elements of [B, H, T, S]."""
        if self.options.dropout_rate == 0:
            return weights
        at = functools.partial(jax.lax.broadcasted_iota, jnp.uint32, weights.shape)
        row, first_head = (self.numbers[self.row, column] for column in (_ROW, _HEAD))
        head = first_head + self.group * (some * self.options.query_heads) + head
        first = (row * self.options.heads + head) * self.length + self.step * weights.shape[0]
        index = (first.astype(jnp.uint32) + at(0)) * jnp.uint32(self.keys) + at(1)
        seeds = [self.numbers[self.row, column].astype(jnp.uint32) for column in (_SEED_0, _SEED_1)]
        return apply_dropout(weights, kept(seeds, index, self.options.dropout_rate), self.options.dropout_rate)

    def inside(self, x: Array, size: int) -> Array:
        """Return x with zeros for queries after the last one."""
        if self.length % size == 0:
            return x
        query = self.step * size + jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
        return jnp.where(query < self.length, x, jnp.zeros_like(x))


def _head(bias_ref: Any, head: int) -> Any:
    return None if bias_ref is None else bias_ref[head]


def _dot(a: Array, b: Array, contracted: tuple[tuple[int], tuple[int]]) -> Float[Array, "_ _"]:
    return jax.lax.dot_general(a, b, (contracted, ((), ())), preferred_element_type=jnp.float32)


def _cost(products: int, q: Array, keys: int, arrays: Sequence[Array]) -> pl.CostEstimate:
    """Return the cost of a kernel with this many products of [T, K] and [K, S] per head."""
    batch, length, width = q.shape
    return cost_estimate(2 * products * batch * length * width * keys, arrays)


def cost_estimate(operations: int, arrays: Sequence[Array]) -> pl.CostEstimate:
    """Return the cost of a kernel that reads or writes each of these arrays once."""
    size = sum(array.size * array.dtype.itemsize for array in arrays)
    return pl.CostEstimate(flops=operations, bytes_accessed=size, transcendentals=0)
