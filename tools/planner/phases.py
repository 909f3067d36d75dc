"""Finds the start and the end of asynchronous collectives in a compiled program.

They are pairs of operations such as `all-gather-start` and `all-gather-done`. On TPUs they are also fusions: the first
contains a custom call AsyncCollectiveStart, the last AsyncCollectiveDone, and those in between, which compute, are the
steps. Each of these fusions contains the collective.
"""

from typing import Literal, NamedTuple

from tools.planner.collectives import COLLECTIVES
from tools.planner.hlo import Instruction, Module


class Phase(NamedTuple):
    """A part of asynchronous operations. `keys` are equal for all parts of an operation."""

    name: Literal["start", "step", "done"]
    keys: frozenset[str]


def phase(instruction: Instruction, module: Module) -> Phase | None:
    """Return the part of asynchronous operations that an instruction is; None if it is none."""
    if instruction.opcode.endswith("-start"):
        return Phase("start", frozenset([instruction.name]))
    if instruction.opcode.endswith("-done"):
        return Phase("done", frozenset(instruction.operands))
    if instruction.opcode != "fusion":
        return None
    inner = module.computations[instruction.attribute("calls") or ""].values()
    channels = frozenset(each.attribute("channel_id") or each.name for each in inner if each.opcode in COLLECTIVES)
    if not channels:
        return None
    calls = [each.attributes for each in inner if each.opcode == "custom-call"]
    if any('"AsyncCollectiveStart"' in call for call in calls):
        return Phase("start", channels)
    return Phase("done" if any('"AsyncCollectiveDone"' in call for call in calls) else "step", channels)
