"""The keys and values that a decoder keeps between one generated token and the next.

Shapes: see `prompt_jax.models`. Keys and values are stored heads first, the order in which attention multiplies them.
In any other order they would be copied for each token.
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
    """Keys and values of generated tokens and of what precedes them.

    The tokens of a row's beams stand side by side. A beam sees its own tokens and those of the beams it continues, so
    nothing moves when beams change their order.

    Attributes:
      length: tokens so far, the start token included.
      position: of the start token, for learned or rotary positions.
      visible: which tokens each beam sees; token n of beam g is at n * beams + g.
      generated: for each stack of layers, keys and values of the generated tokens.
      past: for each stack, keys and values of each item of `seen`: [L, G, S, K] for all rows, [L, B, G, S, K] for each
        row, [L, N, G, S, K] of N prompts; None where there are none.
      seen: what precedes the generated tokens, such as a prefix. Its `layers` are in `past`.
    """

    length: Int[Array, ""]
    position: Int[Array, "#B"]
    visible: Bool[Array, "B beams slots"]
    generated: tuple[tuple[Float[Array, "L B G slots K"], Float[Array, "L B G slots K"]], ...]
    past: tuple[tuple[Any, ...], ...]
    seen: tuple[PastKeyValues, ...]

    @property
    def capacity(self) -> int:
        """The number of tokens that fit."""
        return self.visible.shape[2] // self.visible.shape[1]

    def past_length(self, number: int) -> int:
        """Return the slots of one item of `seen`, used or not."""
        keys_values = self.past[0][number]
        return 0 if keys_values is None else keys_values[0].shape[-2]

    def reordered(self, parent: Int[Array, "B beams"]) -> "Cache":
        """Return the cache after each beam continues the beam `parent`."""
        return self._replace(visible=jnp.take_along_axis(self.visible, parent[:, :, None], axis=1))


def empty_cache(
    stacks: tuple[Params, ...],
    seen: Sequence[PastKeyValues],
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
      stacks: the decoder's layers.
      seen: what each layer reads before the generated tokens.
      rows, beams, capacity: sizes.
      heads, width: key-value heads and their width.
      dtype: of the generated tokens' keys and values.
      position: of the start token; 0 if left out.
    """
    heads_first = [None if p.layers is None else tuple(x.swapaxes(-3, -2) for x in p.layers) for p in seen]
    generated, past, first = [], [], 0
    for stack in stacks:
        last = first + depth(stack)
        empty = jnp.zeros((depth(stack), rows, heads, capacity * beams, width), dtype)
        generated.append((empty, empty))
        past.append(tuple(jax.tree.map(lambda x: x[first:last], heads_first)))  # noqa: B023
        first = last
    return Cache(
        length=jnp.zeros((), jnp.int32),
        position=jnp.zeros(1, jnp.int32) if position is None else position,
        visible=jnp.zeros((rows, beams, capacity * beams), bool),
        generated=tuple(generated),
        past=tuple(past),
        seen=tuple(each._replace(layers=None) for each in seen),
    )


def decode_layers(
    layer: Callable,
    x: Float[Array, "B beams D"],
    stacks: tuple[Params, ...],
    cache: Cache,
) -> tuple[Float[Array, "B beams D"], Cache]:
    """Run one token of each beam through all layers.

    Args:
      layer: `layer(x, weights, append, past) -> (x, kept)`. `append(k, v, bias)` takes the token's key and value
        [B, beams, G, K], and a bias [1, H, 1, capacity] for the generated tokens. It returns `kept`, which the layer
        returns, and the KeyValues of all generated tokens. `past(number, bias)` returns the KeyValues of one item of
        `cache.seen`.
      x: the embedded token.
      stacks: the decoder's layers.
      cache: of the tokens before it.
    """
    beams = cache.visible.shape[1]
    slot = cache.length * beams  # of the first beam's token
    itself = np.arange(cache.visible.shape[2])[None] == slot + np.arange(beams)[:, None]
    visible = cache.visible | itself[None]
    visible_bias = jnp.where(visible, 0.0, MASKED)[:, None]

    kept = []
    for stack, generated, past in zip(stacks, cache.generated, cache.past, strict=True):

        def body(carry, scanned):
            x, generated = carry
            weights, before, index = scanned

            def append(k, v, bias=None):
                # The cache is carried and written in place: as scanned input and output it would be copied.
                place = index, 0, 0, slot, 0
                written = tuple(
                    jax.lax.dynamic_update_slice(whole, token.swapaxes(1, 2)[None], place)
                    for whole, token in zip(generated, (k, v), strict=True)
                )
                scores = visible_bias if bias is None else visible_bias + jnp.repeat(bias, beams, axis=3)
                return written, KeyValues(written[0][index], written[1][index], scores, heads_first=True)

            def past_key_values(number, bias=None):
                return cache.seen[number].key_values(before[number], x.dtype, bias, heads_first=True)

            return layer(x, weights, append, past_key_values), None

        (x, generated), _ = jax.lax.scan(body, (x, generated), (stack, past, jnp.arange(depth(stack))))
        kept.append(generated)
    return x, cache._replace(length=cache.length + 1, visible=visible, generated=tuple(kept))
