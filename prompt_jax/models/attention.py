"""Attention and dropout, shared by all model families. Shapes: see `prompt_jax.models`."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from prompt_jax.models.quantized import Weights, weighted_einsum

# Added to the score of a masked key. Large enough that its weight is exactly zero, and finite, so that a row without
# any key (padding that fills a batch) gives numbers and not NaN.
MASKED = -1e9


class KeyValues(NamedTuple):
    """Some of the keys and values that queries attend to."""

    k: Float[Array, "..."]  # [S, G, K] for the whole batch, or [B, S, G, K]
    v: Float[Array, "..."]  # as k
    bias: Float[Array, "#B #H #T S"] | None = None  # added to the scores
    heads_first: bool = False  # G before S in k and v


Scores = Float[Array, "B H T _"]
WeightedSum = Callable[[Float[Array, "B H T _"]], Float[Array, "B H T _"]]  # of values, from attention weights


def attend(
    q: Float[Array, "B T H K"],
    *key_values: KeyValues,
    dropout_rate: float = 0.0,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "B T H K"]:
    """Return softmax(q k + bias) v, with one softmax over all keys.

    Args:
      q: queries, already scaled. Query head h attends to key-value head h // (H / G).
      key_values: the keys and values.
      dropout_rate: of the attention weights, if a key is given.
    """
    scores = [attention_scores(q, each) for each in key_values]
    sums = [functools.partial(_weighted_sum, each) for each in key_values]
    results = weighted_sums(scores, sums, dropout_rate=dropout_rate, key=key)
    return functools.reduce(jnp.add, [mixed.astype(key_values[0].v.dtype) for mixed in results])


def attention_scores(q: Float[Array, "B T H K"], key_values: KeyValues) -> Scores:
    """Return the scores of one block of keys, float32, bias included."""
    rows = "b" if key_values.k.ndim == 4 else ""
    axes = f"{rows}gsk" if key_values.heads_first else f"{rows}sgk"
    groups = key_values.k.shape[-3 if key_values.heads_first else -2]
    batch, length, heads, width = q.shape
    grouped = q.reshape(batch, length, groups, heads // groups, width)
    scores = jnp.einsum(f"btgrk,{axes}->bgrts", grouped, key_values.k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, heads, length, scores.shape[-1])
    return scores if key_values.bias is None else scores + key_values.bias


def _weighted_sum(key_values: KeyValues, weights: Scores) -> Float[Array, "B H T K"]:
    rows = "b" if key_values.v.ndim == 4 else ""
    axes = f"{rows}gsk" if key_values.heads_first else f"{rows}sgk"
    groups = key_values.v.shape[-3 if key_values.heads_first else -2]
    batch, heads, length, keys = weights.shape
    grouped = weights.reshape(batch, groups, heads // groups, length, keys).astype(key_values.v.dtype)
    mixed = jnp.einsum(f"bgrts,{axes}->bgrtk", grouped, key_values.v)
    return mixed.reshape(batch, heads, length, mixed.shape[-1])


def weighted_sums(
    scores: Sequence[Scores],
    sums: Sequence[WeightedSum],
    *,
    dropout_rate: float = 0.0,
    key: PRNGKeyArray | None = None,
) -> list[Float[Array, "B T H _"]]:
    """Return one weighted sum of values for each block of scores; the weights are one softmax over all scores.

    Args:
      scores: of each block of keys.
      sums: how each block's values are summed, given the weights.
      dropout_rate: of the weights, if a key is given.

    The sums are divided by the softmax's denominator, and not the weights. So only one of the two largest arrays of
    the model, [B, H, T, S], is kept for the backward pass.
    """
    largest = functools.reduce(jnp.maximum, [score.max(axis=-1, keepdims=True) for score in scores])
    weights = [jnp.exp(score - jax.lax.stop_gradient(largest)) for score in scores]
    total = functools.reduce(jnp.add, [weight.sum(axis=-1, keepdims=True) for weight in weights])  # [B, H, T, 1]

    results = []
    for number, (weight, weighted_sum) in enumerate(zip(weights, sums, strict=True)):
        kept = keep_mask(weight.shape, dropout_rate, None if key is None else jax.random.fold_in(key, number))

        # Recomputed in the backward pass from weights and mask, which are kept anyway.
        @jax.checkpoint
        def contract(weight, kept, weighted_sum=weighted_sum):
            return weighted_sum(drop(weight, kept, dropout_rate))

        results.append((contract(weight, kept) / total).swapaxes(1, 2))
    return results


def attend_projected(
    q: Float[Array, "B T H K"],
    x: Float[Array, "B S D"],
    w_k: Float[Weights, "D H K"],
    w_v: Float[Weights, "D H K"],
    bias: Float[Array, "B 1 1 S"],
    key_values: Sequence[KeyValues],
    *,
    dropout_rate: float,
    key: PRNGKeyArray | None,
) -> Float[Array, "B T H K"]:
    """Return attention over the keys and values that x is projected to, and over more of them.

    The projections move to the side of the queries: (q W_k) x instead of q (x W_k). If there are fewer queries than a
    head is wide, as for labels, this takes fewer operations, and keeps no keys and values for the backward pass.
    """
    moved = weighted_einsum("bthk,dhk->bthd", q, w_k)
    scores = jnp.einsum("bthd,bsd->bhts", moved, x, preferred_element_type=jnp.float32) + bias

    def weighted_sum(weights: Scores) -> Float[Array, "B H T D"]:
        return jnp.einsum("bhts,bsd->bhtd", weights.astype(x.dtype), x)

    scored: list[Scores] = [scores, *(attention_scores(q, each) for each in key_values)]
    sums: list[WeightedSum] = [weighted_sum, *(functools.partial(_weighted_sum, each) for each in key_values)]
    mixed, *others = weighted_sums(scored, sums, dropout_rate=dropout_rate, key=key)
    mixed = weighted_einsum("bthd,dhk->bthk", mixed.astype(x.dtype), w_v)
    return functools.reduce(jnp.add, [mixed, *(other.astype(x.dtype) for other in others)])


def mask_bias(mask: Bool[Array, "B S"]) -> Float[Array, "B 1 1 S"]:
    """Return the bias that hides keys whose mask is false."""
    return jnp.where(mask, 0.0, MASKED)[:, None, None, :]


def dropout(x: Array, rate: float, key: PRNGKeyArray | None) -> Array:
    """Zero each element with probability `rate` and scale up the others; without a key, return x.

    `jax.random.bernoulli` draws the mask for the shape of x. So with one key, a row that is padded to another length
    (another length bucket, or an ensemble member beside longer ones) has another mask.
    """
    return drop(x, keep_mask(x.shape, rate, key), rate)


def keep_mask(shape: tuple[int, ...], rate: float, key: PRNGKeyArray | None) -> Bool[Array, "..."] | None:
    """Return a mask that is true with probability 1 - rate; None if nothing is dropped."""
    return None if key is None or rate == 0.0 else jax.random.bernoulli(key, 1.0 - rate, shape)


def drop(x: Array, kept: Bool[Array, "..."] | None, rate: float) -> Array:
    """Zero the elements whose mask is false and scale up the others."""
    return x if kept is None else jnp.where(kept, x / (1.0 - rate), 0.0).astype(x.dtype)
