"""Look up virtual tokens and prefixes for the rows of a batch, and move real positions to the front of rows.

`prompt_jax.models` explains the shape letters. N is the number of prompts in a stacked Prompt.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from prompt_jax.models.attention import KeyValues
from prompt_jax.models.prompt import NO_PROMPT, Prefix, VirtualTokens

# For a prompt id out of range, gathers return the fill value.
_OUT_OF_RANGE: dict[str, Any] = {"mode": "fill", "wrap_negative_indices": False}


def left_aligned_order(mask: Any) -> Int[Array, "B T"]:
    """Return for each row the indices that move real positions (mask true) to the front, in their order."""
    return jnp.argsort(~jnp.asarray(mask, bool), axis=1, stable=True)


def gather_positions(x: Shaped[Any, "B T *rest"], order: Int[Array, "B T"]) -> Array:
    """Reorder the positions of each row: `x[b, order[b]]`."""
    return jnp.take_along_axis(jnp.asarray(x), order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)


def virtual_tokens(
    tokens: VirtualTokens, ids: Int[Any, "B"] | None, rows: int, dtype: Any
) -> tuple[Float[Array, "B P D"], Bool[Array, "B P"]]:
    """Return each row's virtual tokens and mask of used slots. `ids` are the rows' prompts, None for one prompt."""
    embeddings, mask = jnp.asarray(tokens.embeddings), tokens.mask
    if ids is None:
        used = jnp.ones(len(embeddings), bool) if mask is None else jnp.asarray(mask)
        virtual = jnp.broadcast_to(embeddings.astype(dtype)[None], (rows, *embeddings.shape))
        return virtual, jnp.broadcast_to(used[None], virtual.shape[:2])
    virtual = _gather_prompts(embeddings, ids).astype(dtype)
    used = used_mask(mask, ids, virtual.shape[1])
    # An attention weight of 0 times a value that is not finite would give NaN.
    return jnp.where(used[..., None], virtual, 0.0), used


class PastKeyValues(NamedTuple):
    """Keys and values that precede the text, such as a prefix's, for the rows of a batch.

    Attributes:
      layers: (keys, values), scanned together with the model's layers: [L, P, G, K] for the whole batch,
        [L, B, P, G, K] for each row, or [L, N, P, G, K] with `ids`. None for an empty past, or if
        they are kept elsewhere; `length` is then 0.
      ids: each row's index into N.
      used: mask of used slots; None if all are used.
      positions: the slots' positions, for sliding windows; None if the slots are always visible.
    """

    layers: tuple[Array, Array] | None
    ids: Int[Array, "B"] | None = None
    used: Bool[Array, "#B P"] | None = None
    positions: Int[Array, "#B P"] | None = None

    @property
    def length(self) -> int:
        """Return the number of slots, including unused ones."""
        return 0 if self.layers is None else self.layers[0].shape[-3]

    @property
    def used_slots(self) -> Int[Array, "#B"]:
        """Return the number of used slots in each row."""
        return jnp.full(1, self.length, jnp.int32) if self.used is None else self.used.sum(axis=1, dtype=jnp.int32)

    def key_values(
        self, layer: Any, dtype: Any, bias: Float[Array, "#B #H T P"] | None = None, *, heads_first: bool = False
    ) -> list[KeyValues]:
        """Return one layer's keys and values for `attend`: this is where a prefix enters attention.

        Args:
          layer: one layer of `layers`, or None.
          dtype: the dtype of the result.
          bias: added to the scores, such as T5's relative positions.
          heads_first: whether the layer is [..., G, P, K] instead of [..., P, G, K].

        Returns:
          a list of one item, or an empty list if the layer is None.
        """
        if layer is None:
            return []
        if self.ids is not None and self.used is not None:
            used = jnp.expand_dims(self.used, (1, 3) if heads_first else (2, 3))
            layer = [jnp.where(used, _gather_prompts(leaf, self.ids), 0.0) for leaf in layer]
        keys, values = (leaf.astype(dtype) for leaf in layer)
        return [KeyValues(keys, values, bias, self.used, self.positions, heads_first)]


def prefix_kv(prefix: Prefix | None, ids: Int[Any, "B"] | None) -> PastKeyValues:
    """Return a prefix's keys and values for a batch. `ids` are the rows' prompts, None if the prefix is not stacked.

    Slots are reordered: unused ones come first, so that used ones are adjacent to the text.
    """
    if prefix is None:
        return PastKeyValues(None)
    leaves, mask = [jnp.asarray(prefix.keys), jnp.asarray(prefix.values)], prefix.mask
    if mask is not None:
        order = jnp.argsort(jnp.asarray(mask, bool), axis=-1, stable=True)
        leaves = [jnp.take_along_axis(leaf, order[..., None, :, None, None], axis=-3) for leaf in leaves]
        mask = jnp.take_along_axis(jnp.asarray(mask, bool), order, axis=-1)
    if ids is not None:
        keys, values = (leaf.swapaxes(0, 1) for leaf in leaves)
        return PastKeyValues((keys, values), jnp.asarray(ids), used_mask(mask, ids, keys.shape[-3]))
    if mask is not None:  # zeros, for the same reason as in virtual_tokens
        leaves = [jnp.where(mask[None, :, None, None], leaf, 0.0) for leaf in leaves]
    return PastKeyValues((leaves[0], leaves[1]), used=None if mask is None else mask[None])


def _gather_prompts(stacked: Float[Array, "N *rest"], ids: Int[Any, "B"]) -> Float[Array, "B *rest"]:
    """Return each row's prompt. A row without one gets the first, which is masked; an id out of range gets NaN."""
    ids = jnp.asarray(ids)
    return stacked.at[jnp.where(ids == NO_PROMPT, 0, ids)].get(fill_value=jnp.nan, **_OUT_OF_RANGE)


def used_mask(mask: Any, ids: Int[Any, "B"], length: int) -> Bool[Array, "B P"]:
    """Return the mask of each row's used slots; a row without a prompt uses none."""
    ids = jnp.asarray(ids)
    used = jnp.broadcast_to((ids != NO_PROMPT)[:, None], (len(ids), length))
    if mask is None:
        return used
    return used & jnp.asarray(mask).at[jnp.where(ids == NO_PROMPT, 0, ids)].get(fill_value=True, **_OUT_OF_RANGE)
