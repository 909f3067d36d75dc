"""What a decoder keeps between one generated token and the next, for `prompt_jax.decoding`.

Shapes: see `prompt_jax.models`. Keys and values are held heads first, the order in which attention multiplies them:
in any other they would be copied into it for each token.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from prompt_jax.models.attention import MASKED, Part
from prompt_jax.models.inputs import Past
from prompt_jax.models.layers import Params, depth


class Cache(NamedTuple):
    """Keys and values, those of a row's beams side by side: a beam sees its own tokens and those of the beams that it
    comes from, wherever they are, so that nothing moves when beams change their order.

    Attributes:
      length: tokens so far, the start token included.
      position: of the start token, where positions are learnt.
      visible: which tokens each of the G beams sees: of token n of beam g at n * G + g.
      own: for each stack of layers keys and values of the generated tokens.
      past: for each stack keys and values of each of `seen`: [L, H, S, K] once for all, [L, B, H, S, K] once a row,
        [L, N, H, S, K] of N prompts; None where there is nothing.
      seen: what is read before the generated tokens, such as a prefix. Its `layers` are in `past`.
    """

    length: Int[Array, ""]
    position: Int[Array, "#B"]
    visible: Bool[Array, "B G N*G"]
    own: tuple[tuple[Float[Array, "L B H N*G K"], Float[Array, "L B H N*G K"]], ...]
    past: tuple[tuple[Any, ...], ...]
    seen: tuple[Past, ...]

    @property
    def capacity(self) -> int:
        """N, the tokens that there is room for."""
        return self.visible.shape[2] // self.visible.shape[1]

    def past_length(self, number: int) -> int:
        """Slots of one of `seen`, used or not."""
        keys_values = self.past[0][number]
        return 0 if keys_values is None else keys_values[0].shape[-2]

    def continued(self, parent: Int[Array, "B G"]) -> "Cache":
        """Each beam goes on from one of those before."""
        return self._replace(visible=jnp.take_along_axis(self.visible, parent[:, :, None], axis=1))


def empty_cache(
    stacks: tuple[Params, ...],
    seen: Sequence[Past],
    *,
    rows: int,
    beams: int,
    capacity: int,
    heads: int,
    width: int,
    dtype: Any,
    position: Int[Any, "#B"] | None = None,
) -> Cache:
    """A cache without generated tokens, for a decoder of these layers.

    Args:
      stacks: the decoder's layers.
      seen: what each of them reads before the generated tokens.
      rows, beams, capacity, heads, width: B, G, N, H, K.
      dtype: of the generated tokens' keys and values.
      position: of the start token, where positions are learnt.
    """
    heads_first = [None if p.layers is None else tuple(x.swapaxes(-3, -2) for x in p.layers) for p in seen]
    own, past, first = [], [], 0
    for stack in stacks:
        last = first + depth(stack)
        empty = jnp.zeros((depth(stack), rows, heads, capacity * beams, width), dtype)
        own.append((empty, empty))
        past.append(tuple(jax.tree.map(lambda x: x[first:last], heads_first)))  # noqa: B023
        first = last
    return Cache(
        length=jnp.zeros((), jnp.int32),
        position=jnp.zeros(1, jnp.int32) if position is None else position,
        visible=jnp.zeros((rows, beams, capacity * beams), bool),
        own=tuple(own),
        past=tuple(past),
        seen=tuple(each._replace(layers=None) for each in seen),
    )


def decode_layers(
    layer: Callable,
    x: Float[Array, "B G D"],
    stacks: tuple[Params, ...],
    cache: Cache,
) -> tuple[Float[Array, "B G D"], Cache]:
    """One token of each beam through all layers.

    Args:
      layer: `layer(x, weights, append, past) -> (x, own)`. `append(k, v, bias)` takes the token's key and value
        [B, G, H, K], and what the distances of the generated tokens' keys add to scores, [1, H, 1, N]; it gives `own`,
        to be returned, and the part that all generated tokens are for attention. `past(number, bias)` gives the parts
        of one of `cache.seen`.
      x: the embedded token.
      stacks: the decoder's layers.
      cache: of the tokens before it.
    """
    beams = cache.visible.shape[1]
    slot = cache.length * beams  # of the first beam's token
    itself = np.arange(cache.visible.shape[2])[None] == slot + np.arange(beams)[:, None]
    visible = cache.visible | itself[None]
    own_bias = jnp.where(visible, 0.0, MASKED)[:, None]

    kept = []
    for stack, own, past in zip(stacks, cache.own, cache.past, strict=True):

        def body(carry, scanned):
            x, own = carry
            weights, before, index = scanned

            def append(k, v, bias=None):
                # The whole cache is carried and written in place: as scanned input and output it would be copied.
                place = index, 0, 0, slot, 0
                written = tuple(
                    jax.lax.dynamic_update_slice(whole, token.swapaxes(1, 2)[None], place)
                    for whole, token in zip(own, (k, v), strict=True)
                )
                scores = own_bias if bias is None else own_bias + jnp.repeat(bias, beams, axis=3)
                return written, Part(written[0][index], written[1][index], scores, heads_first=True)

            def parts(number, bias=None):
                return cache.seen[number].parts(before[number], x.dtype, bias, heads_first=True)

            return layer(x, weights, append, parts), None

        (x, own), _ = jax.lax.scan(body, (x, own), (stack, past, jnp.arange(depth(stack))))
        kept.append(own)
    return x, cache._replace(length=cache.length + 1, visible=visible, own=tuple(kept))
