"""In what two prompts, or two configurations, differ."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from prompt_jax import experiment as experiments
from prompt_jax.experiment import Experiment
from prompt_jax.inspection.text import numbers, printable
from prompt_jax.inspection.vectors import slot_vectors, unit_rows, vector_norms
from prompt_jax.models.delta import flat
from prompt_jax.models.prompt import Prompt, PromptPart, used_arrays
from prompt_jax.prompt_files.io import PromptMetadata

_VALUE_LIMIT = 60  # characters of a value


@dataclasses.dataclass(frozen=True)
class PartDifference:
    """What of one part of two prompts differs; of a prefix a slot is its keys and values in all layers.

    Attributes:
      sizes: of each, without unused slots.
      norms: of all of the one's numbers, and of the other's.
      norm: of their difference; None, as all below, where the sizes differ.
      largest: difference of two numbers, without its sign.
      where: the slot that it is in.
      cosines: of each slot of the one with that of the other.
    """

    sizes: tuple[tuple[int, ...], tuple[int, ...]]
    norms: tuple[float, float]
    norm: float | None = None
    largest: float | None = None
    where: int | None = None
    cosines: Float[np.ndarray, " P"] | None = None


def part_difference(a: PromptPart, b: PromptPart) -> PartDifference | None:
    """In what two parts of one kind differ; None if their used slots are the same, bit by bit."""
    own, other = used_arrays(a), used_arrays(b)
    if all(own[name].shape == other[name].shape and own[name].tobytes() == other[name].tobytes() for name in own):
        return None
    slots_a, slots_b = slot_vectors(a), slot_vectors(b)
    sizes = tuple(own[a.arrays[0]].shape), tuple(other[b.arrays[0]].shape)
    lengths = float(np.linalg.norm(slots_a)), float(np.linalg.norm(slots_b))
    if sizes[0] != sizes[1]:
        return PartDifference(sizes, lengths)
    change = np.abs(slots_a - slots_b)
    return PartDifference(
        sizes,
        lengths,
        norm=float(vector_norms(change.reshape(1, -1))[0, 0]),
        largest=float(change.max()),
        where=int(change.max(axis=1).argmax()),
        cosines=(unit_rows(slots_a) * unit_rows(slots_b)).sum(axis=1),
    )


def prompt_lines(a: tuple[Prompt, PromptMetadata], b: tuple[Prompt, PromptMetadata]) -> list[str]:
    """In what two prompts, and what files say of them, differ, as lines of text; none if in nothing.

    Slots that are not used make no difference.
    """
    fields = [json.loads(json.dumps(dataclasses.asdict(metadata), default=str)) for _, metadata in (a, b)]
    lines = _field_lines(*fields)
    own, other = a[0].parts, b[0].parts
    for name in dict.fromkeys((*own, *other)):
        if name not in own or name not in other:
            lines.append(f"  {name}: only the {'first' if name in own else 'second'} has it")
        elif (found := part_difference(own[name], other[name])) is not None:
            lines += _part_lines(name, found)
    return lines + _base_lines(flat(a[0].base or {}), flat(b[0].base or {}))


def _base_lines(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """In what two prompts change the base differently."""
    lines = []
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b:
            lines.append(f"  base/{name}: only the {'first' if name in a else 'second'} has it")
            continue
        own, other = (np.asarray(each[name], np.float64) for each in (a, b))
        if own.shape != other.shape:
            lines.append(f"  base/{name}: {list(own.shape)}, and {list(other.shape)}")
        elif own.tobytes() != other.tobytes():
            norm, largest = np.linalg.norm(own - other), np.abs(own - other).max()
            lines.append(f"  base/{name}: norm of the difference {norm:.4g}; the largest is {largest:.4g}")
    return lines


def config_lines(a: Experiment, b: Experiment) -> list[str]:
    """The fields in which two experiments differ, with their values, as lines of text."""
    return _field_lines(*(json.loads(experiments.to_json(experiment)) for experiment in (a, b)))


def _field_lines(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Fields of JSON objects that differ, in columns; those of objects within them by `a.b`."""
    names = experiments.differences(a, b)
    cells = [[printable(name, 40), *(_value(_at(values, name)) for values in (a, b))] for name in names]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)] if cells else []
    return ["  " + "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def _at(values: Any, name: str) -> Any:
    """The value at `a.b`; names may have points in them, as those of settings have."""
    if not isinstance(values, dict):
        return None
    if name in values:
        return values[name]
    first = next((own for own in values if name.startswith(f"{own}.")), None)
    return None if first is None else _at(values[first], name[len(first) + 1 :])


def _value(value: Any) -> str:
    return "-" if value is None else printable(json.dumps(value, ensure_ascii=False), _VALUE_LIMIT)


def _part_lines(name: str, found: PartDifference) -> list[str]:
    a, b = (" x ".join(map(str, size)) for size in found.sizes)
    lines = [f"  {name}: {a} of norm {found.norms[0]:.4g}, and {b} of norm {found.norms[1]:.4g}"]
    if found.cosines is None:
        return [*lines, "    sizes that differ have nothing more to compare"]
    low, high = int(found.cosines.argmin()), int(found.cosines.argmax())
    lines.append(
        f"    norm of the difference {found.norm:.4g}; the largest is {found.largest:.4g}, in slot {found.where}"
    )
    lines.append(
        f"    cosines of slots: mean {found.cosines.mean():.4f}, from {found.cosines[low]:.4f} ({low}) to "
        f"{found.cosines[high]:.4f} ({high})"
    )
    return [*lines, *numbers(found.cosines, ".4f")]


def member_lines(
    a: Sequence[tuple[Prompt, PromptMetadata]], b: Sequence[tuple[Prompt, PromptMetadata]]
) -> list[tuple[str, list[str]]]:
    """`prompt_lines` of each pair of members of one number, with its name; and a word where one has more of them."""
    several = max(len(a), len(b)) > 1
    found = [
        (f"member {number}" if several else "", prompt_lines(*pair))
        for number, pair in enumerate(zip(a, b, strict=False))
    ]
    if len(a) != len(b):
        found.append((f"{len(a)} and {len(b)} members", ["  the numbers that both have were compared"]))
    return found
