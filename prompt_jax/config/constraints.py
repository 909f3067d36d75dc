"""Constraints on the values of options, declared in a field's type: `steps: Annotated[int, POSITIVE] = 30_000`."""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator
from typing import Any

from prompt_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Constraint:
    """A condition on one value.

    Attributes:
      text: completes the message "NAME must be ...".
      holds: whether a value meets the condition.
    """

    text: str
    holds: Callable[[Any], bool]


POSITIVE = Constraint("positive", lambda value: value > 0)
NOT_NEGATIVE = Constraint("zero or positive", lambda value: value >= 0)
NOT_POSITIVE = Constraint("zero or negative", lambda value: value <= 0)
BELOW_ONE = Constraint("in [0, 1)", lambda value: 0 <= value < 1)
PROPER_SHARE = Constraint("between 0 and 1", lambda value: 0 < value < 1)
PROBABILITY = Constraint("in (0, 1]", lambda value: 0 < value <= 1)
INTERVAL = Constraint("a lower and a higher value", lambda value: value[0] < value[1])
DISTINCT = Constraint("without repetitions", lambda value: len(set(value)) == len(value))
NOT_BLANK = Constraint("without empty words", lambda value: all(word.strip() for word in value))
SEED = Constraint("from 0 to 2**63 - 1", lambda value: 0 <= value < 2**63)
STEPS = Constraint("below 2**31, as JAX counts steps in 32 bits", lambda value: abs(value) < 2**31)
MESH_SIZE = Constraint("positive, or -1 for all remaining devices", lambda value: value > 0 or value == -1)


def check_fields(options: Any, name: str) -> None:
    """Check each field of a dataclass against its constraints, that floats are finite, and that integers have 64 bits.

    None is always allowed.

    Args:
      options: a dataclass instance.
      name: the name of the section in messages, such as `train`.

    Raises:
      ConfigError: names the field, its value, and what would be right.
    """
    for field, hint in typing.get_type_hints(type(options), include_extras=True).items():
        value = getattr(options, field)
        if value is None:
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"{name}.{field} must be finite, not {value}")
        for constraint in _constraints(hint):
            if not constraint.holds(value):
                printed = list(value) if isinstance(value, tuple) else value
                raise ConfigError(f"{name}.{field} must be {constraint.text}, not {printed}")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and not -(2**63) <= number < 2**63:
                raise ConfigError(f"{name}.{field} must be from -2**63 to 2**63 - 1, not {number}")


def _constraints(hint: Any) -> Iterator[Constraint]:
    """Return the constraints in a type such as `Annotated[int, POSITIVE] | None`."""
    yield from (extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Constraint))
    for part in typing.get_args(hint):
        yield from _constraints(part)
