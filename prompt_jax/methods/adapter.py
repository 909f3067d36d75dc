"""Adapters: small networks between the layers of a frozen base are trained, and nothing else.

Two per block, after each sublayer (Houlsby et al. 2019), or one per block with a norm (Lin et al. 2020), which is what
Li and Liang 2021 compare prefixes with. Their bottleneck is a width, or as wide as a share of the base's parameters has
room for.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from prompt_jax.checkpoints.load import Model
from prompt_jax.config.prompt import PromptConfig
from prompt_jax.errors import ConfigError
from prompt_jax.models.layers import depth
from prompt_jax.models.prompt import Prompt

Trainable = dict[str, Any]

SCALE = 1e-3  # of the first weights: an adapter that does next to nothing (Houlsby et al. 2019, section 3.6)


def init(key: PRNGKeyArray, config: PromptConfig, model: Model, labels: Sequence[str] = ()) -> Trainable:
    """First values, nested as `prompt_jax.models.delta.changed` takes them: `down` [L, D, M], `up` [L, M, D] and their
    biases, in float32, and with one per block a norm.

    Raises:
      ConfigError: a share of the base's parameters that is too small for a bottleneck of one.
    """
    del labels
    width = model.config.d_model
    places = _places(model.params, config.adapter)
    bottleneck = _bottleneck(config, model, places)
    trainable: Trainable = {}
    for (path, layers), own in zip(places, jax.random.split(key, len(places)), strict=True):
        down, up = jax.random.split(own)
        adapter: Trainable = {
            "down": SCALE * jax.random.normal(down, (layers, width, bottleneck)),
            "down_bias": jnp.zeros((layers, bottleneck)),
            "up": SCALE * jax.random.normal(up, (layers, bottleneck, width)),
            "up_bias": jnp.zeros((layers, width)),
        }
        if config.adapter == "lin":
            adapter["norm"] = {"scale": jnp.ones((layers, width)), "bias": jnp.zeros((layers, width))}
        node = trainable
        for name in path:
            node = node.setdefault(name, {})
        node["adapter"] = adapter
    return trainable


def apply(
    trainable: Trainable, params: Any, key: PRNGKeyArray | None = None, *, config: PromptConfig
) -> tuple[Any, Prompt]:
    """The base as it is, and the adapters, which join it. `key` is for methods with a dropout of their own."""
    del key, config
    return params, Prompt(base=trainable)


def _places(params: Any, kind: str) -> list[tuple[tuple[str, ...], int]]:
    """Where adapters go, as paths, and how many layers there are."""
    places: list[tuple[tuple[str, ...], int]] = []
    for side in [name for name in ("encoder", "decoder") if name in params] or [""]:
        (stack,) = (params[side] if side else params)["layers"]
        layer = (side, "layers", "0") if side else ("layers", "0")
        sublayers = [name for name in ("self", "cross", "mlp") if name in stack]
        paths = [layer] if kind == "lin" else [(*layer, name) for name in sublayers]
        places += [(path, depth(stack)) for path in paths]
    return places


def _bottleneck(config: PromptConfig, model: Model, places: list[tuple[tuple[str, ...], int]]) -> int:
    if config.adapter_share is None:
        return config.adapter_width
    base = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    count, width = sum(layers for _, layers in places), model.config.d_model
    fixed = count * width * (3 if config.adapter == "lin" else 1)
    bottleneck = round((config.adapter_share * base - fixed) / (count * (2 * width + 1)))
    if bottleneck < 1:
        least = (fixed + count * (2 * width + 1)) / base
        raise ConfigError(
            f"prompt.adapter_share {config.adapter_share} is less than adapters of width 1 have of {model.name}: "
            f"{least:.2g}"
        )
    return bottleneck
