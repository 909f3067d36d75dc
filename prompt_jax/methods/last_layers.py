"""Tuning of the base itself: all of it (Lester et al. 2021, model tuning), or its last layers (Li and Liang 2021).

Copies of the leaves are trained, in float32 whatever the base's type is; the base stays as it is. The last layers are
those blocks alone: Li and Liang's code, with k of 2, also trains the final norm and the embedding that is tied to the
output.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from prompt_jax.checkpoints.load import Model
from prompt_jax.config.prompt import PromptConfig
from prompt_jax.errors import ConfigError
from prompt_jax.models.delta import LAST_LAYERS
from prompt_jax.models.layers import depth, split_layers
from prompt_jax.models.prompt import Prompt
from prompt_jax.models.quantized import Quantized

Trainable = dict[str, Any]


def init(key: PRNGKeyArray, config: PromptConfig, model: Model, labels: Sequence[str] = ()) -> Trainable:
    """The base's leaves, or those of its decoder's last layers, nested as `prompt_jax.models.delta.changed` takes them.

    Raises:
      ConfigError: a base of 8-bit integers, which cannot be trained, or of fewer layers.
    """
    del key, labels
    if any(isinstance(leaf, Quantized) for leaf in jax.tree.leaves(model.params, is_leaf=_is_quantized)):
        raise ConfigError(f"prompt.method {config.method!r} trains the base itself, which model.dtype int8 rules out")
    if config.method == "full":
        return _copied(model.params)
    side = {} if "layers" in model.params else {"decoder": model.params["decoder"]}
    ((name, holder),) = side.items() or [("", model.params)]
    there = sum(map(depth, holder["layers"]))
    if config.layers > there:
        raise ConfigError(f"prompt.layers is {config.layers}, and {model.name} has {there}")
    _, last = split_layers(holder["layers"], config.layers)
    trainable = {LAST_LAYERS: _copied(last)}
    return {name: trainable} if name else trainable


def apply(
    trainable: Trainable, params: Any, key: PRNGKeyArray | None = None, *, config: PromptConfig
) -> tuple[Any, Prompt]:
    """The base as it is, and what takes the place of its leaves."""
    del key, config
    return params, Prompt(base=trainable)


def _copied(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _copied(child) for name, child in node.items()}
    if isinstance(node, tuple):
        return {str(number): _copied(child) for number, child in enumerate(node)}
    return jnp.array(node, jnp.float32)


def _is_quantized(node: Any) -> bool:
    return isinstance(node, Quantized)
