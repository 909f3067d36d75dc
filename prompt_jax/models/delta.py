"""A base with what a tuned model has otherwise in it: adapters, or layers of its own. See `Prompt.base`."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from prompt_jax.models.layers import Params, depth, join_stacks, split_layers
from prompt_jax.models.prompt import Prompt

LAST_LAYERS = "last_layers"


def tuned(params: Params, prompt: Any) -> tuple[Params, Prompt | None]:
    """The base as a prompt changes it, and the rest of the prompt."""
    if prompt is None or not prompt.base:
        return params, prompt
    return changed(params, prompt.base), prompt.replace(base=None)


def changed(params: Params, leaves: Mapping[str, Any]) -> Params:
    """A base in which these leaves replace its own, or join them.

    Args:
      params: the base.
      leaves: nested as the base is, with the number of a stack of layers as a text, as in {"decoder": {"layers": {"0":
        {"mlp": {"up": [L, D, F]}}}}}. With `last_layers` in place of `layers` and the number they are those of the last
        layers alone, as many as they have, which then are a stack of their own. They get the activations' type.
    """
    return _changed(params, jax.tree.map(lambda leaf: leaf.astype(params["embedding"].dtype), dict(leaves)))


def whole_model(params: Params, prompt: Prompt) -> Params:
    """A base with the layers that a prompt has in place of its own, in one stack again.

    Raises:
      ValueError: the prompt has what no base has: virtual tokens, a prefix, adapters.
    """
    others = [
        *prompt.parts,
        *(["adapters"] if any("adapter" in path.split("/") for path in flat(prompt.base or {})) else []),
    ]
    if others or not prompt.base:
        raise ValueError(f"{' and '.join(others) or 'an empty prompt'} cannot be made a part of the base's own weights")

    def joined(node: Any) -> Any:
        if isinstance(node, tuple):
            return (join_stacks(node),)
        return {name: joined(child) for name, child in node.items()} if isinstance(node, dict) else node

    return joined(changed(params, prompt.base))


def _changed(node: Any, leaves: Any) -> Any:
    if not isinstance(leaves, dict):
        return leaves
    if isinstance(node, tuple):  # the stacks of layers
        return tuple(_changed(stack, leaves.get(str(number), {})) for number, stack in enumerate(node))
    result = dict(node or {})
    for name, own in leaves.items():
        if name == LAST_LAYERS:
            lower, upper = split_layers(result["layers"], depth(own))
            result["layers"] = (*lower, _changed(upper, own))
        else:
            result[name] = _changed(result.get(name), own)
    return result


def check_leaves(params: Params, leaves: Mapping[str, Any]) -> None:
    """Raises ValueError unless the leaves have a place in the base: as `changed` takes them, and of its shapes."""
    base = {path: leaf.shape for path, leaf in flat(params).items()}
    own = {path: np.shape(leaf) for path, leaf in flat(leaves).items()}
    counts = {shape[:1] for path, shape in own.items() if LAST_LAYERS in path.split("/")}
    widths: dict[str, int] = {}
    for path, found in own.items():
        place = path.replace(LAST_LAYERS, "layers/0")
        expected = base.get(place)
        if expected is not None and place != path and len(counts) == 1 and (0,) < found[:1] <= expected[:1]:
            expected = (*found[:1], *expected[1:])
        if expected is None and (match := _ADAPTER.fullmatch(path)):
            layers = {shape[0] for name, shape in base.items() if name.startswith(f"{match['place']}/")}
            bottleneck = widths.setdefault(match["place"], found[_BOTTLENECK.get(match["leaf"], 0)] if found else 0)
            sizes = {"L": next(iter(layers), 0), "D": params["embedding"].shape[1], "M": bottleneck}
            expected = tuple(sizes[axis] for axis in _AXES[match["leaf"]])
        if found != expected or 0 in found:
            wanted = "no such leaf" if expected is None else f"{list(expected)} there"
            raise ValueError(f"base/{path} is {list(found)}, and the base has {wanted}")
    for place in widths:
        there = {path.removeprefix(f"{place}/adapter/") for path in own if path.startswith(f"{place}/adapter/")}
        if there not in (_AXES.keys(), _AXES.keys() - {"norm/scale", "norm/bias"}):
            raise ValueError(f"base/{place}/adapter has {', '.join(sorted(there))}, and should have {', '.join(_AXES)}")
    if counts and any("/layers/" in f"/{path}" for path in own):
        raise ValueError(f"base/ has both {LAST_LAYERS} and leaves of all layers; expected one or the other")


_AXES = {"down": "LDM", "down_bias": "LM", "up": "LMD", "up_bias": "LD", "norm/scale": "LD", "norm/bias": "LD"}
_BOTTLENECK = {"down": 2, "down_bias": 1, "up": 1}
_PLACE = r"(?P<place>(?:(?:en|de)coder/)?layers/0(?:/self|/cross|/mlp)?)"
_ADAPTER = re.compile(rf"{_PLACE}/adapter/(?P<leaf>{'|'.join(_AXES)})")


def flat(node: Any) -> dict[str, Any]:
    """The leaves of nested dicts, and of stacks of layers, by their paths: `decoder/layers/0/mlp/up`."""
    children: Any = node if isinstance(node, Mapping) else enumerate(node) if isinstance(node, tuple) else None
    if children is None:
        return {"": node}
    pairs = children.items() if isinstance(children, Mapping) else children
    return {f"{name}/{path}".rstrip("/"): leaf for name, child in pairs for path, leaf in flat(child).items()}
