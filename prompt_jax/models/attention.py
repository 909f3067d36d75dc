"""Attention and dropout, shared by the model families. Shapes: see `prompt_jax.models`."""

import math

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p
from jaxtyping import Array, Bool, Float, PRNGKeyArray

# Added to the score of a masked key. Large enough that its weight is exactly zero, and finite, so that a row
# with no key at all (padding that fills a batch) gives numbers and not NaN.
MASKED = -1e9


def attend(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H K"],
    bias: Float[Array, "#B #H #T S"],
    *,
    dropout_rate: float = 0.0,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "B T H K"]:
    """softmax(q k + bias) v; q comes already scaled."""
    scores = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=jnp.float32)
    return weighted_sum(scores + bias, v, "bhts,bshk->bthk", dropout_rate=dropout_rate, key=key)


def weighted_sum(
    scores: Float[Array, "B H T S"],
    values: Float[Array, "B S *rest"],
    contraction: str,
    *,
    dropout_rate: float = 0.0,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "B T H _"]:
    """The mean of values [B, S, ...] with weights softmax(scores), contracted as `contraction` says; float32 inside.

    Dropout, if a key is given, is of the weights. The sum is divided by its normaliser afterwards and not the weights
    before: of the two largest arrays in the model, [B, H, T, S], only one is then kept for the backward pass.
    """
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1).transpose(0, 2, 1)[..., None]  # [B, T, H, 1]
    kept = keep_mask(weights.shape, dropout_rate, key)

    # Recomputed in the backward pass from weights and mask, which are kept anyway.
    @jax.checkpoint
    def contract(weights, kept, values):
        return jnp.einsum(contraction, drop(weights, kept, dropout_rate).astype(values.dtype), values)

    return (contract(weights, kept, values) / total).astype(values.dtype)


def mask_bias(mask: Bool[Array, "B S"]) -> Float[Array, "B 1 1 S"]:
    """What `attend` adds to the scores so that only keys with a true mask are seen."""
    return jnp.where(mask, 0.0, MASKED)[:, None, None, :]


def dropout(x: Array, rate: float, key: PRNGKeyArray | None) -> Array:
    """Zeroes each element with probability `rate` and scales the others up; the identity without a key."""
    return drop(x, keep_mask(x.shape, rate, key), rate)


def keep_mask(shape: tuple[int, ...], rate: float, key: PRNGKeyArray | None) -> Bool[Array, "..."] | None:
    """True with probability 1 - rate; None where nothing is dropped.

    An element's value depends on its place alone, not on the lengths of the last two axes: padding on the right
    changes nothing for what is there. `jax.random` has no such bits, so its generator, Threefry, is called on counters
    of our own. One call gives 64 bits, which are shared by two elements in each of two rows; the rate is thereby a
    multiple of 2**-16.
    """
    if key is None or rate == 0.0:
        return None
    *leading, length, width = shape
    counters = math.prod(leading), -(-length // 2), -(-width // 2)
    first, second, third = (jax.lax.broadcasted_iota(jnp.uint32, counters, axis) for axis in range(3))
    seed = jax.random.bits(key, (2,), jnp.uint32)  # whatever the implementation of the key
    words = jnp.stack(threefry2x32_p.bind(seed[0], seed[1], first, second << 16 | third), axis=2)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(counters[0], 2 * counters[1], 2 * counters[2])
    return (halves[:, :length, :width] >= round(rate * 2**16)).reshape(shape)


def drop(x: Array, kept: Bool[Array, "..."] | None, rate: float) -> Array:
    """Zeroes what is not kept, and scales the rest up by the exact rate of `keep_mask`."""
    if kept is None:
        return x
    return jnp.where(kept, x / (1.0 - round(rate * 2**16) / 2**16), 0.0).astype(x.dtype)
