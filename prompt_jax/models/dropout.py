"""Dropout whose masks are computed where they are used.

`jax.random.bernoulli` makes an array of random bits, which goes through memory, and the backward pass reads it again.
Here a hash of an element's index gives its bits. XLA fuses it into the operation that applies the mask, a kernel
computes it for its own block, and the backward pass computes it again.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray, UInt32

Seeds = Any  # two uint32 numbers, in an array or apart


def dropout(x: Array, rate: float, key: PRNGKeyArray | None) -> Array:
    """Zero each element with probability `rate` and scale the others by 1 / (1 - rate); without a key, return x.

    The mask depends on the key and the shape of x. With the same key, a row that is padded to another length (in
    another length bucket, or next to longer ensemble members) gets another mask.
    """
    if key is None or rate == 0.0:
        return x

    # The backward pass needs only the seeds. A barrier against common subexpressions would also end fusions.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def drop(x: Array, seeds: Array) -> Array:
        return apply_dropout(x, kept(seeds, element_index(x.shape), rate), rate)

    return drop(x, random_seeds(key))


def apply_dropout(x: Array, mask: Bool[Any, "..."], rate: float) -> Array:
    """Zero elements where the mask is false and scale the others by 1 / (1 - rate)."""
    return jnp.where(mask, x / (1.0 - rate), 0.0).astype(x.dtype)


def random_seeds(key: PRNGKeyArray) -> Seeds:
    """Return the seeds for `kept`."""
    return jax.random.bits(key, (2,), jnp.uint32)


def element_index(shape: tuple[int, ...], first: int = 0, row: int | None = None) -> UInt32[Array, "..."]:
    """Return the number of each element of an array in row-major order, modulo 2**32.

    Args:
      shape: the array's shape.
      first: where its last axis begins in a longer axis of length `row`, of which it is a part.
      row: by default the length of the last axis.
    """
    row = shape[-1] if row is None else row
    index = jax.lax.broadcasted_iota(jnp.uint32, shape, len(shape) - 1) + jnp.uint32(first)
    step = row
    for axis in range(len(shape) - 2, -1, -1):
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(step % 2**32)
        step *= shape[axis]
    return index


def kept(seeds: Seeds, index: UInt32[Array, "..."], rate: float) -> Bool[Array, "..."]:
    """Return for each element whether dropout keeps it, with probability 1 - rate.

    Two rounds of a 32-bit integer hash (C. Wellons' lowbias32, 2018), each with its own seed: with one round, the masks
    of two keys would be parts of one sequence.
    """
    bits = _mix(_mix(index + seeds[0]) ^ seeds[1])
    return bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
