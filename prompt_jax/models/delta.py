"""Changes of the base's weights: adapters, the last layers, or a full model."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import struct

from prompt_jax.models.layers import Params, depth, join_stacks, split_layers
from prompt_jax.models.prompt import Prompt, PromptStackError, check_stackable

LAST_LAYERS = "last_layers"


@struct.dataclass
class Delta:
    """Weights that replace or extend the base's, as the baselines of prompt tuning store them.

    Attributes:
      leaves: arrays, nested like the base's parameters. The number of a stack of layers is a string, as in {"decoder":
        {"layers": {"0": {"mlp": {"up": [L, D, F]}}}}}. The key `last_layers`, instead of `layers` and a number, holds
        the weights of the last layers only.
    """

    leaves: Any

    @property
    def parts(self) -> dict[str, Any]:
        """Empty: a Delta has no virtual tokens and no prefix."""
        return {}


def merged_params(params: Params, delta: Delta) -> Params:
    """Return the base's parameters with a Delta's leaves in them, cast to the activations' type.

    The last layers become a separate stack, so that no gradient is computed for the layers below.
    """
    return _merged(params, jax.tree.map(lambda leaf: leaf.astype(params["embedding"].dtype), delta.leaves))


def params_and_prompt(params: Params, added: "Prompt | Delta | None") -> tuple[Params, Prompt | None]:
    """Return the parameters and the prompt of a forward pass, from a Prompt, a Delta or None."""
    return (merged_params(params, added), None) if isinstance(added, Delta) else (params, added)


def whole_model(params: Params, delta: Delta) -> Params:
    """Merge a Delta into the base's parameters, and keep the structure of the base.

    Raises:
      ValueError: the Delta has adapters, for which the base has no place.
    """
    if any("adapter" in path.split("/") for path in flat(delta.leaves)):
        raise ValueError("adapters cannot be merged into the base's weights")

    def joined(node: Any) -> Any:
        if isinstance(node, tuple):
            return (join_stacks(node),)
        return {name: joined(child) for name, child in node.items()} if isinstance(node, dict) else node

    return joined(merged_params(params, delta))


def check_ensemble(prompts: "Sequence[Prompt | Delta]", names: Sequence[str] | None = None) -> None:
    """Raise PromptStackError unless these can form one ensemble: prompts that stack, or Deltas of equal shapes.

    `names` are used in error messages; the default is their numbers.
    """
    names = names or [f"prompt {number}" for number in range(len(prompts))]
    kinds = [jax.tree.map(np.shape, prompt) for prompt in prompts if isinstance(prompt, Delta)]
    if not kinds:
        return check_stackable(prompts, names)
    for name, prompt in zip(names, prompts, strict=True):
        if not isinstance(prompt, Delta) or jax.tree.map(np.shape, prompt) != kinds[0]:
            raise PromptStackError(f"{names[0]} and {name} do not change the same weights of the base")


def _merged(node: Any, leaves: Any) -> Any:
    if not isinstance(leaves, dict):
        return leaves
    if isinstance(node, tuple):  # the stacks of layers
        return tuple(_merged(stack, leaves.get(str(number), {})) for number, stack in enumerate(node))
    result = dict(node or {})
    for name, child in leaves.items():
        if name == LAST_LAYERS:
            lower, upper = split_layers(result["layers"], depth(child))
            result["layers"] = (*lower, _merged(upper, child))
        else:
            result[name] = _merged(result.get(name), child)
    return result


def check_delta(params: Params, delta: Delta) -> None:
    """Raise ValueError unless the base has a place for each leaf, of the same shape."""
    base = {path: leaf.shape for path, leaf in flat(params).items()}
    shapes = {path: np.shape(leaf) for path, leaf in flat(delta.leaves).items()}
    counts = {shape[:1] for path, shape in shapes.items() if LAST_LAYERS in path.split("/")}
    widths: dict[str, int] = {}
    for path, actual in shapes.items():
        place = path.replace(LAST_LAYERS, "layers/0")
        expected = base.get(place)
        if expected is not None and place != path and len(counts) == 1 and (0,) < actual[:1] <= expected[:1]:
            expected = (*actual[:1], *expected[1:])
        if expected is None and (match := _ADAPTER.fullmatch(path)):
            layers = {shape[0] for name, shape in base.items() if name.startswith(f"{match['place']}/")}
            bottleneck = widths.setdefault(match["place"], actual[_BOTTLENECK.get(match["leaf"], 0)] if actual else 0)
            sizes = {"L": next(iter(layers), 0), "D": params["embedding"].shape[1], "M": bottleneck}
            expected = tuple(sizes[axis] for axis in _AXES[match["leaf"]])
        if actual != expected or 0 in actual:
            wanted = "no such leaf" if expected is None else f"{list(expected)} there"
            raise ValueError(f"base/{path} is {list(actual)}, and the base has {wanted}")
    for place in widths:
        leaves = {path.removeprefix(f"{place}/adapter/") for path in shapes if path.startswith(f"{place}/adapter/")}
        if leaves not in (_AXES.keys(), _AXES.keys() - {"norm/scale", "norm/bias"}):
            raise ValueError(
                f"base/{place}/adapter has {', '.join(sorted(leaves))}, and should have {', '.join(_AXES)}"
            )
    if counts and any("/layers/" in f"/{path}" for path in shapes):
        raise ValueError(f"base/ has both {LAST_LAYERS} and leaves of all layers; expected one or the other")


_AXES = {"down": "LDM", "down_bias": "LM", "up": "LMD", "up_bias": "LD", "norm/scale": "LD", "norm/bias": "LD"}
_BOTTLENECK = {"down": 2, "down_bias": 1, "up": 1}
_PLACE = r"(?P<place>(?:(?:en|de)coder/)?layers/0(?:/self|/cross|/mlp)?)"
_ADAPTER = re.compile(rf"{_PLACE}/adapter/(?P<leaf>{'|'.join(_AXES)})")


def flat(node: Any) -> dict[str, Any]:
    """Return the leaves of nested dicts and tuples by their paths, such as `decoder/layers/0/mlp/up`."""
    children: Any = node if isinstance(node, Mapping) else enumerate(node) if isinstance(node, tuple) else None
    if children is None:
        return {"": node}
    pairs = children.items() if isinstance(children, Mapping) else children
    return {f"{name}/{path}".rstrip("/"): leaf for name, child in pairs for path, leaf in flat(child).items()}
