"""Running stacked layers. Shapes: see `prompt_jax.models`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from prompt_jax.config import Remat
from prompt_jax.models.quantised import Weights, project

Params = dict[str, Any]

# What is kept of each layer for the backward pass; the rest is computed again.
_KEPT: dict[Remat, Callable] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def run_layers(
    layer: Callable,
    x: Float[Array, "B T D"],
    stacks: tuple[Params, ...],
    extra: Any = None,
    *,
    remat: Remat,
    key: PRNGKeyArray | None,
    keys_per_layer: int,
) -> tuple[Float[Array, "B T D"], Any]:
    """Applies `layer(x, weights, extra, keys) -> (x, output)` for each layer of each stack.

    Args:
      layer: `extra` is the layer's own, `keys` are so many independent keys, or None each.
      x: the input of the first.
      stacks: leaves [L_i, ...].
      extra: leaves [L, ...] over the layers of all stacks; None is None for each layer.
      remat: what of a layer is recomputed in the backward pass: "none" of it; all but what comes of the weights'
        matrices ("dots"), which leaves attention and activation functions to be recomputed; or "full", all of it.
      key: for dropout, or None.
      keys_per_layer: of `keys`.

    Returns:
      the last layer's x, and the outputs of all layers, [L, ...].
    """

    def body(x, scanned):
        weights, own, key = scanned
        return layer(x, weights, own, keys_or_none(key, keys_per_layer))

    if remat != "none":
        body = jax.checkpoint(body, prevent_cse=False, policy=_KEPT[remat])
    first, outputs = 0, []
    for stack, stack_key in zip(stacks, keys_or_none(key, len(stacks)), strict=True):
        count = depth(stack)
        own = jax.tree.map(lambda leaf: leaf[first : first + count], extra)  # noqa: B023
        keys = None if key is None else jax.random.split(stack_key, count)
        x, output = jax.lax.scan(body, x, (stack, own, keys))
        first += count
        outputs.append(output)
    return x, only_stack(tuple(outputs))


def only_stack(stacks: tuple[Any, ...]) -> Any:
    """All layers as one stack."""
    return stacks[0] if len(stacks) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *stacks)


def depth(stack: Any) -> int:
    """The number of its layers."""
    return len(jax.tree.leaves(stack)[0])


def keys_or_none(key: PRNGKeyArray | None, count: int) -> Any:
    """`count` independent keys; as many None where there is no key."""
    return (None,) * count if key is None else jax.random.split(key, count)


def heads(x: Float[Array, "B T D"], weights: Float[Weights, "D H K"]) -> Float[Array, "B T H K"]:
    """A projection to the heads of an attention."""
    return project("btd,dhk->bthk", x, weights)


def merge(x: Float[Array, "B T H K"], weights: Float[Weights, "H K D"]) -> Float[Array, "B T D"]:
    """The projection back, of all heads together."""
    return project("bthk,hkd->btd", x, weights)


def widen(x: Float[Array, "B T D"], weights: Float[Weights, "D F"]) -> Float[Array, "B T F"]:
    """The first projection of a feed-forward sublayer."""
    return project("btd,df->btf", x, weights)


def narrow(x: Float[Array, "B T F"], weights: Float[Weights, "F D"]) -> Float[Array, "B T D"]:
    """The projection back."""
    return project("btf,fd->btd", x, weights)


def adapted(x: Float[Array, "B T D"], weights: Params) -> Float[Array, "B T D"]:
    """What comes out of a sublayer, or of a whole layer, after its adapter, where `weights` has one.

    A bottleneck with a residual connection: one after each sublayer (Houlsby et al. 2019, section 2.1), or one after
    each layer with a norm of its own (Lin et al. 2020, section 3), `down` [D, M] and `up` [M, D] with biases.
    """
    if (adapter := weights.get("adapter")) is None:
        return x
    lin = "norm" in adapter
    normal = layer_norm(x, adapter["norm"], 1e-5) if lin else x
    hidden = widen(normal, adapter["down"]) + adapter["down_bias"][None, None]
    hidden = jax.nn.relu(hidden) if lin else jax.nn.gelu(hidden)
    return x + narrow(hidden, adapter["up"]) + adapter["up_bias"][None, None]


def layer_norm(x: Float[Array, "B T D"], weights: Params, epsilon: float) -> Float[Array, "B T D"]:
    """Layer norm with `scale` and `bias` [D], in float32."""
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    normal = (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)
    return normal * weights["scale"][None, None] + weights["bias"][None, None]
