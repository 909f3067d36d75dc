"""Counts the work of one device in a compiled program: matrix products, kernels, memory traffic, collectives.

XLA's cost analysis counts the body of a loop once, and a scan over layers is a loop. This module multiplies each body
by its trip count, which the text contains for every scan.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from tools.planner.collectives import Collective, collective
from tools.planner.hlo import Computation, Instruction, Module
from tools.planner.kernels import TARGET, Kernels, cost_estimate, kernel_flops
from tools.planner.phases import phase
from tools.planner.products import product_flops
from tools.planner.traffic import traffic

_TRANSCENDENTALS = {
    *("cbrt", "cosine", "erf", "exponential", "exponential-minus-one", "log", "log-plus-one", "logistic", "power"),
    *("rsqrt", "sine", "sqrt", "tan", "tanh"),
}


class Overlap(NamedTuple):
    """Asynchronous collectives, and the work between the start of the first and the end of the last: all runs."""

    collectives: tuple[Collective, ...]
    flops: float
    traffic: float

    def times(self, count: float) -> "Overlap":
        collectives = tuple(each._replace(count=count * each.count) for each in self.collectives)
        return Overlap(collectives, count * self.flops, count * self.traffic)


@dataclasses.dataclass
class Work:
    """The work of one device in one run of a program."""

    flops: float = 0.0  # of matrix products; a multiplication and an addition are two
    transcendentals: float = 0.0  # exponentials, square roots and the like
    traffic: float = 0.0  # bytes read from and written to main memory
    collectives: list[Collective] = dataclasses.field(default_factory=list)  # with nothing else at the same time
    overlaps: list[Overlap] = dataclasses.field(default_factory=list)

    def add(self, other: "Work", times: float = 1.0) -> None:
        self.flops += times * other.flops
        self.transcendentals += times * other.transcendentals
        self.traffic += times * other.traffic
        self.collectives += [each._replace(count=times * each.count) for each in other.collectives]
        self.overlaps += [each.times(times) for each in other.overlaps]


class _Program(NamedTuple):
    module: Module
    unknown_trips: int
    kernels: Kernels


def count_work(module: Module, *, unknown_trips: int = 1, kernels: Kernels | None = None) -> Work:
    """Count the work of one run of the program.

    Args:
      module: from `parse`.
      unknown_trips: trip count of loops whose end depends on values, such as generation's.
      kernels: the work of kernels without a cost estimate, from `kernels_of`.

    Raises:
      HloError: the program has other text than expected, or a kernel without a cost estimate that `kernels` lacks.
    """
    return _of_computation(_Program(module, unknown_trips, kernels or {}), module.entry, False)


def _of_computation(program: _Program, name: str, fused: bool) -> Work:
    """Count the work of one run of a computation. Values inside a fusion never reach memory."""
    computation = program.module.computations[name]
    total = Work()
    started: set[str] = set()  # asynchronous collectives that have not ended
    running, meanwhile = [], Work()  # the collectives since `started` was last empty, and the other work since then
    for instruction in computation.values():
        work = _of_instruction(program, instruction, computation, fused)
        for inner, times, inside in _called(program, instruction, fused):
            work.add(_of_computation(program, inner, inside), times)
        part = phase(instruction, program.module)
        if part and part.name == "start" and work.collectives:
            started |= part.keys
            running += work.collectives
            continue
        ends = part is not None and part.name == "done" and not part.keys.isdisjoint(started)
        if part and (part.name == "done" or not part.keys.isdisjoint(started)):
            work.collectives = []  # counted at the start
        total.add(work)
        if ends:
            started -= part.keys
            if not started:
                total.add(_ended(running, meanwhile))
                running, meanwhile = [], Work()
        elif started:
            meanwhile.add(work)
    total.collectives += running
    return total


def _ended(collectives: list[Collective], meanwhile: Work) -> Work:
    """Return asynchronous collectives as Work: with an Overlap if matrix products run at the same time."""
    if meanwhile.flops == 0:
        return Work(collectives=collectives)
    return Work(overlaps=[Overlap(tuple(collectives), meanwhile.flops, meanwhile.traffic)])


def _of_instruction(program: _Program, instruction: Instruction, computation: Computation, fused: bool) -> Work:
    """Count the work of one instruction, without the computations that it calls."""
    work = Work(flops=product_flops(instruction, computation))
    if not fused:
        work.traffic = traffic(instruction, computation, program.module)
    if instruction.opcode in _TRANSCENDENTALS:
        work.transcendentals = float(math.prod(instruction.arrays[0].shape))
    if instruction.opcode == "custom-call" and (estimate := cost_estimate(instruction)):
        work.flops, work.transcendentals = estimate.flops, estimate.transcendentals
    elif instruction.opcode == "custom-call" and f'"{TARGET}"' in instruction.attributes:
        work.flops = kernel_flops(instruction, program.kernels)
    if found := collective(instruction, computation):
        work.collectives = [found]
    return work


def _called(program: _Program, instruction: Instruction, fused: bool) -> Iterator[tuple[str, float, bool]]:
    """Yield the computations that an instruction runs, how often, and whether they are inside a fusion.

    All branches of a conditional count.
    """
    match instruction.opcode:
        case "while":
            trips = trip_count(instruction, program.module) or program.unknown_trips
            called = [(instruction.attribute(part), trips, fused) for part in ("body", "condition")]
        case "conditional":
            branches = re.search(r"branch_computations={([^}]*)}", instruction.attributes)
            names = re.findall(r"[\w.\-]+", branches[1]) if branches else []
            names += [instruction.attribute(f"{value}_computation") for value in ("true", "false")]
            called = [(branch, 1, fused) for branch in names]
        case "call":
            called = [(instruction.attribute("to_apply") or instruction.attribute("calls"), 1, fused)]
        case _:
            called = [(instruction.attribute("calls"), 1, fused or instruction.opcode == "fusion")]
    yield from ((name, float(times), inside) for name, times, inside in called if name is not None)


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
