"""What one device does in a compiled program: matrix products, memory traffic, collectives.

XLA's own cost analysis counts the body of a loop once, and a scan over layers is a loop. Here a body is multiplied by
its trip count, which the text has for every scan.
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
    """One that is run `count` times. `group` has the numbers of the devices of the first of its groups."""

    kind: str
    bytes: float  # of what is reduced, gathered or sent, as a device of the group has it whole
    group: tuple[int, ...]
    count: float


@dataclasses.dataclass
class Work:
    """Of one device in one run of a program."""

    flops: float = 0.0  # of matrix products; a multiplication and an addition are two
    traffic: float = 0.0  # bytes read from and written to main memory
    collectives: list[Collective] = dataclasses.field(default_factory=list)


def count_work(module: Module, *, unknown_trips: int = 1) -> Work:
    """All that a run of the program does.

    Args:
      module: from `parse`.
      unknown_trips: how often the body of a loop runs whose end depends on values, as that of generation does.
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
    """Every instruction, how often it is run, and whether it is part of a fusion, whose values never reach memory.

    Of a conditional all branches count.
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
    """How often a loop's body runs; None where that depends on values.

    The compiler's word if it is there; else the number that the condition compares the counter with, which in the
    loops of JAX (`scan`, `fori_loop`, `map`) goes up from 0 by 1.
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

    # On a TPU every product is a convolution, whose windows have the batch axes too.
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        raise HloError(f"{instruction.name}: a convolution without dim_labels: {instruction.attributes[:200]}")
    left_labels, right_labels, out_labels = labels.groups()
    flops = 2.0 * out[out_labels.index("b")] * out[out_labels.index("f")] * right[right_labels.index("i")]
    window = _window(instruction)
    for axis in (label for label in out_labels if label.isdigit()):
        sizes = left[left_labels.index(axis)], right[right_labels.index(axis)], out[out_labels.index(axis)]
        flops *= _hits(*sizes, **{name: values[int(axis)] for name, values in window.items()})
    return flops


def _window(convolution: Instruction) -> dict[str, list]:
    """Of each spatial axis the stride, the padding before it, and how far apart values are on either side."""
    text = re.search(r"window={([^}]*)}", convolution.attributes)
    given = dict(part.split("=") for part in text[1].split()) if text else {}
    axes = len(given["size"].split("x")) if given else 0

    def values(name: str) -> list[int]:
        return [int(value.split("_")[0]) for value in given[name].split("x")] if name in given else []

    return {
        "stride": values("stride") or [1] * axes,
        "before": values("pad") or [0] * axes,
        "left_step": values("lhs_dilate") or [1] * axes,
        "right_step": values("rhs_dilate") or [1] * axes,
    }


def _hits(left: int, right: int, out: int, *, stride: int, before: int, left_step: int, right_step: int) -> int:
    """How many pairs of an output's and a kernel's position meet a value, and not padding or a gap between values."""
    places = np.arange(out)[:, None] * stride + np.arange(right)[None, :] * right_step - before
    return int(((places >= 0) & (places % left_step == 0) & (places // left_step < left)).sum())


# --------------------------------------------------------------------------------------------------------------
# Collectives


def _payload(kind: str, instruction: Instruction, computation: Computation, group: tuple[int, ...]) -> float:
    own = sum(array.bytes for name in instruction.operands for array in computation[name].arrays)
    return own * len(group) if kind == "all-gather" else own


def _group(instruction: Instruction) -> tuple[int, ...]:
    """The devices of the first of a collective's groups; all of them is ()."""
    text = instruction.attributes
    if pairs := re.search(r"source_target_pairs={{(\d+),(\d+)}", text):
        return int(pairs[1]), int(pairs[2])
    if listed := re.search(r"replica_groups={{([\d,]+)}", text):
        return tuple(map(int, listed[1].split(",")))
    if "replica_groups={}" in text:
        return ()
    # [groups,size]<=[sizes]T(permutation): numbers counted up, in an array of the sizes, its axes permuted
    if counted := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        numbers = _counted_up(counted[2], counted[3]).reshape(_integers(counted[1]))
        return tuple(numbers[0].tolist())
    # mesh['a'=2,'b'=8], device_ids=([sizes]T(permutation)) {'a'}: the same in a mesh's shape, along some of its axes
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? {([^}]*)}", text
    )
    if mesh is None or ":" in mesh[4]:
        raise HloError(f"{instruction.name}: replica groups of a form that is not known: {text[:200]}")
    names, sizes = zip(*re.findall(r"'(\w+)'=(\d+)", mesh[1]), strict=True)
    along = re.findall(r"'(\w+)'", mesh[4])
    numbers = _counted_up(mesh[2] or ",".join(sizes), mesh[3]).reshape([int(size) for size in sizes])
    first = numbers[tuple(slice(None) if name in along else 0 for name in names)]
    return tuple(first.reshape(-1).tolist())


def _counted_up(sizes: str, permutation: str | None) -> np.ndarray:
    numbers = np.arange(math.prod(_integers(sizes))).reshape(_integers(sizes))
    return numbers.transpose(_integers(permutation)) if permutation else numbers


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
