"""Counts the memory traffic of one operation of a compiled program."""

import math

from tools.planner.collectives import COLLECTIVES
from tools.planner.hlo import Computation, Instruction, Module
from tools.planner.kernels import cost_estimate
from tools.planner.phases import phase

# Operations that make no new arrays, or whose work is counted elsewhere.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "optimization-barrier", "custom-call-done", "domain"),
}
_SLICES = ("dynamic-slice", "slice", "gather")
# Operations that need no more elements of an operand than of their result.
_ELEMENTWISE = {
    *("bitcast", "bitcast-convert", "broadcast", "convert", "copy", "reshape", "transpose"),
    *("abs", "add", "and", "clamp", "divide", "maximum", "minimum", "multiply", "negate", "not", "or", "select"),
    *("shift-left", "shift-right-arithmetic", "shift-right-logical", "subtract", "xor"),
}


def traffic(instruction: Instruction, computation: Computation, module: Module) -> float:
    """Return the bytes read from and written to main memory: operands are read and results written once.

    An operation that only slices an operand reads the slices. An update in place writes the updated part. A kernel
    counts its cost estimate.
    """
    opcode, part = instruction.opcode, phase(instruction, module)
    starts, ends = (part is not None and part.name == name for name in ("start", "done"))
    if opcode in _FREE or starts or "AllocateBuffer" in instruction.attributes:
        return 0.0
    operands = [computation[name] for name in instruction.operands]
    written = sum(array.main for array in instruction.arrays)
    if ends and opcode == "fusion":
        return _size(operands[0]) + written
    if ends:  # counted here, because the result of -start contains the operand
        sources = [computation[name] for name in operands[0].operands]
        moved = sum(array.bytes for array in instruction.arrays)
        return written + (moved if any(array.main for source in sources for array in source.arrays) else 0.0)
    if opcode == "fusion":
        inner = inlined(instruction.attribute("calls") or "", module)
        read = sum(min(_read(inner, n), _size(operand)) for n, operand in enumerate(operands) if _size(operand))
        return read + _written(inner, instruction)
    if opcode in _SLICES:
        return written + sum(array.bytes for array in instruction.arrays) * (_size(operands[0]) > 0)
    if opcode == "dynamic-update-slice":
        return _size(operands[1]) + operands[1].arrays[0].bytes * (written > 0)
    if opcode == "custom-call" and (estimate := cost_estimate(instruction)):
        return estimate.bytes
    return written + sum(map(_size, operands))


def _size(instruction: Instruction) -> float:
    return sum(array.main for array in instruction.arrays)


def inlined(name: str, module: Module) -> Computation:
    """Return a fusion's computation with the computations of nested fusions in place of the fusions."""
    flat: Computation = {}
    renamed: dict[str, str] = {}
    for outer in module.computations[name].values():
        operands = tuple(renamed.get(operand, operand) for operand in outer.operands)
        source = flat.get(operands[0]) if operands else None
        if outer.opcode == "get-tuple-element" and source is not None and source.opcode == "tuple":
            renamed[outer.name] = source.operands[int(outer.attribute("index") or 0)]
        elif outer.opcode == "fusion":
            names = {}
            for inner in inlined(outer.attribute("calls") or "", module).values():
                if inner.opcode == "parameter":
                    names[inner.name] = operands[int(inner.literal)]
                else:
                    names[inner.name] = f"{outer.name}/{inner.name}"
                    flat[names[inner.name]] = inner._replace(
                        name=names[inner.name],
                        operands=tuple(names[operand] for operand in inner.operands),
                        root=outer.root and inner.root,
                    )
                if inner.root:
                    renamed[outer.name] = names[inner.name]
        else:
            flat[outer.name] = outer._replace(operands=operands)
    return flat


def _read(inner: Computation, number: int) -> float:
    """Return the bytes that a fusion reads of its operand `number`; infinity if it may read all of it.

    Only slices of the operand, or of what is computed from it element by element, read less than all of it. A step of
    an asynchronous collective returns its operands and the collective's result, which count at the end.
    """
    (parameter,) = (i for i in inner.values() if i.opcode == "parameter" and i.literal == str(number))
    pending, elements = {parameter.name}, 0
    seen = set(pending)
    while pending:
        name = pending.pop()
        if inner[name].root:
            return math.inf
        for user in inner.values():
            for position, operand in enumerate(user.operands):
                if operand != name:
                    continue
                if user.opcode in COLLECTIVES or (user.opcode == "tuple" and name == parameter.name):
                    continue
                if user.opcode in _SLICES and position == 0:
                    elements += math.prod(user.arrays[0].shape)
                elif user.opcode in _ELEMENTWISE:
                    pending |= {user.name} - seen
                    seen.add(user.name)
                elif user.opcode != "dynamic-update-slice" or position != 0:
                    return math.inf
    array = parameter.arrays[0]
    return elements * array.bytes / max(1, math.prod(array.shape))


def _written(inner: Computation, fusion: Instruction) -> float:
    """Return the bytes that a fusion writes."""
    (root,) = (instruction for instruction in inner.values() if instruction.root)
    parts = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(parts) != len(fusion.arrays):  # an operation with several results
        return sum(array.main for array in fusion.arrays)
    total = 0.0
    for part, array in zip(parts, fusion.arrays, strict=True):
        while part.opcode == "bitcast":
            part = inner[part.operands[0]]
        if part.opcode == "parameter" or part.opcode in COLLECTIVES:
            continue
        update = part.opcode == "dynamic-update-slice"
        total += (inner[part.operands[1]].arrays[0].bytes if update else array.bytes) * (array.space == 0)
    return total
