"""Attention and dropout of all model families. `prompt_jax.models` explains the shape letters.

`attend` takes any number of `KeyValues`: one for the text, and one for a prefix (from `PastKeyValues.key_values` in
inputs.py).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from prompt_jax.models.quantized import Weights, weighted_einsum

# Added to the score of a masked key. It is large enough for a weight of exactly zero. It is finite, so that a row with
# no key at all (a row that fills up a batch) gives finite values and not NaN.
MASKED = -1e9


class KeyValues(NamedTuple):
    """A block of keys and values that queries attend to, such as the text's or a prefix's."""

    k: Float[Array, "..."]  # [S, G, K] for the whole batch, or [B, S, G, K]
    v: Float[Array, "..."]  # as k
    bias: Float[Array, "#B #H #T S"] | None = None  # added to the scores
    heads_first: bool = False  # G before S in k and v


Scores = Float[Array, "B H T _"]
WeightedSum = Callable[[Float[Array, "B H T _"]], Float[Array, "B H T _"]]  # attention weights -> sum of values


def attend(
    q: Float[Array, "B T H K"],
    *key_values: KeyValues,
    softcap: float | None = None,
    dropout_rate: float = 0.0,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "B T H K"]:
    """Return softmax(q k + bias) v, with one softmax over the keys of all blocks.

    Args:
      q: scaled queries. Query head h attends to key-value head h // (H / G).
      key_values: blocks of keys and values.
      softcap: limits scores to between -softcap and softcap, by a tangent (Gemma 2).
      dropout_rate: dropout on the attention weights, applied only with a key.
    """
    scores = [attention_scores(q, each, softcap) for each in key_values]
    sums = [functools.partial(_weighted_sum, each) for each in key_values]
    results = weighted_sums(scores, sums, dropout_rate=dropout_rate, key=key)
    return functools.reduce(jnp.add, [mixed.astype(key_values[0].v.dtype) for mixed in results])


def attention_scores(q: Float[Array, "B T H K"], key_values: KeyValues, softcap: float | None = None) -> Scores:
    """Return the scores of one block of keys, float32, including its bias. `softcap` as for `attend`."""
    rows = "b" if key_values.k.ndim == 4 else ""
    axes = f"{rows}gsk" if key_values.heads_first else f"{rows}sgk"
    groups = key_values.k.shape[-3 if key_values.heads_first else -2]
    batch, length, heads, width = q.shape
    grouped = q.reshape(batch, length, groups, heads // groups, width)
    scores = jnp.einsum(f"btgrk,{axes}->bgrts", grouped, key_values.k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, heads, length, scores.shape[-1])
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
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
    """Return a weighted sum of values for each block, with one softmax over the scores of all blocks.

    The softmax's denominator divides the sums, not the weights. Then the backward pass keeps one array [B, H, T, S]
    instead of two; these are the largest arrays of the model.

    Args:
      scores: one array for each block of keys.
      sums: for each block, the function from weights to the sum of its values.
      dropout_rate: dropout on the weights, applied only with a key.
    """
    largest = functools.reduce(jnp.maximum, [score.max(axis=-1, keepdims=True) for score in scores])
    weights = [jnp.exp(score - jax.lax.stop_gradient(largest)) for score in scores]
    total = functools.reduce(jnp.add, [weight.sum(axis=-1, keepdims=True) for weight in weights])  # [B, H, T, 1]

    results = []
    for number, (weight, weighted_sum) in enumerate(zip(weights, sums, strict=True)):
        mask = dropout_mask(weight.shape, dropout_rate, None if key is None else jax.random.fold_in(key, number))

        # The backward pass keeps weights and mask anyway and recomputes the rest from them.
        @jax.checkpoint
        def contract(weight, mask, weighted_sum=weighted_sum):
            return weighted_sum(apply_dropout_mask(weight, mask, dropout_rate))

        results.append((contract(weight, mask) / total).swapaxes(1, 2))
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
    """Return attention over the projections of x, keys x W_k and values x W_v, and over the blocks `key_values`.

    It computes (q W_k) x instead of q (x W_k). With fewer queries than a head is wide (short targets such as labels),
    this needs fewer operations, and the backward pass keeps no keys and values.
    """
    projected = weighted_einsum("bthk,dhk->bthd", q, w_k)
    scores = jnp.einsum("bthd,bsd->bhts", projected, x, preferred_element_type=jnp.float32) + bias

    def weighted_sum(weights: Scores) -> Float[Array, "B H T D"]:
        return jnp.einsum("bhts,bsd->bhtd", weights.astype(x.dtype), x)

    scored: list[Scores] = [scores, *(attention_scores(q, each) for each in key_values)]
    sums: list[WeightedSum] = [weighted_sum, *(functools.partial(_weighted_sum, each) for each in key_values)]
    mixed, *others = weighted_sums(scored, sums, dropout_rate=dropout_rate, key=key)
    mixed = weighted_einsum("bthd,dhk->bthk", mixed.astype(x.dtype), w_v)
    return functools.reduce(jnp.add, [mixed, *(other.astype(x.dtype) for other in others)])


def mask_bias(mask: Bool[Array, "B S"]) -> Float[Array, "B 1 1 S"]:
    """Return the attention bias that hides keys where the mask is false."""
    return jnp.where(mask, 0.0, MASKED)[:, None, None, :]


def window_bias(
    window: Int[Any, ""] | None, queries: Int[Any, "#B T"], keys: Int[Any, "#B S"] | None
) -> Float[Array, "#B 1 T S"] | None:
    """Return the attention bias that hides keys outside a query's sliding window, by their positions.

    Without a window, or for keys without positions, which are always visible, there is no bias.
    """
    if window is None or keys is None:
        return None
    visible = jnp.asarray(keys)[:, None, :] > jnp.asarray(queries)[:, :, None] - window
    return jnp.where(visible, 0.0, MASKED)[:, None]


def dropout(x: Array, rate: float, key: PRNGKeyArray | None) -> Array:
    """Zero each element with probability `rate` and scale the others by 1 / (1 - rate); without a key, return x.

    `jax.random.bernoulli` draws the mask for the shape of x. With the same key, a row that is padded to another length
    (in another length bucket, or next to longer ensemble members) gets another mask.
    """
    return apply_dropout_mask(x, dropout_mask(x.shape, rate, key), rate)


def dropout_mask(shape: tuple[int, ...], rate: float, key: PRNGKeyArray | None) -> Bool[Array, "..."] | None:
    """Return a mask that is true with probability 1 - rate, or None if there is no dropout."""
    return None if key is None or rate == 0.0 else jax.random.bernoulli(key, 1.0 - rate, shape)


def apply_dropout_mask(x: Array, mask: Bool[Array, "..."] | None, rate: float) -> Array:
    """Zero elements where the mask is false and scale the others by 1 / (1 - rate)."""
    return x if mask is None else jnp.where(mask, x / (1.0 - rate), 0.0).astype(x.dtype)
