"""Reads the collectives of a compiled program: their sizes, and the devices that take part."""

import math
import re
from typing import NamedTuple

import numpy as np

from tools.planner.hlo import Computation, HloError, Instruction

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


def collective(instruction: Instruction, computation: Computation) -> Collective | None:
    """Return the collective that an instruction runs or starts; None if it is another operation."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return None
    group = _group(instruction)
    if len(group) == 1:
        return None
    return Collective(kind, _payload(kind, instruction, computation, group), group, 1.0)


def _payload(kind: str, instruction: Instruction, computation: Computation, group: tuple[int, ...]) -> float:
    size = sum(array.bytes for name in instruction.operands for array in computation[name].arrays)
    if kind != "all-gather":
        return size
    results = sum(array.bytes for array in instruction.arrays)
    return size * len(group) if group else results - size * instruction.opcode.endswith("-start")


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
