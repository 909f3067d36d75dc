"""Attention and dropout, shared by the model families. Shapes: see `prompt_jax.models`."""

import jax
import jax.numpy as jnp
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
    """softmax(q k + bias) v. Scores and softmax are float32 whatever the inputs' dtype; q comes already scaled."""
    scores = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores + bias, axis=-1).astype(v.dtype)
    return jnp.einsum("bhts,bshk->bthk", dropout(weights, dropout_rate, key), v)


def mask_bias(mask: Bool[Array, "B S"]) -> Float[Array, "B 1 1 S"]:
    """What `attend` adds to the scores so that only keys with a true mask are seen."""
    return jnp.where(mask, 0.0, MASKED)[:, None, None, :]


def dropout(x: Array, rate: float, key: PRNGKeyArray | None) -> Array:
    """Zeroes each element with probability `rate` and scales the others up; the identity without a key.

    Two elements share one 32-bit random word: on a CPU random bits cost as much as the layer they are for.
    The rate is thereby a multiple of 2**-16, and the scale is that of the exact rate.
    """
    if key is None or rate == 0.0:
        return x
    threshold = round(rate * 2**16)
    words = jax.random.bits(key, ((x.size + 1) // 2,), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[: x.size].reshape(x.shape)
    return jnp.where(halves >= threshold, x / (1.0 - threshold / 2**16), 0.0).astype(x.dtype)
