"""Counts the work of one device in a compiled program: matrix products, memory traffic, collectives.

XLA's cost analysis counts the body of a loop once, and a scan over layers is a loop. This module multiplies each body
by its trip count, which the text contains for every scan.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tools.planner.hlo import Computation, HloError, Instruction, Module
from tools.planner.traffic import traffic

COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)


class Collective(NamedTuple):
    """A collective that runs `count` times. `group` contains the device numbers of its first group."""

    kind: str
    bytes: float  # size per device of what is reduced, gathered (after gathering) or sent
    group: tuple[int, ...]
    count: float


@dataclasses.dataclass
class Work:
    """The work of one device in one run of a program."""

    flops: float = 0.0  # of matrix products; a multiplication and an addition are two
    traffic: float = 0.0  # bytes read from and written to main memory
    collectives: list[Collective] = dataclasses.field(default_factory=list)


def count_work(module: Module, *, unknown_trips: int = 1) -> Work:
    """Count the work of one run of the program.

    Args:
      module: from `parse`.
      unknown_trips: trip count of loops whose end depends on values, such as generation's.
    """
    total = Work()
    for computation, instruction, times, fused in _run(module, module.entry, 1.0, False, unknown_trips):
        total.flops += times * _flops(instruction, computation)
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            group = _group(instruction)
            if len(group) != 1:
                payload = _payload(kind, instruction, computation, group)
                total.collectives.append(Collective(kind, payload, group, times))
        if not fused:
            total.traffic += times * traffic(instruction, computation, module)
    return total


def _run(
    module: Module, name: str, times: float, fused: bool, unknown_trips: int
) -> Iterator[tuple[Computation, Instruction, float, bool]]:
    """Yield each instruction, how often it runs, and whether it is inside a fusion, whose values never reach memory.

    All branches of a conditional count.
    """
    computation = module.computations[name]
    for instruction in computation.values():
        yield computation, instruction, times, fused
        match instruction.opcode:
            case "while":
                trips = trip_count(instruction, module) or unknown_trips
                called = [(instruction.attribute(part), times * trips, fused) for part in ("body", "condition")]
            case "conditional":
                branches = re.search(r"branch_computations={([^}]*)}", instruction.attributes)
                names = re.findall(r"[\w.\-]+", branches[1]) if branches else []
                names += [instruction.attribute(f"{value}_computation") for value in ("true", "false")]
                called = [(branch, times, fused) for branch in names]
            case "call":
                called = [(instruction.attribute("to_apply") or instruction.attribute("calls"), times, fused)]
            case _:
                called = [(instruction.attribute("calls"), times, fused or instruction.opcode == "fusion")]
        for inner, often, inside in called:
            if inner is not None:
                yield from _run(module, inner, often, inside, unknown_trips)


def trip_count(loop: Instruction, module: Module) -> int | None:
    """Return how often a loop's body runs; None if that depends on values.

    Without the compiler's annotation, this is the limit in the loop's condition: the counters of JAX's loops (`scan`,
    `fori_loop`, `map`) start at 0 and increase by 1.
    """
    if known := re.search(r"known_trip_count\W+n\W+(\d+)", loop.attributes):
        return int(known[1])
    condition = module.computations[loop.attribute("condition") or ""]
    (root,) = (instruction for instruction in condition.values() if instruction.root)
    if root.opcode != "compare" or root.attribute("direction") != "LT":
        return None
    limit = condition[root.operands[1]]
    return int(limit.literal) if limit.opcode == "constant" else None


# --------------------------------------------------------------------------------------------------------------
# Matrix products


def _flops(instruction: Instruction, computation: Computation) -> float:
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


# --------------------------------------------------------------------------------------------------------------
# Collectives


def _payload(kind: str, instruction: Instruction, computation: Computation, group: tuple[int, ...]) -> float:
    size = sum(array.bytes for name in instruction.operands for array in computation[name].arrays)
    return size * len(group) if kind == "all-gather" else size


def _group(instruction: Instruction) -> tuple[int, ...]:
    """Return the device numbers of a collective's first group; () means all devices."""
    text = instruction.attributes
    if pairs := re.search(r"source_target_pairs={{(\d+),(\d+)}", text):
        return int(pairs[1]), int(pairs[2])
    if listed := re.search(r"replica_groups={{([\d,]+)}", text):
        return tuple(map(int, listed[1].split(",")))
    if "replica_groups={}" in text:
        return ()
    # [groups,size]<=[sizes]T(permutation): an arange of these sizes, with its axes permuted
    if counted := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        numbers = _permuted_arange(counted[2], counted[3]).reshape(_integers(counted[1]))
        return tuple(numbers[0].tolist())
    # mesh['a'=2,'b'=8], device_ids=([sizes]T(permutation)) {'a'}: the same in the mesh's shape, along the named axes
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? {([^}]*)}", text
    )
    if mesh is None or ":" in mesh[4]:
        raise HloError(f"{instruction.name}: unknown form of replica groups: {text[:200]}")
    names, sizes = zip(*re.findall(r"'(\w+)'=(\d+)", mesh[1]), strict=True)
    along = re.findall(r"'(\w+)'", mesh[4])
    numbers = _permuted_arange(mesh[2] or ",".join(sizes), mesh[3]).reshape([int(size) for size in sizes])
    first = numbers[tuple(slice(None) if name in along else 0 for name in names)]
    return tuple(first.reshape(-1).tolist())


def _permuted_arange(sizes: str, permutation: str | None) -> np.ndarray:
    numbers = np.arange(math.prod(_integers(sizes))).reshape(_integers(sizes))
    return numbers.transpose(_integers(permutation)) if permutation else numbers


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
