"""What the rows of a batch attend to: their real positions, their virtual tokens and their prefixes.

Shapes: see `prompt_jax.models`. N is the number of prompts in a stacked Prompt.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from prompt_jax.models.attention import Part, mask_bias
from prompt_jax.models.prompt import NO_PROMPT, Prefix, VirtualTokens

_OUTSIDE: dict[str, Any] = {"mode": "fill", "wrap_negative_indices": False}  # an id that is no prompt's gives the fill


def real_first(mask: Any, last: bool = False) -> Int[Array, "B T"]:
    """For each row the order that brings its real positions to the front (or to the end), as they follow."""
    mask = jnp.asarray(mask, bool)
    return jnp.argsort(mask if last else ~mask, axis=1, stable=True)


def in_order(x: Shaped[Any, "B T *rest"], order: Int[Array, "B T"]) -> Array:
    """The rows' positions in the order that `real_first` gives."""
    return jnp.take_along_axis(jnp.asarray(x), order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)


def virtual_tokens(
    tokens: VirtualTokens, ids: Int[Any, "B"] | None, rows: int, dtype: Any
) -> tuple[Float[Array, "B P D"], Bool[Array, "B P"]]:
    """Each row's virtual tokens, and which of them are used."""
    embeddings, mask = jnp.asarray(tokens.embeddings), tokens.mask
    if ids is None:  # the rows share one prompt
        used = jnp.ones(len(embeddings), bool) if mask is None else jnp.asarray(mask)
        virtual = jnp.broadcast_to(embeddings.astype(dtype)[None], (rows, *embeddings.shape))
        return virtual, jnp.broadcast_to(used[None], virtual.shape[:2])
    virtual = _of_rows(embeddings, ids).astype(dtype)
    used = _used(mask, ids, virtual.shape[1])
    # Zeros, since a value that is not finite would pass through an attention weight of 0.
    return jnp.where(used[..., None], virtual, 0.0), used


class Past(NamedTuple):
    """Keys and values that stood before, such as a prefix's, as the rows of a batch see them.

    Attributes:
      layers: (keys, values), scanned with the model's layers: [L, P, H, K] for the whole batch, [L, B, P, H, K] for
        each row, or [L, N, P, H, K] with `ids`. None where there is nothing.
      ids: which of N each row has.
      used: which slots are used; None is all.
    """

    layers: tuple[Array, Array] | None
    ids: Int[Array, "B"] | None = None
    used: Bool[Array, "#B P"] | None = None

    @property
    def length(self) -> int:
        """Slots, used or not."""
        return 0 if self.layers is None else self.layers[0].shape[-3]

    @property
    def used_slots(self) -> Int[Array, "#B"]:
        return jnp.full(1, self.length, jnp.int32) if self.used is None else self.used.sum(axis=1, dtype=jnp.int32)

    def parts(
        self, layer: Any, dtype: Any, bias: Float[Array, "1 H T P"] | None = None, *, heads_first: bool = False
    ) -> list[Part]:
        """What attention takes of one layer of `layers`: a part, or nothing. `heads_first`: [..., H, P, K]."""
        if layer is None:
            return []
        if self.ids is not None and self.used is not None:
            used = jnp.expand_dims(self.used, (1, 3) if heads_first else (2, 3))
            layer = [jnp.where(used, _of_rows(leaf, self.ids), 0.0) for leaf in layer]
        keys, values = (leaf.astype(dtype) for leaf in layer)
        if self.used is not None:
            masked = mask_bias(self.used)
            bias = masked if bias is None else bias + masked
        return [Part(keys, values, bias, heads_first)]


def past_of(prefix: Prefix | None, ids: Int[Any, "B"] | None) -> Past:
    """A prefix, for a batch whose rows have the prompts `ids` of it (None where it is no stacked one).

    Unused slots come first, so that the used ones touch the text.
    """
    if prefix is None:
        return Past(None)
    leaves, mask = [jnp.asarray(prefix.keys), jnp.asarray(prefix.values)], prefix.mask
    if mask is not None:
        order = jnp.argsort(jnp.asarray(mask, bool), axis=-1, stable=True)
        leaves = [jnp.take_along_axis(leaf, order[..., None, :, None, None], axis=-3) for leaf in leaves]
        mask = jnp.take_along_axis(jnp.asarray(mask, bool), order, axis=-1)
    if ids is not None:
        keys, values = (leaf.swapaxes(0, 1) for leaf in leaves)
        return Past((keys, values), jnp.asarray(ids), _used(mask, ids, keys.shape[-3]))
    if mask is not None:  # zeros, as for virtual tokens
        leaves = [jnp.where(mask[None, :, None, None], leaf, 0.0) for leaf in leaves]
    return Past((leaves[0], leaves[1]), used=None if mask is None else mask[None])


def _of_rows(stacked: Float[Array, "N *rest"], ids: Int[Any, "B"]) -> Float[Array, "B *rest"]:
    """Each row's entry; any for a row that has no prompt."""
    ids = jnp.asarray(ids)
    return stacked.at[jnp.where(ids == NO_PROMPT, 0, ids)].get(fill_value=jnp.nan, **_OUTSIDE)


def _used(mask: Any, ids: Int[Any, "B"], length: int) -> Bool[Array, "B P"]:
    ids = jnp.asarray(ids)
    used = jnp.broadcast_to((ids != NO_PROMPT)[:, None], (len(ids), length))
    if mask is None:
        return used
    return used & jnp.asarray(mask).at[jnp.where(ids == NO_PROMPT, 0, ids)].get(fill_value=True, **_OUTSIDE)
