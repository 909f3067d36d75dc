"""The differences between two prompts or two configurations."""

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
from prompt_jax.models.delta import Delta, flat
from prompt_jax.models.prompt import PromptPart, used_arrays
from prompt_jax.prompt_files.metadata import StoredPrompt

_VALUE_LIMIT = 60  # characters of a value


@dataclasses.dataclass(frozen=True)
class PartDifference:
    """The difference between one part of two prompts. A slot of a prefix holds keys and values of all layers.

    Attributes:
      sizes: the shape of each part, without unused slots.
      norms: the norm of each part.
      norm: the norm of their difference. If the sizes differ, this and the following attributes are None.
      largest: the largest absolute difference of two numbers.
      where: the slot that contains it.
      cosines: the cosine of each slot with the same slot of the other prompt.
    """

    sizes: tuple[tuple[int, ...], tuple[int, ...]]
    norms: tuple[float, float]
    norm: float | None = None
    largest: float | None = None
    where: int | None = None
    cosines: Float[np.ndarray, " P"] | None = None


def part_difference(a: PromptPart, b: PromptPart) -> PartDifference | None:
    """Return how two parts of one kind differ; None if their used slots are equal, bit by bit."""
    first, second = used_arrays(a), used_arrays(b)
    if all(
        array.shape == second[name].shape and array.tobytes() == second[name].tobytes() for name, array in first.items()
    ):
        return None
    slots_a, slots_b = slot_vectors(a), slot_vectors(b)
    sizes = tuple(first[a.arrays[0]].shape), tuple(second[b.arrays[0]].shape)
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


def prompt_lines(a: StoredPrompt, b: StoredPrompt) -> list[str]:
    """Return lines of text with the differences between two prompts and their metadata. Ignores unused slots."""
    fields = [json.loads(json.dumps(dataclasses.asdict(metadata), default=str)) for _, metadata in (a, b)]
    lines = _field_lines(*fields)
    first, second = a[0].parts, b[0].parts
    for name in dict.fromkeys((*first, *second)):
        if name not in first or name not in second:
            lines.append(f"  {name}: only the {'first' if name in first else 'second'} has it")
        elif (difference := part_difference(first[name], second[name])) is not None:
            lines += _part_lines(name, difference)
    return lines + _base_lines(*(flat(prompt.leaves) if isinstance(prompt, Delta) else {} for prompt in (a[0], b[0])))


def _base_lines(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Return the differences between two prompts' changes of the base."""
    lines = []
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b:
            lines.append(f"  base/{name}: only the {'first' if name in a else 'second'} has it")
            continue
        first, second = (np.asarray(leaves[name], np.float64) for leaves in (a, b))
        if first.shape != second.shape:
            lines.append(f"  base/{name}: {list(first.shape)}, and {list(second.shape)}")
        elif first.tobytes() != second.tobytes():
            norm, largest = np.linalg.norm(first - second), np.abs(first - second).max()
            lines.append(f"  base/{name}: norm of the difference {norm:.4g}; the largest is {largest:.4g}")
    return lines


def config_lines(a: Experiment, b: Experiment) -> list[str]:
    """Return lines of text with the fields in which two experiments differ, and their values."""
    return _field_lines(*(json.loads(experiments.to_json(experiment)) for experiment in (a, b)))


def _field_lines(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Return the fields in which two JSON objects differ, in columns. Nested fields are named `a.b`."""
    names = experiments.differences(a, b)
    cells = [[printable(name, 40), *(_value(_at(values, name)) for values in (a, b))] for name in names]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)] if cells else []
    return ["  " + "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def _at(values: Any, name: str) -> Any:
    """Return the value at `a.b`. Names of settings contain dots themselves."""
    if not isinstance(values, dict):
        return None
    if name in values:
        return values[name]
    first = next((key for key in values if name.startswith(f"{key}.")), None)
    return None if first is None else _at(values[first], name[len(first) + 1 :])


def _value(value: Any) -> str:
    return "-" if value is None else printable(json.dumps(value, ensure_ascii=False), _VALUE_LIMIT)


def _part_lines(name: str, difference: PartDifference) -> list[str]:
    a, b = (" x ".join(map(str, size)) for size in difference.sizes)
    lines = [f"  {name}: {a} of norm {difference.norms[0]:.4g}, and {b} of norm {difference.norms[1]:.4g}"]
    if difference.cosines is None:
        return [*lines, "    sizes that differ have nothing more to compare"]
    low, high = int(difference.cosines.argmin()), int(difference.cosines.argmax())
    lines.append(
        f"    norm of the difference {difference.norm:.4g}; the largest is {difference.largest:.4g}, in slot "
        f"{difference.where}"
    )
    lines.append(
        f"    cosines of slots: mean {difference.cosines.mean():.4f}, from {difference.cosines[low]:.4f} ({low}) to "
        f"{difference.cosines[high]:.4f} ({high})"
    )
    return [*lines, *numbers(difference.cosines, ".4f")]


def member_lines(a: Sequence[StoredPrompt], b: Sequence[StoredPrompt]) -> list[tuple[str, list[str]]]:
    """Return `prompt_lines` for each pair of members with the same number, and a note if the counts differ."""
    several = max(len(a), len(b)) > 1
    members = [
        (f"member {number}" if several else "", prompt_lines(*pair))
        for number, pair in enumerate(zip(a, b, strict=False))
    ]
    if len(a) != len(b):
        members.append((f"{len(a)} and {len(b)} members", ["  the numbers that both have were compared"]))
    return members
