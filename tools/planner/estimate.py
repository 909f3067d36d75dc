"""The memory that a compiled program needs per chip, and a lower bound for its time."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import jax

from tools.planner.chips import Topology
from tools.planner.collectives import Collective
from tools.planner.hlo import parse
from tools.planner.programs import Program
from tools.planner.work import Overlap, count_work

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "": 1}


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """A program that does not fit into the chips' memory."""

    program: str
    used: float  # bytes per chip that it would need at once
    available: float  # bytes per chip available to programs


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The cost of one run of a program. Sizes, operations and times are per chip.

    Attributes:
      arguments: bytes of the base, the prompts, their optimizer states and the batch.
      temporaries: bytes of the largest set of temporary arrays.
      outputs: bytes of outputs that do not reuse an argument's memory.
      code: bytes of the program itself.
      memory: bytes of the chip's memory.
      flops: operations of matrix products and kernels, including recomputed and replicated ones.
      transcendentals: number of exponentials, square roots and the like.
      traffic: bytes read from and written to the chip's memory.
      collectives: count and total bytes by kind.
      overlapping: count and total bytes, by kind, of the collectives that run at the same time as matrix products.
      compute, transfer, interconnect: seconds of the three, each alone at the chip's peak rate.
      hidden: seconds of the interconnect at the same time as matrix products.
      utilization: MFU, the model's operations per second, without recomputation, as a share of all chips' peak.
    """

    program: str
    arguments: float
    temporaries: float
    outputs: float
    code: float
    memory: float
    flops: float
    transcendentals: float
    traffic: float
    collectives: dict[str, tuple[int, float]]
    overlapping: dict[str, tuple[int, float]]
    compute: float
    transfer: float
    interconnect: float
    hidden: float
    utilization: float

    @property
    def seconds(self) -> float:
        """The step time. Computation and memory traffic overlap, and so do asynchronous collectives."""
        return _step_seconds(self.compute, self.transfer, self.interconnect, self.hidden)

    @property
    def bound(self) -> str:
        """The resource that takes the longest."""
        times = {"compute": self.compute, "memory": self.transfer, "interconnect": self.interconnect}
        return max(times, key=lambda name: times[name])


def estimate(program: Program, topology: Topology) -> Estimate | TooLarge:
    """Compile a program and estimate its cost from the compiled text."""
    try:
        compiled = program.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if too_large := out_of_memory(program.name, str(error)):
            return too_large
        raise
    sizes: Any = compiled.memory_analysis()
    work = count_work(parse(compiled.as_text()), unknown_trips=program.unknown_trips, kernels=program.kernels)
    chip = topology.chip
    in_overlaps = [each for overlap in work.overlaps for each in overlap.collectives]
    times = {
        "compute": work.flops / chip.peak,
        "transfer": work.traffic / chip.bandwidth,
        "interconnect": _seconds_of([*work.collectives, *in_overlaps], program, topology),
        "hidden": sum(_hidden(overlap, program, topology) for overlap in work.overlaps),
    }
    return Estimate(
        program=program.name,
        arguments=sizes.argument_size_in_bytes,
        temporaries=sizes.temp_size_in_bytes,
        outputs=sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        code=sizes.generated_code_size_in_bytes,
        memory=chip.memory,
        flops=work.flops,
        transcendentals=work.transcendentals,
        traffic=work.traffic,
        collectives=_by_kind([*work.collectives, *in_overlaps]),
        overlapping=_by_kind(in_overlaps),
        **times,
        utilization=program.model_flops / (len(program.devices) * chip.peak * _step_seconds(**times)),
    )


def _seconds_of(collectives: Iterable[Collective], program: Program, topology: Topology) -> float:
    """Return the seconds of collectives, one after the other."""
    return sum(
        each.count * topology.collective_seconds(each.kind, each.bytes, each.group, program.devices)
        for each in collectives
    )


def _hidden(overlap: Overlap, program: Program, topology: Topology) -> float:
    """Return the seconds of asynchronous collectives that pass while the chip computes."""
    chip = topology.chip
    computing = max(overlap.flops / chip.peak, overlap.traffic / chip.bandwidth)
    return min(computing, _seconds_of(overlap.collectives, program, topology))


def _by_kind(collectives: Iterable[Collective]) -> dict[str, tuple[int, float]]:
    """Return the count and the bytes of the collectives of each kind."""
    totals: dict[str, tuple[float, float]] = {}
    for each in collectives:
        count, size = totals.get(each.kind, (0.0, 0.0))
        totals[each.kind] = count + each.count, size + each.count * each.bytes
    return {kind: (round(count), size) for kind, (count, size) in totals.items()}


def out_of_memory(program: str, message: str) -> TooLarge | None:
    """Parse the compiler's error for a program that is too large; None for other errors."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    size = r"([\d.]+)([KMGT]?)"
    for form in (rf"\({size}\) exceeds available HBM \({size}\)", rf"Used {size} of {size} hbm"):
        if found := re.search(form, message):
            used, available = (float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3))
            return TooLarge(program, used, available)
    return None


def _step_seconds(compute: float, transfer: float, interconnect: float, hidden: float) -> float:
    return max(max(compute, transfer) + interconnect - hidden, interconnect)
