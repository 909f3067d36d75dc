"""Constraints on options: the bounds of each, and messages that name the field and the value."""

import dataclasses
import math
from typing import Annotated

import pytest

from prompt_jax.config import constraints
from prompt_jax.config.constraints import DISTINCT, INTERVAL, POSITIVE, Constraint, check_fields
from prompt_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Options:
    count: Annotated[int, POSITIVE] = 1
    names: Annotated[tuple[str, ...], DISTINCT] = ()
    between: Annotated[tuple[float, float], INTERVAL] = (0.0, 1.0)
    maybe: Annotated[int, POSITIVE] | None = None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(0), "^part.count must be positive, not 0$"),
        (Options(maybe=0), "^part.maybe must be positive, not 0$"),
        (Options(names=("a", "a")), r"^part.names must be without repetitions, not \['a', 'a'\]$"),
        (Options(between=(1.0, 1.0)), r"^part.between must be a lower and a higher value, not \[1.0, 1.0\]$"),
        (Options(2**63), r"^part.count must be from -2\*\*63 to 2\*\*63 - 1, not 9223372036854775808$"),
        (Options(between=(0.0, math.inf)), r"^part.between must be finite, not \(0.0, inf\)$"),
    ],
)
def test_the_field_and_its_value_are_named(options, message):
    check_fields(Options(), "part")
    with pytest.raises(ConfigError, match=message):
        check_fields(options, "part")


# Values on both sides of each bound.
BOUNDS = {
    "POSITIVE": ((1, 1e-9), (0, -1)),
    "NOT_NEGATIVE": ((0, 1), (-1e-9,)),
    "NOT_POSITIVE": ((0, -1), (1e-9,)),
    "BELOW_ONE": ((0, 0.999), (1, -0.001)),
    "PROPER_SHARE": ((0.001, 0.999), (0, 1)),
    "PROBABILITY": ((0.001, 1), (0, 1.001)),
    "INTERVAL": (((1, 2),), ((1, 1), (2, 1))),
    "DISTINCT": (((), ("a", "b")), (("a", "b", "a"),)),
    "NOT_BLANK": (((), ("a",)), (("a", " "),)),
    "SEED": ((0, 2**63 - 1), (-1, 2**63)),
    "STEPS": ((2**31 - 1, 1 - 2**31), (2**31, -(2**31))),
    "MESH_SIZE": ((1, 8, -1), (0, -2)),
}


def test_each_constraint_has_its_bounds():
    defined = {name for name, value in vars(constraints).items() if isinstance(value, Constraint)}
    assert defined == set(BOUNDS)


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds(name):
    holds = getattr(constraints, name).holds
    inside, outside = BOUNDS[name]
    assert all(map(holds, inside)) and not any(map(holds, outside))
