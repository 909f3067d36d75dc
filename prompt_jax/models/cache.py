"""The key-value cache for generation. `prompt_jax.models` explains the shape letters.

Keys and values are stored with heads first, as attention multiplies them. Any other order would cost a
copy for each token.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from prompt_jax.models.attention import MASKED, KeyValues
from prompt_jax.models.inputs import PastKeyValues
from prompt_jax.models.layers import Params, depth


class Cache(NamedTuple):
    """Keys and values of generated tokens and of the past, which is everything before them.

    The beams of a row share its slots. A mask selects the tokens that a beam attends to: those of the hypothesis that
    it continues. So nothing is copied when beams are reordered.

    Attributes:
      length: number of tokens so far, including the start token.
      position: position of the start token, for learned or rotary positions.
      visible: which tokens each beam attends to; token n of beam g is in slot n * beams + g.
      generated: for each stack of layers, keys and values of the generated tokens.
      past: keys and values before the generated tokens, such as a prefix or the source. Their `layers` are in
        `past_layers`.
      past_layers: for each stack of layers and each item of `past`, keys and values: [L, G, S, K] for all rows,
        [L, B, G, S, K] for each row, [L, N, G, S, K] for N prompts, or None.
    """

    length: Int[Array, ""]
    position: Int[Array, "#B"]
    visible: Bool[Array, "B beams slots"]
    generated: tuple[tuple[Float[Array, "L B G slots K"], Float[Array, "L B G slots K"]], ...]
    past: tuple[PastKeyValues, ...]
    past_layers: tuple[tuple[Any, ...], ...]

    @property
    def capacity(self) -> int:
        """Return the maximum number of tokens of a beam."""
        return self.visible.shape[2] // self.visible.shape[1]

    def past_length(self, number: int) -> int:
        """Return the number of slots of `past[number]`, including unused ones."""
        key_values = self.past_layers[0][number]
        return 0 if key_values is None else key_values[0].shape[-2]

    def reorder_beams(self, parent: Int[Array, "B beams"]) -> "Cache":
        """Return the cache in which each beam continues the beam `parent`."""
        return self._replace(visible=jnp.take_along_axis(self.visible, parent[:, :, None], axis=1))


def empty_cache(
    stacks: tuple[Params, ...],
    past: Sequence[PastKeyValues],
    *,
    rows: int,
    beams: int,
    capacity: int,
    heads: int,
    width: int,
    dtype: Any,
    position: Int[Any, "#B"] | None = None,
) -> Cache:
    """Return a cache without generated tokens.

    Args:
      stacks: the decoder's stacks of layers.
      past: keys and values before the generated tokens.
      rows, beams, capacity: batch size, beams per row, and maximum number of tokens per beam.
      heads, width: G and K of the generated tokens' keys and values.
      dtype: dtype of the generated tokens' keys and values.
      position: position of the start token; 0 by default.
    """
    heads_first = [None if p.layers is None else tuple(x.swapaxes(-3, -2) for x in p.layers) for p in past]
    generated, past_layers, first = [], [], 0
    for stack in stacks:
        last = first + depth(stack)
        empty = jnp.zeros((depth(stack), rows, heads, capacity * beams, width), dtype)
        generated.append((empty, empty))
        past_layers.append(tuple(jax.tree.map(lambda x: x[first:last], heads_first)))  # noqa: B023
        first = last
    return Cache(
        length=jnp.zeros((), jnp.int32),
        position=jnp.zeros(1, jnp.int32) if position is None else position,
        visible=jnp.zeros((rows, beams, capacity * beams), bool),
        generated=tuple(generated),
        past=tuple(each._replace(layers=None) for each in past),
        past_layers=tuple(past_layers),
    )


def decode_layers(
    layer: Callable,
    x: Float[Array, "B beams D"],
    stacks: tuple[Params, ...],
    cache: Cache,
) -> tuple[Float[Array, "B beams D"], Cache]:
    """Run one token of each beam through all layers, and append its keys and values to the cache.

    Args:
      layer: `layer(x, weights, append, past) -> (x, written)`. `append(k, v, bias)` takes the token's key and value
        [B, beams, G, K], and a bias [1, H, 1, capacity] over the generated tokens. It returns `written`, which the
        layer must return, and the KeyValues of all generated tokens. `past(number, bias)` returns the KeyValues of
        `cache.past[number]` as a list of at most one item.
      x: the embedded token.
      stacks: the decoder's stacks of layers.
      cache: the cache of the tokens before it.

    Returns:
      the last layer's output, and the new cache.
    """
    beams = cache.visible.shape[1]
    slot = cache.length * beams  # the slot of the first beam's token
    itself = np.arange(cache.visible.shape[2])[None] == slot + np.arange(beams)[:, None]
    visible = cache.visible | itself[None]
    visible_bias = jnp.where(visible, 0.0, MASKED)[:, None]

    appended = []
    for stack, generated, past_layers in zip(stacks, cache.generated, cache.past_layers, strict=True):

        def body(carry, scanned):
            x, generated = carry
            weights, past_layer, index = scanned

            def append(k, v, bias=None):
                # The scan carries the cache to update it in place. As scanned input and output it would be copied.
                start = index, 0, 0, slot, 0
                written = tuple(
                    jax.lax.dynamic_update_slice(array, token.swapaxes(1, 2)[None], start)
                    for array, token in zip(generated, (k, v), strict=True)
                )
                scores = visible_bias if bias is None else visible_bias + jnp.repeat(bias, beams, axis=3)
                return written, KeyValues(written[0][index], written[1][index], scores, heads_first=True)

            def past(number, bias=None):
                return cache.past[number].key_values(past_layer[number], x.dtype, bias, heads_first=True)

            return layer(x, weights, append, past), None

        (x, generated), _ = jax.lax.scan(body, (x, generated), (stack, past_layers, jnp.arange(depth(stack))))
        appended.append(generated)
    return x, cache._replace(length=cache.length + 1, visible=visible, generated=tuple(appended))
