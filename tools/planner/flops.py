"""Counts the floating-point operations of a function's matrix products from its jaxpr, for all devices together."""

import math
from collections.abc import Iterator
from typing import Any


def matmul_flops(jaxpr: Any, *, unknown_trips: int = 1) -> float:
    """Count the operations of all `dot_general` in a jaxpr, where a multiplication and an addition are two.

    The body of a scan counts once per iteration, and a Pallas kernel once per step of its grid, unless it has a cost
    estimate. A `cond` counts as its most expensive branch.

    Args:
      jaxpr: `jax.make_jaxpr(f)(...)`, or `jax.jit(f).trace(...).jaxpr`.
      unknown_trips: number of iterations of while loops.
    """
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
            continue
        if name == "pallas_call" and parameters["cost_estimate"] is not None:
            total += parameters["cost_estimate"].flops
            continue
        inner = [matmul_flops(each, unknown_trips=unknown_trips) for each in inner_jaxprs(parameters)]
        if name == "cond":
            total += max(inner)
        else:
            total += sum(inner) * _times(name, parameters, unknown_trips)
    return total


def _times(name: str, parameters: dict[str, Any], unknown_trips: int) -> int:
    match name:
        case "scan":
            return parameters["length"]
        case "while":
            return unknown_trips
        case "pallas_call":
            return math.prod(parameters["grid_mapping"].grid)
        case "shard_map":  # along these axes, shapes inside are per device
            return math.prod(parameters["mesh"].shape[axis] for axis in parameters["newly_manual_axes"])
    return 1


def inner_jaxprs(parameters: dict[str, Any]) -> Iterator[Any]:
    """Yield the jaxprs among an equation's parameters."""
    for value in parameters.values():
        for each in value if isinstance(value, tuple | list) else [value]:
            if hasattr(each, "eqns") or hasattr(each, "jaxpr"):
                yield each
