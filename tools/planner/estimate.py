"""The memory that a compiled program needs per chip, and a lower bound for its time."""

import dataclasses
import re
from typing import Any

import jax

from tools.planner.chips import Topology
from tools.planner.hlo import parse
from tools.planner.programs import Program
from tools.planner.work import count_work

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
      flops: operations of matrix products, including recomputed and replicated ones.
      traffic: bytes read from and written to the chip's memory.
      collectives: count and total bytes by kind.
      compute, transfer, interconnect: seconds of the three, each alone at the chip's peak rate.
      utilization: MFU, the model's operations per second, without recomputation, as a share of all chips' peak.
    """

    program: str
    arguments: float
    temporaries: float
    outputs: float
    code: float
    memory: float
    flops: float
    traffic: float
    collectives: dict[str, tuple[int, float]]
    compute: float
    transfer: float
    interconnect: float
    utilization: float

    @property
    def seconds(self) -> float:
        """The step time: computation and memory traffic overlap, collectives do not."""
        return _seconds(self.compute, self.transfer, self.interconnect)

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
    work = count_work(parse(compiled.as_text()), unknown_trips=program.unknown_trips)
    collectives: dict[str, tuple[int, float]] = {}
    interconnect = 0.0
    for each in work.collectives:
        count, size = collectives.get(each.kind, (0, 0.0))
        collectives[each.kind] = round(count + each.count), size + each.count * each.bytes
        interconnect += each.count * topology.collective_seconds(each.kind, each.bytes, each.group, program.devices)
    chip = topology.chip
    compute, transfer = work.flops / chip.peak, work.traffic / chip.bandwidth
    peak = len(program.devices) * chip.peak
    return Estimate(
        program=program.name,
        arguments=sizes.argument_size_in_bytes,
        temporaries=sizes.temp_size_in_bytes,
        outputs=sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        code=sizes.generated_code_size_in_bytes,
        memory=chip.memory,
        flops=work.flops,
        traffic=work.traffic,
        collectives=collectives,
        compute=compute,
        transfer=transfer,
        interconnect=interconnect,
        utilization=program.model_flops / (peak * _seconds(compute, transfer, interconnect)),
    )


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


def _seconds(compute: float, transfer: float, interconnect: float) -> float:
    return max(compute, transfer) + interconnect
