"""Parses the text of a compiled program (HLO)."""

import math
import re
from typing import NamedTuple


class HloError(ValueError):
    """Text that cannot be parsed. The message contains the line."""


class Array(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    space: int  # 0: the device's main memory; 5: the host; others: on the chip

    @property
    def bytes(self) -> float:
        """The size without padding to tiles."""
        bits = re.search(r"\d+", self.dtype)
        width = int(bits[0]) if bits else {"pred": 8}.get(self.dtype, 0)  # tokens and the like take nothing
        return math.prod(self.shape) * width / 8

    @property
    def main(self) -> float:
        """The bytes in main memory."""
        return self.bytes if self.space == 0 else 0.0


class Instruction(NamedTuple):
    name: str
    opcode: str
    arrays: tuple[Array, ...]  # of the result, flattened if it is a tuple
    operands: tuple[str, ...]
    literal: str  # the text in parentheses
    attributes: str
    root: bool

    def attribute(self, name: str) -> str | None:
        """Return the attribute's value: a plain value or a computation's name."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    def numbers(self, name: str) -> list[int]:
        """Return the numbers of `name={1,2}`; empty without the attribute."""
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
    """Parse a module as printed by `compiled.as_text()`."""
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
        raise HloError(f"expected an operation: {name} = {rest[:200]}")
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
    """Return the position after the parenthesis that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position + 1
    raise HloError(f"unclosed parenthesis: {text[:200]}")


def _array(match: re.Match) -> Array:
    space = re.search(r"S\((\d+)\)", match[3] or "")
    return Array(match[1], tuple(int(size) for size in match[2].split(",") if size), int(space[1]) if space else 0)
