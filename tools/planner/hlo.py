"""The text of a compiled program, parsed."""

import math
import re
from typing import NamedTuple


class HloError(ValueError):
    """A text that is not understood; the message has the line."""


class Array(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    space: int  # 0 is the device's main memory, others are on the chip (or, 5, on the host)

    @property
    def bytes(self) -> float:
        """Without the padding of tiles."""
        bits = re.search(r"\d+", self.dtype)
        width = int(bits[0]) if bits else {"pred": 8}.get(self.dtype, 0)  # a token, or the like, is nothing
        return math.prod(self.shape) * width / 8

    @property
    def main(self) -> float:
        """Its bytes, if it is in main memory."""
        return self.bytes if self.space == 0 else 0.0


class Instruction(NamedTuple):
    name: str
    opcode: str
    arrays: tuple[Array, ...]  # of the result, a tuple's one after the other
    operands: tuple[str, ...]
    literal: str  # what stands in the parentheses
    attributes: str
    root: bool

    def attribute(self, name: str) -> str | None:
        """A plain value or a computation's name."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    def numbers(self, name: str) -> list[int]:
        """Those of `name={1,2}`; none if the attribute is left out."""
        found = re.search(rf"\b{name}={{([\d,]*)}}", self.attributes)
        return [int(number) for number in found[1].split(",") if number] if found else []


Computation = dict[str, Instruction]


class Module(NamedTuple):
    computations: dict[str, Computation]
    entry: str


_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")


def parse(text: str) -> Module:
    """The computations of a module, as `compiled.as_text()` prints them."""
    computations: dict[str, Computation] = {}
    entry, current = None, None
    for line in text.splitlines():
        if not line.startswith(" ") and (header := _HEADER.match(line)):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (match := _INSTRUCTION.match(line)):
            instruction = _instruction(bool(match[1]), match[2], match[3])
            current[instruction.name] = instruction
    if entry is None:
        raise HloError(f"expected the text of an HLO module with an ENTRY, found {text[:80]!r}")
    return Module(computations, entry)


def _instruction(root: bool, name: str, rest: str) -> Instruction:
    end = _closing(rest, 0) if rest.startswith("(") else rest.find(" ")
    opcode = re.match(r" ?([\w\-]+)\(", rest[end:])
    if opcode is None:
        raise HloError(f"no operation: {name} = {rest[:200]}")
    opened = end + opcode.end() - 1
    closed = _closing(rest, opened)
    literal = rest[opened + 1 : closed - 1]
    return Instruction(
        name=name,
        opcode=opcode[1],
        arrays=tuple(_array(match) for match in _ARRAY.finditer(rest[:end])),
        operands=tuple(re.findall(r"%([\w.\-]+)", literal)),
        literal=literal,
        attributes=rest[closed:],
        root=root,
    )


def _closing(text: str, start: int) -> int:
    """The position after the parenthesis that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position + 1
    raise HloError(f"a parenthesis that is not closed: {text[:200]}")


def _array(match: re.Match) -> Array:
    space = re.search(r"S\((\d+)\)", match[3] or "")
    return Array(match[1], tuple(int(size) for size in match[2].split(",") if size), int(space[1]) if space else 0)
