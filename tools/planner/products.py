"""Counts the operations of the matrix products of a compiled program."""

import math
import re

import numpy as np

from tools.planner.hlo import Computation, HloError, Instruction


def product_flops(instruction: Instruction, computation: Computation) -> float:
    """Return the operations of a matrix product, where a multiplication and an addition are two; else 0."""
    if instruction.opcode not in ("dot", "convolution"):
        return 0.0
    left, right = (computation[name].arrays[0].shape for name in instruction.operands)
    out = instruction.arrays[0].shape
    if instruction.opcode == "dot":
        return 2.0 * math.prod(out) * math.prod(left[axis] for axis in instruction.numbers("lhs_contracting_dims"))

    # On a TPU every matrix product is a convolution, whose windows include the batch axes.
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        raise HloError(f"{instruction.name}: convolution without dim_labels: {instruction.attributes[:200]}")
    left_labels, right_labels, out_labels = labels.groups()
    flops = 2.0 * out[out_labels.index("b")] * out[out_labels.index("f")] * right[right_labels.index("i")]
    window = _window(instruction)
    for axis in (label for label in out_labels if label.isdigit()):
        sizes = left[left_labels.index(axis)], right[right_labels.index(axis)], out[out_labels.index(axis)]
        flops *= _hits(*sizes, **{name: values[int(axis)] for name, values in window.items()})
    return flops


def _window(convolution: Instruction) -> dict[str, list]:
    """Return stride, padding before, and dilations of both operands, with one value per spatial axis."""
    text = re.search(r"window={([^}]*)}", convolution.attributes)
    given = dict(part.split("=") for part in text[1].split()) if text else {}
    axes = len(given["size"].split("x")) if given else 0

    def values(name: str) -> list[int]:
        return [int(value.split("_")[0]) for value in given[name].split("x")] if name in given else []

    return {
        "stride": values("stride") or [1] * axes,
        "padding": values("pad") or [0] * axes,
        "lhs_step": values("lhs_dilate") or [1] * axes,
        "rhs_step": values("rhs_dilate") or [1] * axes,
    }


def _hits(left: int, right: int, out: int, *, stride: int, padding: int, lhs_step: int, rhs_step: int) -> int:
    """Count the pairs of output and kernel positions that meet a value, not padding or a gap between dilated values."""
    positions = np.arange(out)[:, None] * stride + np.arange(right)[None, :] * rhs_step - padding
    return int(((positions >= 0) & (positions % lhs_step == 0) & (positions // lhs_step < left)).sum())
