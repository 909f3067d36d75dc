"""Attention and dropout, shared by the model families. Shapes: see `prompt_jax.models`."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p
from jaxtyping import Array, Bool, Float, PRNGKeyArray

# Added to the score of a masked key. Large enough that its weight is exactly zero, and finite, so that a row
# with no key at all (padding that fills a batch) gives numbers and not NaN.
MASKED = -1e9


class Part(NamedTuple):
    """Some of the keys and values that queries attend to."""

    k: Float[Array, "..."]  # [S, H, K] for the whole batch, or [B, S, H, K] for a row
    v: Float[Array, "..."]  # as k
    bias: Float[Array, "#B #H #T S"] | None = None  # what is added to the scores
    heads_first: bool = False  # H before S in keys and values


def attend(
    q: Float[Array, "B T H K"], *parts: Part, dropout_rate: float = 0.0, key: PRNGKeyArray | None = None
) -> Float[Array, "B T H K"]:
    """softmax(q k + bias) v with one softmax over the keys of all parts; q comes already scaled."""
    scored = [part_scores(q, part) for part in parts]
    return functools.reduce(jnp.add, weighted_sums(*zip(*scored, strict=True), dropout_rate=dropout_rate, key=key))


def part_scores(q: Float[Array, "B T H K"], part: Part) -> tuple[Float[Array, "B H T S"], tuple[Array, str]]:
    """The scores of one part with its bias, and what `weighted_sums` needs besides."""
    axes = ("b" if part.k.ndim == 4 else "") + ("hsk" if part.heads_first else "shk")
    scores = jnp.einsum(f"bthk,{axes}->bhts", q, part.k, preferred_element_type=jnp.float32)
    return scores if part.bias is None else scores + part.bias, (part.v, f"bhts,{axes}->bhtk")


def weighted_sums(
    scores: Sequence[Float[Array, "B H T _"]],
    sums: Sequence[tuple[Float[Array, "..."], str]],
    *,
    dropout_rate: float = 0.0,
    key: PRNGKeyArray | None = None,
) -> list[Float[Array, "B T H _"]]:
    """Sums of values with weights that are one softmax over all scores together; float32 inside.

    Args:
      scores: of each part.
      sums: each part's values, and how they are contracted with its weights, to [B, H, T, _].
      dropout_rate: of the weights, if a key is given.
      key: the first part drops what it would drop alone.

    A sum is divided by the normaliser afterwards and not its weights before: of the two largest arrays in the model,
    [B, H, T, S], only one is then kept for the backward pass.
    """
    largest = functools.reduce(jnp.maximum, [score.max(axis=-1, keepdims=True) for score in scores])
    weights = [jnp.exp(score - jax.lax.stop_gradient(largest)) for score in scores]
    total = functools.reduce(jnp.add, [weight.sum(axis=-1, keepdims=True) for weight in weights])  # [B, H, T, 1]

    results = []
    for number, (weight, (values, contraction)) in enumerate(zip(weights, sums, strict=True)):
        own_key = key if number == 0 or key is None else jax.random.fold_in(key, number)
        kept = keep_mask(weight.shape, dropout_rate, own_key)

        # Recomputed in the backward pass from weights and mask, which are kept anyway.
        @jax.checkpoint
        def contract(weight, kept, values, contraction=contraction):
            return jnp.einsum(contraction, drop(weight, kept, dropout_rate).astype(values.dtype), values)

        mixed = contract(weight, kept, values) / total
        results.append(mixed.swapaxes(1, 2).astype(values.dtype))
    return results


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
