"""Counts the work of kernels (Pallas), which are custom calls in a compiled program."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from tools.planner.flops import inner_jaxprs, matmul_flops
from tools.planner.hlo import HloError, Instruction

TARGET = "tpu_custom_call"

# The operations of a kernel's matrix products, by the kernel's name and the shapes of its results.
Kernels = Mapping[tuple[str, tuple[tuple[int, ...], ...]], float]


class CostEstimate(NamedTuple):
    """The work of one run of a kernel, as its author states it with `pl.CostEstimate`."""

    flops: float
    transcendentals: float
    bytes: float  # read from and written to main memory


def cost_estimate(call: Instruction) -> CostEstimate | None:
    """Return the cost estimate of a custom call; None if it has none."""
    text = re.search(r'"cost_estimate"\s*:\s*{([^}]*)}', call.attributes)
    if text is None:
        return None
    values = {name: float(value) for name, value in re.findall(r'"(\w+)"\s*:\s*"?(\d+)', text[1])}
    return CostEstimate(*(values.get(name, 0.0) for name in ("flops", "transcendentals", "bytes_accessed")))


def kernel_flops(call: Instruction, kernels: Kernels) -> float:
    """Return the operations of a kernel without a cost estimate.

    Raises:
      HloError: `kernels` lacks it.
    """
    name = re.sub(r"(\.(\d+|clone|remat\d*))*$", "", call.name)
    shapes = tuple(array.shape for array in call.arrays)
    if (name, shapes) not in kernels:
        raise HloError(
            f"the kernel {call.name} {list(shapes)} has no cost estimate, and the program before compilation does not "
            "have a kernel of this name and shape; pass `cost_estimate` to `pl.pallas_call`"
        )
    return kernels[name, shapes]


def kernels_of(jaxpr: Any) -> Kernels:
    """Return the kernels in a jaxpr."""
    found: dict[tuple[str, tuple[tuple[int, ...], ...]], float] = {}
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        parameters = equation.params
        if equation.primitive.name == "pallas_call":
            name = re.sub(r"\W", "_", parameters["name"] or "")
            shapes = tuple(output.aval.shape for output in equation.outvars)
            found[name, shapes] = matmul_flops(parameters["jaxpr"]) * math.prod(parameters["grid_mapping"].grid)
            continue
        for inner in inner_jaxprs(parameters):
            found |= kernels_of(inner)
    return found
