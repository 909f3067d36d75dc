"""Counts the memory traffic of one operation of a compiled program."""

import math

from tools.planner.hlo import Computation, Instruction, Module

# Operations that make no new arrays, or whose work is counted elsewhere.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "optimization-barrier", "custom-call-done", "domain"),
}
_SLICES = ("dynamic-slice", "slice", "gather")


def traffic(instruction: Instruction, computation: Computation, module: Module) -> float:
    """Return the bytes read from and written to main memory: operands are read and results written once.

    An operation that only slices an operand reads the slices. An update in place writes the updated part.
    """
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-start") or "AllocateBuffer" in instruction.attributes:
        return 0.0
    operands = [computation[name] for name in instruction.operands]
    written = sum(array.main for array in instruction.arrays)
    if opcode.endswith("-done"):  # counted here, because the result of -start contains the operand
        sources = [computation[name] for name in operands[0].operands]
        moved = sum(array.bytes for array in instruction.arrays)
        return written + (moved if any(array.main for source in sources for array in source.arrays) else 0.0)
    if opcode == "fusion":
        inner = module.computations[instruction.attribute("calls") or ""]
        read = sum(min(_read(inner, n, module), _size(operand)) for n, operand in enumerate(operands) if _size(operand))
        return read + _written(inner, instruction)
    if opcode in _SLICES:
        return written + sum(array.bytes for array in instruction.arrays) * (_size(operands[0]) > 0)
    if opcode == "dynamic-update-slice":
        return _size(operands[1]) + operands[1].arrays[0].bytes * (written > 0)
    return written + sum(map(_size, operands))


def _size(instruction: Instruction) -> float:
    return sum(array.main for array in instruction.arrays)


def _read(inner: Computation, number: int, module: Module) -> float:
    """Return the most bytes that a fusion reads of its operand `number`."""
    (parameter,) = (i.name for i in inner.values() if i.opcode == "parameter" and i.literal == str(number))
    return _read_of(inner, parameter, module)


def _read_of(inner: Computation, name: str, module: Module) -> float:
    total = 0.0
    for user in inner.values():
        for position, operand in enumerate(user.operands):
            if operand != name:
                continue
            if user.opcode == "bitcast":
                total += _read_of(inner, user.name, module)
            elif user.opcode in _SLICES and position == 0:
                total += sum(array.bytes for array in user.arrays)
            elif user.opcode == "fusion":
                total += _read(module.computations[user.attribute("calls") or ""], position, module)
            elif user.opcode != "dynamic-update-slice" or position != 0:
                return math.inf
    return total


def _written(inner: Computation, fusion: Instruction) -> float:
    """Return the bytes that a fusion writes."""
    (root,) = (instruction for instruction in inner.values() if instruction.root)
    parts = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(parts) != len(fusion.arrays):  # an inner fusion with several results
        return sum(array.main for array in fusion.arrays)
    total = 0.0
    for part, array in zip(parts, fusion.arrays, strict=True):
        while part.opcode == "bitcast":
            part = inner[part.operands[0]]
        update = part.opcode == "dynamic-update-slice"
        total += (inner[part.operands[1]].arrays[0].bytes if update else array.bytes) * (array.space == 0)
    return total
