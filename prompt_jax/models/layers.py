"""Run stacks of layers, and the sublayers and norms that layers consist of. Shape letters: see `prompt_jax.models`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from prompt_jax.config.model import Remat
from prompt_jax.models import fused_attention, fused_feed_forward
from prompt_jax.models.dropout import dropout, random_seeds
from prompt_jax.models.fused_feed_forward import Matrices
from prompt_jax.models.quantized import Weights, weighted_einsum

Params = dict[str, Any]

# The activations that the backward pass keeps from each layer. It recomputes the rest.
_KEPT: dict[Remat, Callable] = {
    "none": lambda operation, *_, **__: operation.name != "sharding_constraint",  # all but collected weights
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def run_layers(
    layer: Callable,
    x: Any,
    stacks: tuple[Params, ...],
    extra: Any = None,
    *,
    config: Any,
    key: Any,
) -> tuple[Any, Any]:
    """Apply `layer(x, weights, extra, key) -> (x, output)` to each layer of each stack with `jax.lax.scan`.

    Args:
      layer: computes one layer. `key` is like the argument `key`, with independent keys for each layer.
      x: the input of the first layer, an array [B, T, D] or a pytree of such arrays.
      stacks: weights with leaves [L_i, ...].
      extra: leaves [L, ...] over the layers of all stacks, or None.
      config: the model's, with the fields `remat` and `fsdp`. remat: the values that the backward pass recomputes:
        nothing ("none"), attention and activation functions ("dots"), or whole layers ("full"). fsdp: whether weights
        are sharded over the rows' devices; both passes then collect each layer's weights when they are needed.
      key: a key, or a pytree of keys, which enable dropout; None disables it.

    Returns:
      the last layer's x, and the outputs of all layers, [L, ...].
    """

    def body(x, scanned):
        weights, layer_extra, layer_key = scanned
        if config.fsdp:
            weights = collect(weights)
        return layer(x, weights, layer_extra, layer_key)

    if config.remat != "none" or config.fsdp:
        body = jax.checkpoint(body, prevent_cse=False, policy=_KEPT[config.remat])
    first, outputs, stack_keys = 0, [], _split_keys(key, len(stacks))
    for number, stack in enumerate(stacks):
        count = depth(stack)
        stack_extra = jax.tree.map(lambda leaf: leaf[first : first + count], extra)  # noqa: B023
        keys = _split_keys(jax.tree.map(lambda keys: keys[number], stack_keys), count)  # noqa: B023
        x, output = jax.lax.scan(body, x, (stack, stack_extra, keys))
        first += count
        outputs.append(output)
    return x, join_stacks(tuple(outputs))


def collect(weights: Any) -> Any:
    """Return weights that are sharded over devices, whole on each device."""
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, PartitionSpec()), weights)


def collect_tables(params: Params) -> Params:
    """Return a model's parameters with all but the layers' whole on each device."""
    return {
        name: part if name == "layers" else collect_tables(part) if isinstance(part, dict) else collect(part)
        for name, part in params.items()
    }


def join_stacks(stacks: tuple[Any, ...]) -> Any:
    """Concatenate the layers of several stacks to one stack."""
    return stacks[0] if len(stacks) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *stacks)


def split_layers(stacks: tuple[Params, ...], last: int) -> tuple[tuple[Params, ...], Params]:
    """Split a model's layers into the stacks below its last `last` layers, and a stack of these last layers."""
    *lower, top = stacks
    rest = depth(top) - last
    if rest > 0:
        lower.append(jax.tree.map(lambda leaf: leaf[:rest], top))
        top = jax.tree.map(lambda leaf: leaf[rest:], top)
    return tuple(lower), top


def depth(stack: Any) -> int:
    """Return the number of layers in a stack."""
    return len(jax.tree.leaves(stack)[0])


def split_key(key: PRNGKeyArray | None, count: int) -> Any:
    """Return `count` independent keys; without a key, `count` times None."""
    return (None,) * count if key is None else jax.random.split(key, count)


def _split_keys(keys: Any, count: int) -> Any:
    """Return a pytree like `keys`, with `count` independent keys in place of each one."""
    return jax.tree.map(lambda key: jax.random.split(key, count), keys)


def project_heads(x: Float[Array, "B T D"], weights: Float[Weights, "D H K"]) -> Float[Array, "B T H K"]:
    """Project to attention heads."""
    if not _heads_side_by_side():
        return weighted_einsum("btd,dhk->bthk", x, weights)

    def project(x: Array, weights: Weights) -> Array:
        side_by_side = jax.tree.map(lambda leaf: leaf.reshape(len(leaf), -1), weights)
        return weighted_einsum("btd,de->bte", x, side_by_side)

    return _without_copies(project)(x, weights).reshape(*x.shape[:2], *weights.shape[1:])


def merge_heads(x: Float[Array, "B T H K"], weights: Float[Weights, "H K D"]) -> Float[Array, "B T D"]:
    """Project the concatenated heads to the model width."""
    if not _heads_side_by_side():
        return weighted_einsum("bthk,hkd->btd", x, weights)

    def project(x: Array, weights: Weights) -> Array:
        side_by_side = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), weights)
        return weighted_einsum("bte,ed->btd", x, side_by_side)

    return _without_copies(project)(x.reshape(*x.shape[:2], -1), weights)


# The backward pass would keep a copy of each layer's weights in the other shape.
_without_copies = functools.partial(jax.checkpoint, prevent_cse=False)


def _heads_side_by_side() -> bool:
    """Return whether projections have one axis for all heads.

    With an axis for heads, the TPU compiler would transpose the operands and results of the fused attention in memory.
    Without one, the CPU compiler would copy the weights.
    """
    return fused_attention.platform() == "tpu"


def project_up(x: Float[Array, "B T D"], weights: Float[Weights, "D F"]) -> Float[Array, "B T F"]:
    """Project to the feed-forward width."""
    return weighted_einsum("btd,df->btf", x, weights)


def project_down(x: Float[Array, "B T F"], weights: Float[Weights, "F D"]) -> Float[Array, "B T D"]:
    """Project from the feed-forward width to the model width."""
    return weighted_einsum("btf,fd->btd", x, weights)


def feed_forward(
    x: Float[Array, "B T D"],
    weights: Params,
    activate: Callable,
    *,
    config: Any,
    dropout_rate: float = 0.0,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "B T D"]:
    """Apply a feed-forward sublayer, with dropout before its last projection.

    With a `gate` in the weights, the hidden activations are activate(x gate) * (x up), otherwise activate(x up). Each
    projection adds its bias, if it has one. `config` is the model's.
    """
    if fused_feed_forward.suits(x, weights, config):
        matrices = Matrices(**{name: weights[name] for name in Matrices._fields if name in weights})
        seeds = None if key is None else random_seeds(key)
        out = fused_feed_forward.feed_forward(x, matrices, activate, dropout_rate, seeds)
    else:
        names = ("gate", "up") if "gate" in weights else ("up",)
        products = [project_up(x, weights[name]) for name in names]
        biases = [weights.get(f"{name}_bias") for name in names]
        # The backward pass keeps the products and recomputes the rest.
        hidden = jax.checkpoint(functools.partial(_activated, activate), prevent_cse=False)(products, biases)
        out = project_down(dropout(hidden, dropout_rate, key), weights["down"])
    return add_bias(out, weights.get("down_bias"))


def _activated(activate: Callable, products: list[Array], biases: list[Any]) -> Array:
    first, *others = map(add_bias, products, biases)
    return activate(first) * others[0] if others else activate(first)


def exact_gelu(x: Array) -> Array:
    """Return x times the normal distribution's cumulative probability of x.

    `jax.nn.gelu(x, approximate=False)` uses `erfc`, which kernels for TPUs do not have.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def add_bias(x: Float[Array, "B T *N"], bias: Float[Array, "*N"] | None) -> Float[Array, "B T *N"]:
    """Add a bias, if there is one, to each token."""
    return x if bias is None else x + bias[None, None]


def apply_adapter(x: Float[Array, "B T D"], weights: Params) -> Float[Array, "B T D"]:
    """Apply the adapter in `weights`, if there is one, to the output of a sublayer or layer.

    An adapter is a bottleneck of width M with a residual connection; `down` is [D, M] and `up` [M, D]. It follows each
    sublayer (Houlsby et al. 2019, section 2.1). Or it follows each layer, and begins with a layer norm (Lin et al.
    2020, section 3).
    """
    if (adapter := weights.get("adapter")) is None:
        return x
    lin = "norm" in adapter
    normal = layer_norm(x, adapter["norm"], 1e-5) if lin else x
    hidden = project_up(normal, adapter["down"]) + adapter["down_bias"][None, None]
    hidden = jax.nn.relu(hidden) if lin else jax.nn.gelu(hidden)
    return x + project_down(hidden, adapter["up"]) + adapter["up_bias"][None, None]


def layer_norm(x: Float[Array, "B T D"], weights: Params, epsilon: float) -> Float[Array, "B T D"]:
    """Apply a layer norm with `scale` and `bias` [D], in float32."""
    x32 = x.astype(jnp.float32)
    centered = x32 - x32.mean(axis=-1, keepdims=True)
    variance = jnp.square(centered).mean(axis=-1, keepdims=True)
    normal = (centered * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)
    return normal * weights["scale"][None, None] + weights["bias"][None, None]


def rms_norm(
    x: Float[Array, "B T *H N"], scale: Float[Array, "N"], epsilon: float, *, one_plus: bool = False
) -> Float[Array, "B T *H N"]:
    """Apply a root-mean-square norm over the last axis, without mean and bias, in float32.

    With `one_plus`, the normalized x is multiplied by 1 + scale, in float32 (Gemma).
    """
    x32 = x.astype(jnp.float32)
    # With einsum, the backward pass keeps only x, and not 2 x as well.
    variance = jnp.einsum("...d,...d->...", x32, x32)[..., None] / x.shape[-1]
    normal = x32 * jax.lax.rsqrt(variance + epsilon)
    scale = jnp.expand_dims(scale, range(x.ndim - 1))
    return (normal * (1 + scale.astype(jnp.float32))).astype(x.dtype) if one_plus else normal.astype(x.dtype) * scale
