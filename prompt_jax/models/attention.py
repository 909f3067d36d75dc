"""Attention of all model families. `prompt_jax.models` explains the shape letters.

`attend` takes any number of `KeyValues`: one for the text, and one for a prefix (from `PastKeyValues.key_values` in
inputs.py).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from prompt_jax.models import cudnn_attention, fused_attention
from prompt_jax.models.dropout import apply_dropout, element_index, kept, random_seeds
from prompt_jax.models.quantized import Weights, weighted_einsum

# Added to the score of a hidden key. It is large enough for a weight of exactly zero. It is finite, so that a row with
# no key at all (a row that fills up a batch) gives finite values and not NaN.
MASKED = fused_attention.MASKED


class KeyValues(NamedTuple):
    """A block of keys and values that queries attend to, such as the text's or a prefix's."""

    k: Float[Array, "..."]  # [S, G, K] for the whole batch, or [B, S, G, K]
    v: Float[Array, "..."]  # as k
    bias: Float[Array, "#B #H T S"] | None = None  # added to the scores
    mask: Bool[Any, "#B S"] | None = None  # false for keys that are hidden from all queries
    positions: Int[Any, "#B S"] | None = None  # a query sees only keys at its own and earlier positions; None: all keys
    heads_first: bool = False  # G before S in k and v


Scores = Float[Array, "B H T _"]
WeightedSum = Callable[[Float[Array, "B H T _"]], Float[Array, "B H T _"]]  # attention weights -> sum of values


def attend(
    q: Float[Array, "B T H K"],
    *key_values: KeyValues,
    positions: Int[Any, "#B #T"] | None = None,
    window: Int[Any, ""] | None = None,
    softcap: float | None = None,
    dropout_rate: float = 0.0,
    key: PRNGKeyArray | None = None,
    fused: bool = False,
) -> Float[Array, "B T H K"]:
    """Return softmax(q k + bias) v, with one softmax over the keys of all blocks.

    Args:
      q: scaled queries. Query head h attends to key-value head h // (H / G).
      key_values: blocks of keys and values.
      positions: the queries' positions, for keys that have positions.
      window: a query sees only keys at the last `window` positions, its own included; only keys with positions.
      softcap: limits scores to between -softcap and softcap, by a tangent (Gemma 2).
      dropout_rate: dropout on the attention weights, applied only with a key.
      fused: whether to compute it in one kernel, without an array of scores in memory (`fused_attention`, or
        `cudnn_attention` on GPUs), if it takes these arguments. Then the queries' positions must be consecutive.
    """
    if fused and fused_attention.platform() == "gpu":
        dropped = key is not None and dropout_rate > 0
        if cudnn_attention.suits(q, key_values, positions, softcap, dropped):
            return cudnn_attention.attend(q, key_values, positions, window)
    elif fused and fused_attention.suits(q, key_values):
        options: Any = {"softcap": softcap, "dropout_rate": dropout_rate, "key": key}
        return fused_attention.attend(q, key_values, positions, window, **options)
    heads_of_group = q.shape[2] // key_values[0].k.shape[-3 if key_values[0].heads_first else -2]
    grouped = q.reshape(*q.shape[:2], -1, heads_of_group, q.shape[3])
    scores = [_grouped_scores(grouped, each, positions, window, softcap) for each in key_values]
    sums = [functools.partial(_weighted_sum, each) for each in key_values]
    return weighted_sum(scores, sums, dropout_rate=dropout_rate, key=key).astype(key_values[0].v.dtype)


def attention_scores(q: Float[Array, "B T H K"], key_values: KeyValues, **options: Any) -> Scores:
    """Return the scores of one block of keys, float32, including its bias. Options as for `attend`."""
    groups = key_values.k.shape[-3 if key_values.heads_first else -2]
    return _grouped_scores(q.reshape(*q.shape[:2], groups, -1, q.shape[3]), key_values, **options)


def _grouped_scores(
    q: Float[Array, "B T G R K"],
    key_values: KeyValues,
    positions: Int[Any, "#B #T"] | None = None,
    window: Int[Any, ""] | None = None,
    softcap: float | None = None,
) -> Scores:
    rows = "b" if key_values.k.ndim == 4 else ""
    axes = f"{rows}gsk" if key_values.heads_first else f"{rows}sgk"
    scores = jnp.einsum(f"btgrk,{axes}->bgrts", q, key_values.k, preferred_element_type=jnp.float32)
    scores = scores.reshape(q.shape[0], -1, q.shape[1], scores.shape[-1])
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if key_values.bias is not None:
        scores += key_values.bias
    visible = visible_keys(key_values, positions, window)
    return scores if visible is None else scores + hidden_bias(visible)[:, None]


def visible_keys(
    key_values: KeyValues, positions: Int[Any, "#B #T"] | None, window: Int[Any, ""] | None = None
) -> Bool[Array, "#B #T S"] | None:
    """Return which keys each query sees; None if it sees all. Arguments as for `attend`."""
    visible = None if key_values.mask is None else jnp.asarray(key_values.mask)[:, None]
    if key_values.positions is None or positions is None:
        return visible
    queries, keys = jnp.asarray(positions)[:, :, None], jnp.asarray(key_values.positions)[:, None]
    near = keys <= queries if window is None else (keys <= queries) & (keys > queries - window)
    return near if visible is None else visible & near


def hidden_bias(visible: Bool[Any, "..."]) -> Float[Array, "..."]:
    """Return a bias that hides keys. Unlike a choice between scores, adding it keeps nothing for the backward pass."""
    return jnp.where(visible, 0.0, MASKED)


def _weighted_sum(key_values: KeyValues, weights: Scores) -> Float[Array, "B H T K"]:
    rows = "b" if key_values.v.ndim == 4 else ""
    axes = f"{rows}gsk" if key_values.heads_first else f"{rows}sgk"
    groups = key_values.v.shape[-3 if key_values.heads_first else -2]
    batch, heads, length, keys = weights.shape
    grouped = weights.reshape(batch, groups, heads // groups, length, keys).astype(key_values.v.dtype)
    mixed = jnp.einsum(f"bgrts,{axes}->bgrtk", grouped, key_values.v)
    return mixed.reshape(batch, heads, length, mixed.shape[-1])


def weighted_sum(scores: Sequence[Scores], sums: Sequence[WeightedSum], **options: Any) -> Float[Array, "B T H _"]:
    """Return the sum of the weighted sums of values of all blocks. Arguments as for `weighted_sums`."""
    mixed, total = _unnormalized(scores, sums, **options)
    return (functools.reduce(jnp.add, mixed) / total).swapaxes(1, 2)


def weighted_sums(
    scores: Sequence[Scores], sums: Sequence[WeightedSum], **options: Any
) -> list[Float[Array, "B T H _"]]:
    """Return a weighted sum of values for each block, with one softmax over the scores of all blocks.

    Args:
      scores: one array for each block of keys.
      sums: for each block, the function from weights to the sum of its values.
      dropout_rate: dropout on the weights, applied only with a key.
      key: enables dropout.
    """
    mixed, total = _unnormalized(scores, sums, **options)
    return [(each / total).swapaxes(1, 2) for each in mixed]


def _unnormalized(
    scores: Sequence[Scores],
    sums: Sequence[WeightedSum],
    *,
    dropout_rate: float = 0.0,
    key: PRNGKeyArray | None = None,
) -> tuple[list[Float[Array, "B H T _"]], Float[Array, "B H T 1"]]:
    """Return the sums for weights that are not normalized, and the sum of these weights.

    The softmax's denominator divides the sums, not the weights. Then the backward pass keeps one array [B, H, T, S]
    instead of two; these are the largest arrays of the model.
    """
    largest = functools.reduce(jnp.maximum, [score.max(axis=-1, keepdims=True) for score in scores])
    weights = [jnp.exp(score - jax.lax.stop_gradient(largest)) for score in scores]
    total = functools.reduce(jnp.add, [weight.sum(axis=-1, keepdims=True) for weight in weights])
    seeds = None if key is None or dropout_rate == 0.0 else random_seeds(key)
    row, first, mixed = sum(weight.shape[-1] for weight in weights), 0, []
    for weight, sum_values in zip(weights, sums, strict=True):
        # The backward pass keeps the weights anyway and recomputes the rest from them.
        @jax.checkpoint
        def contract(weight, seeds, sum_values=sum_values, first=first):
            if seeds is not None:
                mask = kept(seeds, element_index(weight.shape, first, row), dropout_rate)
                weight = apply_dropout(weight, mask, dropout_rate)
            return sum_values(weight)

        mixed.append(contract(weight, seeds))
        first += weight.shape[-1]
    return mixed, total


def attend_projected(
    q: Float[Array, "B T H K"],
    x: Float[Array, "B S D"],
    w_k: Float[Weights, "D H K"],
    w_v: Float[Weights, "D H K"],
    mask: Bool[Array, "B S"],
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
    scores = jnp.einsum("bthd,bsd->bhts", projected, x, preferred_element_type=jnp.float32)
    scores += hidden_bias(mask)[:, None, None]

    def sum_positions(weights: Scores) -> Float[Array, "B H T D"]:
        return jnp.einsum("bhts,bsd->bhtd", weights.astype(x.dtype), x)

    scored: list[Scores] = [scores, *(attention_scores(q, each) for each in key_values)]
    sums: list[WeightedSum] = [sum_positions, *(functools.partial(_weighted_sum, each) for each in key_values)]
    mixed, *others = weighted_sums(scored, sums, dropout_rate=dropout_rate, key=key)
    mixed = weighted_einsum("bthd,dhk->bthk", mixed.astype(x.dtype), w_v)
    return functools.reduce(jnp.add, [mixed, *(other.astype(x.dtype) for other in others)])
